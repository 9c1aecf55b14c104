"""With and without documentation of FlexAttention, as in Table A.1 of the paper.

The task is the one whose record brought FlexAttention: a model may never have read of it::

    python examples/flexattention_docs.py --model openai/o3-mini --max-cost 50
    python examples/flexattention_docs.py --model openai/o3-mini --hints none 1+2+3 --dry-run
"""

from __future__ import annotations

from _flags import add_sweep_flags, go, limits, make_parser, run_main, settings

from speedkit.sweeping import make_sweep


def main() -> int:
    """Run both arms at every set of hints."""
    parser = make_parser(__doc__ or "", nodes=20, seeds=3)
    parser.add_argument("--task", default="nanogpt/11", help="default: nanogpt/11")
    parser.add_argument("--scaffold", default="multi_aide", help="default: multi_aide")
    parser.add_argument("--docs", default="flexattention", help="default: flexattention")
    parser.add_argument("--hints", nargs="+", default=["none", "1+2+3"], help="sets of levels")
    add_sweep_flags(parser, "runs/flexattention-docs")
    args = parser.parse_args()
    vary = {"knowledge": ["none", args.docs], "hints": args.hints}
    base = {**settings(args), "scaffold": args.scaffold}
    return go(make_sweep([args.task], vary, **limits(args), **base), args)


if __name__ == "__main__":
    run_main(main)
