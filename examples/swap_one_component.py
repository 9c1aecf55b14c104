"""Swap one component of a run for a class of your own, and see what it is worth.

This file is a plugin as well: it offers the scaffold ``random_parent``, which improves any valid
node instead of the best one. Everything else of the runs stays the same::

    python examples/swap_one_component.py                        # mini, coder tuner, no model
    python examples/swap_one_component.py --model openai/gpt-4.1 --task mini/3 --hints 1
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from speedkit import Proposal, Register, Scaffold, Stage, Tree, hookimpl
from speedkit.sweeping import make_sweep


class RandomParentScaffold(Scaffold):
    """Improves a valid node that chance chooses, node 0 among them."""

    def propose(self, tree: Tree, rng: random.Random) -> Sequence[Proposal]:
        """Return one child of a random valid node."""
        parent = rng.choice([node.id for node in tree if node.is_valid])
        return [Proposal(parent, Stage.IMPROVE)]


@hookimpl
def register_scaffolds(register: Register) -> None:
    """Offer the scaffold."""
    register("random_parent", RandomParentScaffold)


def main() -> int:
    """Compare the scaffold with one that comes with speedkit."""
    # Not at the top: as a plugin the file is loaded from anywhere, where there is no _flags.
    from _flags import add_sweep_flags, go, limits, make_parser, settings

    parser = make_parser(__doc__ or "", nodes=6, seeds=3)
    parser.add_argument("--task", default="mini/1", help="default: mini/1")
    parser.add_argument("--against", default="aide", help="the other scaffold; default: aide")
    parser.add_argument("--hints", default="none", help="levels joined by +; default: none")
    add_sweep_flags(parser, "runs/swap-one-component")
    args = parser.parse_args()
    vary = {"scaffold": [args.against, "random_parent"], "hints": [args.hints]}
    base = settings(args)
    base["load"] = [*base.get("load", ()), str(Path(__file__).resolve())]
    return go(make_sweep([args.task], vary, **limits(args), **base), args)


if __name__ == "__main__":
    from _flags import run_main

    run_main(main)
