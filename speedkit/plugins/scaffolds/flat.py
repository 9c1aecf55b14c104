"""The flat scaffold: independent drafts of node 0, best of N."""

from __future__ import annotations

from speedkit.plugins.scaffolds.policy import Children, Drafts, PolicyOptions, PolicyScaffold


class FlatOptions(PolicyOptions):
    """The policy's settings, with the defaults of flat."""

    drafts: Drafts = None
    children: Children = 0


class FlatScaffold(PolicyScaffold):
    """Drafts node 0 until the budget is spent; nothing builds on anything."""

    Options = FlatOptions
