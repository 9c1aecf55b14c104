"""Grids of runs: what is varied, what is left to do, and one controller for many runs.

::

    from speedkit.sweeping import make_sweep, plan_sweep, run_sweep

    sweep = make_sweep(["mini/1"], {"scaffold": ["flat", "aide"]}, seeds=3, nodes=8)
    plan_sweep(sweep).nodes
    run_sweep(sweep, out="runs/scaffolds").failed
"""

from __future__ import annotations

from speedkit.sweeping.cells import Cell
from speedkit.sweeping.compared import compare_arms
from speedkit.sweeping.estimate import SweepPlan, plan_sweep
from speedkit.sweeping.runner import Ended, SweepResult, Watch, resume_sweep, run_sweep
from speedkit.sweeping.sweep import (
    Limits,
    Sweep,
    make_sweep,
    read_sweep,
    stored_sweep,
)

__all__ = [
    "Cell",
    "Ended",
    "Limits",
    "Sweep",
    "SweepPlan",
    "SweepResult",
    "Watch",
    "compare_arms",
    "make_sweep",
    "plan_sweep",
    "read_sweep",
    "resume_sweep",
    "run_sweep",
    "stored_sweep",
]
