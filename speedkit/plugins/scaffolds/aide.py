"""The aide scaffold: one child a step, which debugs or improves."""

from __future__ import annotations

from speedkit.plugins.scaffolds.policy import (
    Children,
    DebugProb,
    Drafts,
    MaxDebugDepth,
    PolicyOptions,
    PolicyScaffold,
)


class AideOptions(PolicyOptions):
    """The policy's settings, with the defaults of aide."""

    drafts: Drafts = 3
    children: Children = 1
    debug_prob: DebugProb = 0.5
    max_debug_depth: MaxDebugDepth = 5


class AideScaffold(PolicyScaffold):
    """Three drafts, then at every step one child: of a buggy leaf, or of the best node."""

    Options = AideOptions
