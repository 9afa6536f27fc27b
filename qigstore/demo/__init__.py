"""The main job on real data, as five acts of real processes, every claim checked by SQL.

::

    a  train and checkpoint          train.py, started by acts.py
    b  SIGKILL, start again          the ledger against the store: nothing missing, nothing doubled
    c  a fault                       the rule fires, the run stops itself with status 75
    d  start again                   back from the best healthy checkpoint, round the bad steps
    e  what the store knows          summary.py

`data`, `model`, `torch_model`, `measures` are what is trained; `processes`, `ledger`, `screen`,
`questions`, `plot` are the stage.
"""

from __future__ import annotations

from qigstore.demo.acts import run_demo
from qigstore.demo.plan import DEFAULT_SEED, DemoFailed, Plan

__all__ = ["DEFAULT_SEED", "DemoFailed", "Plan", "run_demo"]
