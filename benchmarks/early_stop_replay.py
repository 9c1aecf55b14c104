"""Replays the early stopping of hopeless runs over the real logs of the NanoGPT speedrun.

    python benchmarks/early_stop_replay.py [--clone PATH] [--set margin=0.1] [--tune] [--brief]

Every training log of every branch of a clone of modded-nanogpt is fed to the rule, line by line,
as if it were a node whose start record is the record before it. A log belongs to the record whose
log the clone's README links to in the same folder; another folder, to the record that followed
the date in its name. Logs keep the clock of the machine they were made on. Those of the first
two records have no clock: they are used in the slowed set alone, with one of even pace. Track 3
compares optimizers by their number of steps, on any machine: there each step counts 100 ms.

Prints, by record: logs, winners (they end at or under the target, faster than the record before),
winners that would be stopped (false stops, goal: 0), and the training seconds that stopping saves
on all others. Then the same for curves that are hopeless by construction: those of records 1 to 11,
slowed by factors from 1.2 to 3 (goal: 40 % of their seconds saved), or with their loss raised.
`--tune` chooses the numbers on the records with even numbers and tries them on the odd ones, and
the other way round.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median_low
from typing import IO

from speedkit.core.curve_stop import CurveRule, CurveStop
from speedkit.core.metrics import Metrics, Report, parse_line

TRACKS = {"track_1_short": 3.28, "track_2_medium": 2.92, "track_3_optimization": 3.28}
"""Targets of the tracks; the first two are tables of the README, in this order."""
BY_STEPS = "track_3_optimization"
STEP_MS = 100
FAR = 1.5
"""A run that takes this many times as long as the record is mostly of another machine."""
FACTORS = (1.2, 1.5, 2.0, 3.0)
RAISED = (0.05, 0.1, 0.3, 1.0)
SLOWED_RECORDS = range(1, 12)
SAVED_GOAL = 0.4
GRID = {
    "margin": (0.0, 0.05),
    "faster": (0.0, 0.05, 0.1, 0.2),
    "optimism": (0.5, 1.0, 2.0, 3.0),
    "slack": (0.0, 0.01, 0.03),
}
_LINE = re.compile(rb"^(?:step:\d+/\d+ val_loss:|s:\d+ tel:)[^\n]*", re.MULTILINE)
_SECONDS = re.compile(r"step:(\d+)/(\d+) val_loss:(\d+\.\d+) train_time:\d+\.\d+s\b.*")
_STEPS_ROW = re.compile(r"\| (\d+) \| (\d+)\(!\) \|.*\| (\d{4})/(\d\d)/(\d\d) \|")
_STEPS_LINK = re.compile(r"\[log\]\((results/[^)]+)\)")
_ROW = re.compile(r"(\d+) \| ([\d.]+) (minutes|hours)\*? \|")
_LINK = re.compile(r"\[log\]\((records/[^)]+)\)")
_DAY = re.compile(r"\| (\d\d)/(\d\d)/(\d\d) \|")
_FOLDER_DAYS = (
    (re.compile(r"(20\d\d)-(\d\d)-?(\d\d)"), (1, 2, 3)),
    (re.compile(r"(20[2-9]\d)([01]\d)([0-3]\d)"), (1, 2, 3)),
    (re.compile(r"(\d\d)(\d\d)(20\d\d)"), (3, 2, 1)),
    (re.compile(r"(\d\d)(\d\d)(\d\d)(?!\d)"), (3, 1, 2)),
)

Curve = tuple[Metrics, ...]


@dataclass(frozen=True)
class Record:
    """A row of the README: its number, time, day, folder of logs and the curve linked to."""

    number: int
    time_ms: float
    day: datetime.date | None
    link: str | None
    curve: Curve = ()


@dataclass(frozen=True)
class Case:
    """A run to be replayed against the record before it."""

    track: str
    number: int
    own_folder: bool
    path: str
    start: Record
    curve: Curve

    @property
    def target(self) -> float:
        return TRACKS[self.track]

    @property
    def end_s(self) -> float:
        return (self.curve[-1].train_time_ms or 0) / 1000

    @property
    def is_far(self) -> bool:
        return 1000 * self.end_s > FAR * self.start.time_ms

    @property
    def wins(self) -> bool:
        fast = 1000 * self.end_s < self.start.time_ms
        return fast and self.curve[-1].val_loss <= self.target


@dataclass
class Tally:
    """Counts and training seconds of a set of replayed runs."""

    logs: int = 0
    winners: int = 0
    false_stops: int = 0
    other_s: float = 0.0
    saved_s: float = 0.0

    def add(self, wins: bool, end_s: float, saved_s: float) -> None:
        self.logs += 1
        if wins:
            self.winners += 1
            self.false_stops += saved_s > 0
        else:
            self.other_s += end_s
            self.saved_s += saved_s

    @property
    def part(self) -> float:
        return self.saved_s / self.other_s if self.other_s else 0.0

    def cells(self) -> list[str]:
        others = self.logs - self.winners
        saved = [f"{self.other_s:.0f}", f"{self.saved_s:.0f}", f"{self.part:.0%}"]
        return [
            str(self.logs),
            str(self.winners),
            str(self.false_stops),
            str(others),
            *(saved if others else ["", "", ""]),
        ]


# --- reading the clone ------------------------------------------------------------------


def git(clone: Path, *arguments: str) -> str:
    command = ["git", "-C", str(clone), *arguments]
    found = subprocess.run(command, capture_output=True, check=True)
    return found.stdout.decode("utf-8", "replace")


def log_paths(clone: Path) -> dict[str, list[str]]:
    """Return the paths that each log has or had, by blob, on all branches."""
    paths: dict[str, list[str]] = {}
    options = ("--all", "--raw", "--no-renames", "--no-abbrev", "--format=", "-m")
    listed = git(clone, "log", *options, "--first-parent", "--", "records")
    for line in listed.splitlines():
        head, _, path = line.partition("\t")
        if head.startswith(":") and path.endswith((".txt", ".log")):
            paths.setdefault(head.split()[3], []).append(path)
    return paths


def read_curves(clone: Path, blobs: Sequence[str]) -> Iterator[Curve]:
    """Yield the validations of each log; none for one that the clone lacks."""
    command = ["git", "-C", str(clone), "cat-file", "--batch", "--buffer"]
    with tempfile.TemporaryFile() as names:
        names.write("".join(f"{blob}\n" for blob in blobs).encode())
        names.seek(0)
        with subprocess.Popen(command, stdin=names, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for _ in blobs:
                yield _curve(process.stdout)


def _curve(answers: IO[bytes]) -> Curve:
    _, kind, *size = answers.readline().split()
    data = b"" if kind == b"missing" else answers.read(int(size[0]) + 1)
    lines = (line.decode("utf-8", "replace") for line in _LINE.findall(data))
    return tuple(m for m in map(_metrics, lines) if m)


def _metrics(line: str) -> Metrics | None:
    """Read a validation line of the known grammars, or one of track 3, by its steps."""
    if match := _SECONDS.fullmatch(line):
        step, steps = int(match[1]), int(match[2])
        return Metrics(step, steps, float(match[3]), STEP_MS * step)
    return parse_line(line)


def tables(clone: Path) -> dict[str, list[Record]]:
    """Return the records of each track, as the README of the clone lists them."""
    rows = [_row(line) for line in git(clone, "show", "HEAD:README.md").splitlines()]
    records = [row for row in rows if row]
    second = [r.number for r in records].index(1, 1)
    listed = git(clone, "show", f"HEAD:records/{BY_STEPS}/README.md").splitlines()
    by_steps = [row for row in map(_steps_row, listed) if row]
    return dict(zip(TRACKS, (records[:second], records[second:], by_steps), strict=True))


def _row(line: str) -> Record | None:
    match, link, day = _ROW.match(line), _LINK.search(line), _DAY.search(line)
    if not match:
        return None
    unit = 60_000 if match[3] == "minutes" else 3_600_000
    when = datetime.date(2000 + int(day[3]), int(day[1]), int(day[2])) if day else None
    return Record(int(match[1]), float(match[2]) * unit, when, link[1] if link else None)


def _steps_row(line: str) -> Record | None:
    match, link = _STEPS_ROW.match(line), _STEPS_LINK.search(line)
    if not match:
        return None
    path = f"records/{BY_STEPS}/{link[1]}" if link else None
    day = datetime.date(int(match[3]), int(match[4]), int(match[5]))
    return Record(int(match[1]), STEP_MS * float(match[2]), day, path)


def with_curve(record: Record, curves: Mapping[str, Curve]) -> Record:
    """Return the record with the curve of its linked log, or the median one of a folder.

    Its time is that of the curve, unless this is over 10 % off the one in the table: then the
    log is of another machine, and its clock is scaled to the table.
    """
    if record.link is None:
        return record
    curve = curves.get(record.link) or _median_curve(record.link, curves)
    end = curve[-1].train_time_ms if curve else None
    if not end:
        return replace(record, curve=curve)
    if abs(end / record.time_ms - 1) > 0.1:
        return replace(record, curve=scaled(curve, record.time_ms / end))
    return replace(record, curve=curve, time_ms=float(end))


def _median_curve(folder: str, curves: Mapping[str, Curve]) -> Curve:
    whole = [c for path, c in curves.items() if path.startswith(f"{folder}/") and is_whole(c)]
    if not whole:
        return ()
    middle = median_low(c[-1].train_time_ms or 0 for c in whole)
    return next(c for c in whole if c[-1].train_time_ms == middle)


def is_whole(curve: Curve) -> bool:
    """Whether a log is that of one run from begin to end, with a clock."""
    return not Report(curve).anomaly


def scaled(curve: Curve, factor: float) -> Curve:
    """Return the curve of a machine that is slower by a factor."""
    return tuple(replace(m, train_time_ms=round((m.train_time_ms or 0) * factor)) for m in curve)


# --- whose predecessor ------------------------------------------------------------------


def place(path: str, records: Mapping[str, Sequence[Record]]) -> tuple[str, int, bool] | None:
    """Return the track of a log, the row it belongs to, and whether the row names its folder."""
    part = path.split("/")[1]
    track, folder = part if part in records else next(iter(TRACKS)), _folder(path)
    rows = records[track]
    for row, record in enumerate(rows):
        if record.link and _folder(record.link) == folder:
            return track, row, True
    day = _folder_day(folder)
    earlier = [row for row, r in enumerate(rows) if day and r.day and r.day < day]
    return (track, earlier[-1] + 1, False) if earlier else None


def _folder(path: str) -> str:
    """Return the folder that a record's logs are in, below that of the track if there is one."""
    parts = path.split("/")
    depth = 3 if parts[1] == BY_STEPS else 2 if parts[1] in TRACKS else 1
    return parts[min(depth, len(parts) - 1)]


