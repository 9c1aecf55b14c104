"""Figures of results: one function a figure, and all of them at once.

The functions take what :func:`speedkit.analysis.load` returns, or what
:func:`find_material` found, and return a matplotlib figure.
"""

from __future__ import annotations

from speedkit.analysis.figures.aggregates import aggregates
from speedkit.analysis.figures.chains import ChainCurve, chain_curve, cumulative
from speedkit.analysis.figures.curves import training_curves
from speedkit.analysis.figures.drawing import FIGURES, Written, check_written, write_figures
from speedkit.analysis.figures.judged import fsr_against_judge
from speedkit.analysis.figures.material import Material, find_material
from speedkit.analysis.figures.outcomes import outcomes
from speedkit.analysis.figures.progress import Progress, best_so_far, progress_of
from speedkit.analysis.figures.records import FamilyTimes, family_times, record_times
from speedkit.analysis.figures.rows import Choice
from speedkit.analysis.figures.style import NothingToDraw, save
from speedkit.analysis.figures.tasks import fsr_by_task, judge_by_task

__all__ = [
    "FIGURES",
    "ChainCurve",
    "Choice",
    "FamilyTimes",
    "Material",
    "NothingToDraw",
    "Progress",
    "Written",
    "aggregates",
    "best_so_far",
    "chain_curve",
    "check_written",
    "cumulative",
    "family_times",
    "find_material",
    "fsr_against_judge",
    "fsr_by_task",
    "judge_by_task",
    "outcomes",
    "progress_of",
    "record_times",
    "save",
    "training_curves",
    "write_figures",
]
