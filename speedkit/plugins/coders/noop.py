"""The noop coder: what noise alone recovers."""

from __future__ import annotations

from speedkit.core.components import Coder, CodeRequest, Draft


class NoopCoder(Coder):
    """Returns the parent's code unchanged, so that any speedup it shows is noise."""

    def write(self, request: CodeRequest) -> Draft:
        """Return the files of the parent, byte for byte."""
        hypothesis = f"no change: the code of node {request.parent.id} once more"
        return Draft(files=dict(request.files), hypothesis=hypothesis, repeat=True)
