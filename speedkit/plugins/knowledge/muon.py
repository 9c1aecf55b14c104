"""The muon knowledge source: a guide to the optimizer, and the API that it needs of torch."""

from __future__ import annotations

from pathlib import Path

from speedkit.plugins.knowledge.reference import GuideKnowledge

NAMES = (
    "torch.optim:Muon",
    "torch.optim:Optimizer",
    "torch.distributed:all_gather_into_tensor",
    "torch.distributed:reduce_scatter_tensor",
    "torch.distributed:all_reduce",
    "torch:addmm",
)
"""What the reference describes, the most useful first; older torch has no ``Muon``."""


class MuonKnowledge(GuideKnowledge):
    """Explains Muon: orthogonalised momentum, its scaling, and the distributed form."""

    name = "muon"
    title = "Muon"
    guide = Path(__file__).with_name("muon.md")
    names = NAMES
