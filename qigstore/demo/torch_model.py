"""The same network in PyTorch, behind the same few methods; needs `qigstore[torch]`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qigstore.demo.model import fresh_weights
from qigstore.errors import ConfigurationError

__all__ = ["TorchNetwork"]

_MOMENTUM, _DECAY, _SMOOTHING = 0.9, 1e-3, 0.1

Array = NDArray[Any]


class TorchNetwork:
    """`qigstore.demo.model.Network`, with `torch.nn` and `torch.optim.SGD`.

    Raises:
        ConfigurationError: PyTorch is not installed.
    """

    def __init__(self, seed: int) -> None:
        try:
            import torch
        except ImportError as error:
            raise ConfigurationError(
                "--torch needs PyTorch, which is not installed. Run: pip install 'qigstore[torch]'"
            ) from error
        self._torch = torch
        torch.set_num_threads(1)
        self.step = 0
        weights = fresh_weights(seed)
        layers = []
        for layer in range(3):
            inputs, outputs = weights[f"weight{layer}"].shape
            linear = torch.nn.Linear(inputs, outputs, dtype=torch.float64)
            with torch.no_grad():
                linear.weight.copy_(torch.from_numpy(weights[f"weight{layer}"].T))
                linear.bias.zero_()
            layers.append(linear)
        self._layers = torch.nn.ModuleList(layers)
        self._optimizer = torch.optim.SGD(
            self._layers.parameters(), lr=0.1, momentum=_MOMENTUM, weight_decay=_DECAY
        )

    def state(self) -> dict[str, Any]:
        """Everything needed to go on from here."""
        return {
            "step": self.step,
            "weights": dict(self._layers.state_dict()),
            "optimizer": self._optimizer.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.step = int(state["step"])
        self._layers.load_state_dict(state["weights"])
        self._optimizer.load_state_dict(state["optimizer"])

    def hidden(self, images: Array) -> Array:
        """Activations of both hidden layers: `(N, 64)` → `(N, 64)`."""
        with self._torch.no_grad():
            first, second, _ = self._forward(images)
            joined: Array = np.concatenate([first.numpy(), second.numpy()], axis=1)
        return joined

    def accuracy(self, images: Array, labels: Array) -> float:
        """Share of the images that it names rightly."""
        with self._torch.no_grad():
            scores = self._forward(images)[-1].numpy()
        return float(np.mean(scores.argmax(axis=1) == labels))

    def train(self, images: Array, labels: Array, learning_rate: float) -> tuple[float, ...]:
        """One step of momentum on one batch: `(loss, accuracy, gradient norm)`."""
        torch = self._torch
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.zero_grad()
        scores = self._forward(images)[-1]
        target = torch.from_numpy(labels)
        loss = torch.nn.functional.cross_entropy(scores, target, label_smoothing=_SMOOTHING)
        loss.backward()
        gradients = [p.grad for p in self._layers.parameters() if p.grad is not None]
        squares = sum(float(gradient.square().sum()) for gradient in gradients)
        self._optimizer.step()
        self.step += 1
        accuracy = float((scores.detach().argmax(dim=1) == target).double().mean())
        return float(loss.detach()), accuracy, float(np.sqrt(squares))

    def _forward(self, images: Array) -> tuple[Any, Any, Any]:
        first = self._layers[0](self._torch.from_numpy(images)).relu()
        second = self._layers[1](first).relu()
        return first, second, self._layers[2](second)
