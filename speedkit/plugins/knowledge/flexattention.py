"""The flexattention knowledge source: a guide, and the API of the torch that is installed."""

from __future__ import annotations

from pathlib import Path

from speedkit.plugins.knowledge.reference import GuideKnowledge

_MODULE = "torch.nn.attention.flex_attention"
NAMES = (
    f"{_MODULE}:flex_attention",
    f"{_MODULE}:create_block_mask",
    f"{_MODULE}:BlockMask.from_kv_blocks",
    f"{_MODULE}:and_masks",
    f"{_MODULE}:or_masks",
    f"{_MODULE}:create_mask",
    f"{_MODULE}:BlockMask.sparsity",
    f"{_MODULE}:BlockMask.to_dense",
    f"{_MODULE}:BlockMask.to_string",
    f"{_MODULE}:BlockMask.to",
    f"{_MODULE}:BlockMask",
    f"{_MODULE}:AuxRequest",
    f"{_MODULE}:FlexKernelOptions",
)
"""What the reference describes, the most useful first."""


class FlexAttentionKnowledge(GuideKnowledge):
    """Explains FlexAttention: score and mask functions, block masks, compilation."""

    name = "flexattention"
    title = "FlexAttention"
    guide = Path(__file__).with_name("flexattention.md")
    names = NAMES
