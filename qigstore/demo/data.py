"""The demo's data: scikit-learn's bundled handwritten digits, 1,797 real images of 8×8 pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qigstore.errors import ConfigurationError

__all__ = ["CLASSES", "PIXELS", "Digits", "load_digits"]

PIXELS, CLASSES = 64, 10
_TEST_IMAGES, _PROBE_IMAGES, _BATCH_IMAGES = 360, 256, 64

Array = NDArray[Any]


@dataclass(frozen=True)
class Digits:
    """Images `(N, 64)` in [0, 1] and their labels `(N,)`, split by a seed."""

    seed: int
    train_x: Array
    train_y: Array
    test_x: Array
    test_y: Array

    @property
    def probe(self) -> Array:
        """The images on which activations are measured, the same at every step."""
        return self.train_x[:_PROBE_IMAGES]

    def batch(self, step: int) -> tuple[Array, Array]:
        """The images and labels of one step: the same whenever and wherever it is trained."""
        order = np.random.default_rng([self.seed, step])
        chosen = order.choice(len(self.train_x), _BATCH_IMAGES, replace=False)
        return self.train_x[chosen], self.train_y[chosen]


def load_digits(seed: int) -> Digits:
    """Read the digits and split them.

    Raises:
        ConfigurationError: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ConfigurationError(
            "the demo trains on scikit-learn's digits, and scikit-learn is not installed. "
            "Run: pip install 'qigstore[demo]'"
        ) from error
    images, labels = datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(images))
    test, train = order[:_TEST_IMAGES], order[_TEST_IMAGES:]
    scaled = images / 16.0
    return Digits(seed, scaled[train], labels[train], scaled[test], labels[test])
