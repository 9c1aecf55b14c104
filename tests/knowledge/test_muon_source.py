"""The muon knowledge source."""

from __future__ import annotations

import subprocess
import sys

from speedkit.core.task import find_task
from speedkit.plugins.knowledge.muon import MuonKnowledge

HAS_MUON = "import torch; print(torch.__version__, hasattr(torch.optim, 'Muon'))"


def test_guide_then_reference() -> None:
    guide, reference = MuonKnowledge().entries(find_task("nanogpt/2"))
    assert {guide.source, reference.source} == {"muon"}
    assert guide.title == "Muon guide"
    for word in ("Newton-Schulz", "Nesterov", "## Scaling", "## Distributed"):
        assert word in guide.text
    version, has_muon = subprocess.check_output([sys.executable, "-c", HAS_MUON], text=True).split()
    assert reference.title == f"Muon API reference, torch {version}"
    assert ("```\nMuon(" in reference.text) == (has_muon == "True")
    assert ("Not in torch" in reference.text) == (has_muon == "False")
    assert "all_gather_into_tensor(" in reference.text


def test_either_part_alone() -> None:
    task = find_task("nanogpt/2")
    only_guide = MuonKnowledge(MuonKnowledge.Options(reference=False)).entries(task)
    assert [e.title for e in only_guide] == ["Muon guide"]
    assert MuonKnowledge(MuonKnowledge.Options(reference=False, guide=False)).entries(task) == []
