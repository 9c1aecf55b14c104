"""The toy family with scripts that take a while."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.conftest import TOY


def slow_family(folder: Path, seconds: float | str) -> Path:
    """Make the family in a folder that is not there yet; each script first sleeps."""
    shutil.copytree(TOY, folder)
    for script in (folder / "scripts").glob("*.py"):
        script.write_text(f"import time\ntime.sleep({seconds})\n" + script.read_text())
    return folder
