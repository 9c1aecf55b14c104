"""Five scaffolds by sets of hint levels, the main experiment of the benchmark.

All runs have the same budget. A dry run says how many there are and what is known of the cost::

    python examples/scaffolds_by_hints.py --model openai/o3-mini --dry-run
    python examples/scaffolds_by_hints.py --model openai/o3-mini --executor slurm --jobs 32
    python examples/scaffolds_by_hints.py --tasks mini/1 mini/2 --nodes 4 --seeds 1
"""

from __future__ import annotations

from _flags import add_sweep_flags, go, limits, make_parser, run_main, settings

from speedkit.core.task import find_family
from speedkit.sweeping import make_sweep

SCAFFOLDS = ("flat", "tree", "forest", "aide", "multi_aide")
HINTS = ("none", "1", "2", "3", "1+2", "1+2+3")


def main() -> int:
    """Run the grid, or what is left of it."""
    parser = make_parser(__doc__ or "", nodes=20, seeds=3)
    parser.add_argument("--tasks", nargs="+", help="default: all tasks of nanogpt")
    parser.add_argument("--scaffolds", nargs="+", default=SCAFFOLDS, help="default: all five")
    parser.add_argument(
        "--hints", nargs="+", default=HINTS, help=f"sets of levels; default: {' '.join(HINTS)}"
    )
    add_sweep_flags(parser, "runs/scaffolds-by-hints")
    args = parser.parse_args()
    tasks = args.tasks or [task.name for task in find_family("nanogpt").tasks.values()]
    vary = {"scaffold": args.scaffolds, "hints": args.hints}
    return go(make_sweep(tasks, vary, **limits(args), **settings(args)), args)


if __name__ == "__main__":
    run_main(main)
