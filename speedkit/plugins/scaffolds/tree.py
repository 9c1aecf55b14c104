"""The tree scaffold: the best node so far gets three children a step."""

from __future__ import annotations

from speedkit.plugins.scaffolds.policy import Children, Drafts, PolicyOptions, PolicyScaffold


class TreeOptions(PolicyOptions):
    """The policy's settings, with the defaults of tree."""

    drafts: Drafts = 1
    children: Children = 3


class TreeScaffold(PolicyScaffold):
    """One draft, then three children of the best node at every step; no debugging."""

    Options = TreeOptions