def _folder_day(folder: str) -> datetime.date | None:
    for pattern, order in _FOLDER_DAYS:
        if match := pattern.match(folder):
            year, month, day = (int(match[i]) for i in order)
            return datetime.date(year % 100 + 2000, month, day)
    return None


def cases(
    paths: Mapping[str, Sequence[str]],
    curves: Mapping[str, Curve],
    records: Mapping[str, Sequence[Record]],
    left_out: Counter[str],
) -> Iterator[Case]:
    """Yield what can be replayed; what cannot be is counted."""
    for known in paths.values():
        # A folder of today's layout says more than the one that a log was first put in.
        path = min(known, key=lambda p: (p.split("/")[1] not in records, p))
        curve = curves[path]
        where = place(path, records)
        if not curve:
            left_out["files that are no training logs, or that the clone lacks"] += 1
        elif curve[-1].train_time_ms is None:
            left_out["logs without a clock"] += 1
        elif not is_whole(curve):
            left_out["logs that are not of one whole run"] += 1
        elif where is None or where[1] == 0:
            left_out["logs that have no record before them"] += 1
        else:
            track, row, own = where
            rows = records[track]
            number = rows[row].number if row < len(rows) else rows[-1].number + 1
            yield Case(track, number, own, path, rows[row - 1], curve)


