"""The multi_aide scaffold: as aide, with three children of the best node."""

from __future__ import annotations

from speedkit.plugins.scaffolds.policy import (
    Children,
    DebugProb,
    Drafts,
    MaxDebugDepth,
    PolicyOptions,
    PolicyScaffold,
)


class MultiAideOptions(PolicyOptions):
    """The policy's settings, with the defaults of multi_aide."""

    drafts: Drafts = 3
    children: Children = 3
    debug_prob: DebugProb = 0.5
    max_debug_depth: MaxDebugDepth = 5


class MultiAideScaffold(PolicyScaffold):
    """Three drafts, then at every step one child of a buggy leaf, or three of the best node."""

    Options = MultiAideOptions
