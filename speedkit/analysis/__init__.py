"""From runs to results."""

from __future__ import annotations

from speedkit.analysis.comparison import compare
from speedkit.analysis.imported import import_results
from speedkit.analysis.results import load

__all__ = ["compare", "import_results", "load"]