# --- replaying --------------------------------------------------------------------------


def saved_s(case: Case, options: CurveStop, with_start: bool = True) -> float:
    """Return the seconds of training that stopping the run saves; 0 if it is not stopped."""
    start = [case.start.curve] if with_start and case.start.curve else []
    rule = CurveRule(options, target=case.target, start_ms=case.start.time_ms, start_curves=start)
    for metrics in case.curve:
        at_s = (metrics.train_time_ms or 0) / 1000
        if rule.feed(metrics, at_s):
            return case.end_s - at_s
    return 0.0


def tally(found: Iterable[Case], options: CurveStop, with_start: bool = True) -> Tally:
    total = Tally()
    for case in found:
        total.add(case.wins, case.end_s, saved_s(case, options, with_start))
    return total


def slowed(records: Sequence[Record], factor: float) -> Iterator[Case]:
    """Yield the curves of the first records, slower by a factor than they are themselves."""
    track = next(iter(TRACKS))
    for record in records:
        if record.number in SLOWED_RECORDS and record.curve:
            own = record if record.curve[-1].train_time_ms else _with_clock(record)
            yield Case(track, own.number, True, "", own, scaled(own.curve, factor))


def _with_clock(record: Record) -> Record:
    """Return a record whose log has no clock with one that runs evenly to its known time."""
    steps = record.curve[-1].step
    curve = (
        replace(m, steps=steps, train_time_ms=round(record.time_ms * m.step / steps))
        for m in record.curve
    )
    return replace(record, curve=tuple(curve))


def raised(found: Iterable[Case], nats: float) -> Iterator[Case]:
    """Yield the winners with a loss that is higher throughout, and misses the target."""
    for case in found:
        if case.wins:
            over = case.target + nats - case.curve[-1].val_loss
            curve = (replace(m, val_loss=m.val_loss + over) for m in case.curve)
            yield replace(case, curve=tuple(curve))


# --- choosing the numbers ---------------------------------------------------------------


