"""Time the human records anew, as in Figure C.1, and compare with what was reported.

::

    python examples/retime_records.py                          # mini on this machine
    python examples/retime_records.py --family nanogpt --repeats 5 --out c1.json
"""

from __future__ import annotations

import argparse
import sys

from _flags import run_main

from speedkit.core.plugins import Plugins
from speedkit.timing import Timing, retime


def main() -> int:
    """Run what is missing and print a line a record."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--family", default="mini", help="default: mini")
    parser.add_argument("--records", type=int, nargs="+", help="default: all")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each; default: 3")
    parser.add_argument("--out", help="default: FAMILY-times.json")
    parser.add_argument("--executor", default="torchrun", help="default: torchrun")
    parser.add_argument("--load", action="append", default=[], metavar="FILE.py|MODULE")
    args = parser.parse_args()
    made = retime(
        args.family,
        args.records,
        repeats=args.repeats,
        out=args.out,
        executor=args.executor,
        plugins=Plugins(args.load),
        on_run=lambda index, k, trial: print(f"record {index}, run {k}", file=sys.stderr),
    )
    report(made)
    return int(not any(record.runs_ms for record in made.records))


def report(made: Timing) -> None:
    """Print measured over reported time, and why a record was not run."""
    for record in made.records:
        if record.median_ms is None:
            print(f"record {record.index:>2}: {record.problem}")
        else:
            ratio = "–" if record.ratio is None else f"{record.ratio:.3f} of the reported time"
            print(f"record {record.index:>2}: {record.median_ms / 1000:.2f} s, {ratio}")


if __name__ == "__main__":
    run_main(main)
