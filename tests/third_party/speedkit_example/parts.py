"""The parts, written against the public names of speedkit alone."""

import click
from pydantic import Field

import speedkit
from speedkit import Draft, Proposal


class ChainScaffold(speedkit.Scaffold):
    """One child after the other, each of the last node."""

    class Options(speedkit.Options):
        """Options of the chain."""

        length: int = Field(3, ge=1, description="number of nodes")

    def propose(self, tree, rng):
        """Return one child of the newest node."""
        last = len(tree) - 1
        return [] if last >= self.options.length else [Proposal(last, speedkit.Stage.IMPROVE)]


class CommentCoder(speedkit.Coder):
    """Adds a comment to every file."""

    def write(self, request):
        """Return the parent's files with one more comment."""
        files = {n: f"{t}# node {request.node_id}\n" for n, t in request.files.items()}
        return Draft(files, f"Add comment {request.node_id}")


@click.command()
def hello():
    """Say hello."""
    click.echo("hello from a plugin")