def tune(found: Sequence[Case], records: Sequence[Record]) -> None:
    """Choose the numbers on one half of the records, and try them on the other."""
    halves = [[c for c in found if c.number % 2 == rest] for rest in (0, 1)]
    for learn, test, name in ((*halves, "even"), (*halves[::-1], "odd")):
        options = max(_grid(), key=lambda o: _worth(learn, records, o, name == "even"))
        chosen = {name: getattr(options, name) for name in GRID}
        print(f"\nchosen on {name} records: {chosen}")
        for label, half in (("there", learn), ("on the others", test)):
            total = tally(half, options)
            print(
                f"  {label}: {total.false_stops} false stops of {total.winners} winners, "
                f"{total.part:.1%} of {total.other_s:.0f} s of the others saved"
            )


def _grid() -> Iterator[CurveStop]:
    for values in itertools.product(*GRID.values()):
        yield CurveStop(**dict(zip(GRID, values, strict=True)))


def _worth(
    learn: Sequence[Case], records: Sequence[Record], options: CurveStop, even: bool
) -> tuple[int, float]:
    """Order settings: by as few false stops as can be, then by the seconds saved."""
    total = tally(learn, options)
    own = [r for r in records if r.number % 2 == (0 if even else 1)]
    hopeless = [c for factor in FACTORS for c in slowed(own, factor)]
    return -total.false_stops, total.saved_s + tally(hopeless, options).saved_s


# --- printing ---------------------------------------------------------------------------

HEAD = ("logs", "winners", "false stops", "others", "their s", "saved s", "saved")


def print_table(first: str, rows: Iterable[tuple[str, Tally]]) -> None:
    print(f"\n| {first} | {' | '.join(HEAD)} |\n|---" + "|---:" * len(HEAD) + "|")
    for name, total in rows:
        print(f"| {name} | {' | '.join(total.cells())} |", flush=True)


def print_records(found: Sequence[Case], options: CurveStop) -> None:
    def key(case: Case) -> tuple[str, int, bool]:
        return case.track, case.number, not case.own_folder

    rows = []
    for (track, number, by_day), group in itertools.groupby(sorted(found, key=key), key):
        name = f"{track[:7]} {number}{' (by day)' if by_day else ''}"
        rows.append((name, tally(group, options)))
    print_table("record", rows)


def print_sums(found: Sequence[Case], options: CurveStop) -> Tally:
    groups = {
        **{track: [c for c in found if c.track == track] for track in TRACKS},
        "folders of records": [c for c in found if c.own_folder],
        "other folders, by day": [c for c in found if not c.own_folder],
        "records with even numbers": [c for c in found if c.number % 2 == 0],
        "records with odd numbers": [c for c in found if c.number % 2],
        f"up to {FAR:g} × the record's time": [c for c in found if not c.is_far],
    }
    rows = [(name, tally(group, options)) for name, group in groups.items()]
    total = tally(found, options)
    bare = tally(found, options, with_start=False)
    print_table("all real logs", [*rows, ("all", total), ("all, no curve of the start", bare)])
    return total


def print_hopeless(found: Sequence[Case], records: Sequence[Record], options: CurveStop) -> Tally:
    sets = {factor: list(slowed(records, factor)) for factor in FACTORS}
    rows = [(f"× {factor:g}", tally(group, options)) for factor, group in sets.items()]
    total = tally(itertools.chain(*sets.values()), options)
    print_table("records 1–11, slowed", [*rows, ("all", total)])
    lost = [
        (f"ends {nats:g} over the target", tally(raised(found, nats), options)) for nats in RAISED
    ]
    print_table("winners, loss raised", lost)
    return total


def _options(settings: Sequence[str]) -> CurveStop:
    return CurveStop(**dict(s.split("=", 1) for s in settings))  # type: ignore[arg-type]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clone", type=Path, default=Path("modded-nanogpt"))
    parser.add_argument("--set", action="append", default=[], metavar="OPTION=VALUE")
    parser.add_argument("--tune", action="store_true", help="choose the numbers, with a hold-out")
    parser.add_argument("--brief", action="store_true", help="leave out the table by record")
    args = parser.parse_args()
    options, left_out = _options(args.set), Counter[str]()
    paths = log_paths(args.clone)
    read = zip(paths.values(), read_curves(args.clone, list(paths)), strict=True)
    curves = {path: curve for known, curve in read for path in known}
    records = {
        track: [with_curve(r, curves) for r in rows] for track, rows in tables(args.clone).items()
    }
    found = list(cases(paths, curves, records, left_out))
    first = records[next(iter(TRACKS))]
    print(f"{len(found)} runs replayed, with {options}")
    for what, count in sorted(left_out.items()):
        print(f"left out: {count} {what}")
    if args.tune:
        tune(found, first)
        return 0
    if not args.brief:
        print_records(found, options)
    total, hopeless = print_sums(found, options), print_hopeless(found, first, options)
    good = total.false_stops == 0 and hopeless.part >= SAVED_GOAL
    print("\ngoals met" if good else "\ngoals missed")
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
