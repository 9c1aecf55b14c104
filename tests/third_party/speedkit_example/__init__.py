"""Registers the parts; they are imported only when somebody chooses them."""

import speedkit


@speedkit.hookimpl
def register_scaffolds(register):
    """Offer a scaffold."""
    register("chain", "speedkit_example.parts:ChainScaffold")


@speedkit.hookimpl
def register_coders(register):
    """Offer a coder."""
    register("comment", "speedkit_example.parts:CommentCoder")


@speedkit.hookimpl
def register_commands(register):
    """Offer a command."""
    register("hello", "speedkit_example.parts:hello", help="Say hello.")
