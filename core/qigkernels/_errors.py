"""The one error of the geometry core; its data rides on it as attributes."""

from __future__ import annotations

from typing import Any

__all__ = ["GeometryError", "ValidationError"]


class ValidationError(ValueError):
    """An argument is not what the mathematics needs.

    Attributes:
        argument: name of the argument.
        shape: its shape, where it is an array.
        value: the offending value.
        index: where the value is, where there is a place.
    """

    def __init__(
        self,
        message: str,
        *,
        argument: str = "",
        shape: tuple[int, ...] | None = None,
        value: Any = None,
        index: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(message)
        self.argument, self.shape, self.value, self.index = argument, shape, value, index


GeometryError = ValidationError
"""The same class under the name of what it guards."""
