"""The forest scaffold: three trees, grown in turn."""

from __future__ import annotations

from speedkit.plugins.scaffolds.policy import Children, Drafts, PolicyOptions, PolicyScaffold, Trees


class ForestOptions(PolicyOptions):
    """The policy's settings, with the defaults of forest."""

    drafts: Drafts = 3
    children: Children = 3
    trees: Trees = "per_root"


class ForestScaffold(PolicyScaffold):
    """Three drafts, each the root of a tree of its own; no debugging."""

    Options = ForestOptions
