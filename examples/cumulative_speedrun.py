"""A cumulative speedrun, as in Figure B.1: each task starts from the agent's own best script.

::

    python examples/cumulative_speedrun.py                                  # mini, no model
    python examples/cumulative_speedrun.py --family nanogpt --last 5 --model openai/o3-mini
"""

from __future__ import annotations

import sys
from pathlib import Path

from _flags import make_parser, run_main, settings

from speedkit.chain import ASKED, Chain
from speedkit.cumulative import Watch, resume_chain, run_chain


def main() -> int:
    """Run the chain, or go on with it, and print agent beside human."""
    parser = make_parser(__doc__ or "", nodes=20, seeds=1)
    parser.add_argument("--family", default="mini", help="default: mini")
    parser.add_argument("--first", type=int, default=1, help="first task; default: 1")
    parser.add_argument("--last", type=int, default=4, help="last task; default: 4")
    parser.add_argument("--scaffold", default="multi_aide", help="default: multi_aide")
    parser.add_argument("--out", type=Path, default=Path("runs/cumulative-speedrun"))
    args = parser.parse_args()
    watch = Watch(
        on_run=lambda seed, task, path: print(f"seed {seed}, {task}: {path}", file=sys.stderr)
    )
    if (args.out / ASKED).exists():
        chain = resume_chain(args.out, watch=watch)
    else:
        base = {**settings(args), "scaffold": args.scaffold}
        chain = run_chain(
            args.family, args.first, args.last, out=args.out, seeds=args.seeds, watch=watch, **base
        )
    report(chain)
    return 0


def report(chain: Chain) -> None:
    """Print the speedups over the first record, a line a task."""
    print("task  reached  agent  human")
    for row in chain.summary():
        values = (row["agent_speedup"], row["human_speedup"])
        agent, human = ("–" if v is None else f"{v['mean']:.2f}x" for v in values)
        print(f"{row['id']:<4}  {row['reached']:<7}  {agent:<5}  {human}")
    print(f"status {chain.status}; figure: speedkit figures {chain.path}")


if __name__ == "__main__":
    run_main(main)
