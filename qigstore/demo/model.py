"""A small network in plain NumPy: 64 pixels → 40 → 24 → 10 classes, trained by momentum.

Its hidden layers have 64 units together: their shares of the activity are the 64-D basin.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qigstore.demo.data import CLASSES, PIXELS

__all__ = ["HIDDEN", "Network", "fresh_weights"]

HIDDEN = (40, 24)
_MOMENTUM, _DECAY, _SMOOTHING = 0.9, 1e-3, 0.1

Array = NDArray[Any]


def fresh_weights(seed: int) -> dict[str, Array]:
    """Initial weights and biases by name, the same for every implementation of the network."""
    random = np.random.default_rng(seed)
    sizes = (PIXELS, *HIDDEN, CLASSES)
    weights: dict[str, Array] = {}
    for layer, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        weights[f"weight{layer}"] = random.normal(size=(inputs, outputs)) * np.sqrt(2 / inputs)
        weights[f"bias{layer}"] = np.zeros(outputs)
    return weights


class Network:
    """Weights, momentum and the next step; `state` and `load` are all a checkpoint needs."""

    def __init__(self, seed: int) -> None:
        self.step = 0
        self.weights = fresh_weights(seed)
        self.momentum = {name: np.zeros_like(value) for name, value in self.weights.items()}

    def state(self) -> dict[str, Any]:
        """Everything needed to go on from here."""
        return {"step": self.step, "weights": self.weights, "momentum": self.momentum}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.step = int(state["step"])
        for name in self.weights:
            self.weights[name] = np.array(state["weights"][name])
            self.momentum[name] = np.array(state["momentum"][name])

    def hidden(self, images: Array) -> Array:
        """Activations of both hidden layers: `(N, 64)` → `(N, 64)`."""
        return np.concatenate(self._forward(images)[1:3], axis=1)

    def accuracy(self, images: Array, labels: Array) -> float:
        """Share of the images that it names rightly."""
        return float(np.mean(self._forward(images)[-1].argmax(axis=1) == labels))

    def train(self, images: Array, labels: Array, learning_rate: float) -> tuple[float, ...]:
        """One step of momentum on one batch: `(loss, accuracy, gradient norm)`."""
        layers = self._forward(images)
        scores = layers[-1] - layers[-1].max(axis=1, keepdims=True)
        log_p = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
        target = np.eye(CLASSES)[labels] * (1 - _SMOOTHING) + _SMOOTHING / CLASSES
        loss = float(-(target * log_p).sum(axis=1).mean())
        accuracy = float(np.mean(log_p.argmax(axis=1) == labels))
        gradient = self._backward(layers, (np.exp(log_p) - target) / len(images))
        for name, slope in gradient.items():
            self.momentum[name] = (
                _MOMENTUM * self.momentum[name] + slope + _DECAY * self.weights[name]
            )
            self.weights[name] = self.weights[name] - learning_rate * self.momentum[name]
        self.step += 1
        norm = float(np.sqrt(sum(float(np.vdot(g, g)) for g in gradient.values())))
        return loss, accuracy, norm

    def _forward(self, images: Array) -> list[Array]:
        w = self.weights
        first = np.maximum(images @ w["weight0"] + w["bias0"], 0.0)
        second = np.maximum(first @ w["weight1"] + w["bias1"], 0.0)
        return [images, first, second, second @ w["weight2"] + w["bias2"]]

    def _backward(self, layers: list[Array], delta: Array) -> dict[str, Array]:
        gradient: dict[str, Array] = {}
        for layer in (2, 1, 0):
            gradient[f"weight{layer}"] = layers[layer].T @ delta
            gradient[f"bias{layer}"] = delta.sum(axis=0)
            if layer:
                delta = (delta @ self.weights[f"weight{layer}"].T) * (layers[layer] > 0)
        return gradient
