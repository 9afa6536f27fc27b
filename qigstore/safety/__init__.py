"""Rules, signals and the way out of a run: what notices trouble, and what then happens in order.

This room depends on nothing that can block: it receives callables for whatever stores or saves.
"""

from __future__ import annotations

__all__: list[str] = []
