"""``speedkit records``: list, show and compare the records of a family."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from speedkit.cli.common import (
    ComponentName,
    TaskName,
    json_option,
    plugins_of,
    print_table,
    resolve_config,
)
from speedkit.cli.families import FamilyName, complete_family, families
from speedkit.cli.text import clean, echo, echo_diff, one_line, print_json, seconds
from speedkit.core.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator

    from speedkit.core.task import Family, Record, Task
    from speedkit.core.trial import Trial
    from speedkit.timing import RecordTiming, Timing

HEADERS = ("family", "record", "title", "known time", "time", "hints", "needs", "script")


class ListByDefault(click.Group):
    """A group whose first argument may be left out: then it is ``list``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put ``list`` before arguments that name no command of the group."""
        if ctx.resilient_parsing and not args:
            return super().parse_args(ctx, args)
        known = self.list_commands(ctx)
        words = [a for a in args if not a.startswith("-")]
        if len(words) > 1 and words[0] not in known:
            ctx.fail(f"no command {words[0]!r}; {did_you_mean(words[0], known)}")
        if not set(args[:1]) & {*known, "-h", "--help"}:
            args = ["list", *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Offer the commands of the group, and what ``list`` takes."""
        return [*super().shell_complete(ctx, incomplete), *complete_family(incomplete)]


@click.group("records", cls=ListByDefault)
def command() -> None:
    """List the records of a family; `speedkit records FAMILY` is short for `list FAMILY`."""


@command.command("list", short_help="List records; the default.")
@click.argument("family", required=False, type=FamilyName(), metavar="[FAMILY|PATH]")
@json_option
def list_records(family: str | None, as_json: bool) -> None:
    """List the records of FAMILY, of the folder at PATH, or of all built-in families.

    The known time is that of the record's announcement, the other the reference time on the
    family's own hardware. Hints are levels of the task that leads to the record.
    """
    records = [
        describe(name, found, record)
        for name, found in families(family)
        for record in found.records
    ]
    if as_json:
        print_json(records)
    else:
        print_table([_row(r) for r in records], HEADERS)


def describe(name: str, family: Family, record: Record) -> dict[str, Any]:
    """Return the facts of a record as JSON values; ``name`` is what its family was asked for by."""
    from speedkit.records.nanogpt.importer import record_status

    tasks = [t for t in family.tasks.values() if t.target.index == record.index]
    return {
        "family": name,
        "index": record.index,
        "title": record.title,
        "category": record.category,
        "description": record.description,
        "changes": list(record.changes),
        "known_time_s": record.known_time_s,
        "time_ms": record.time_ms,
        "time_note": record.time_note,
        "hardware": record.hardware,
        "hint_levels": sorted({level for task in tasks for level in task.hint_levels()}),
        "needs": _needs(record),
        "path": None if record.path is None else str(record.path),
        "has_script": record.has_script(),
        "state": None if record.path is None else record_status(record).state,
    }


def _needs(record: Record) -> list[str]:
    sizes = " or ".join(map(str, record.world_sizes))
    return [
        *([f"torch {record.torch_min} or newer"] if record.torch_min else []),
        *record.needs,
        *([f"{sizes} processes"] if sizes else []),
        *([f"{record.shards} training shards"] if record.shards else []),
    ]


def _row(record: dict[str, Any]) -> list[Any]:
    return [
        one_line(record["family"]),
        record["index"],
        one_line(record["title"], 40),
        _known_time(record),
        seconds(record["time_ms"]),
        ", ".join(map(str, record["hint_levels"])) or None,
        one_line("; ".join(record["needs"]), 40) or None,
        "at hand" if record["state"] == "imported" else record["state"],
    ]


def _known_time(record: dict[str, Any]) -> str | None:
    known = record["known_time_s"]
    return None if known is None else seconds(1000 * known)


@command.command("show", short_help="Show a record, or print its script.")
@click.argument("family", type=FamilyName())
@click.argument("index", type=int)
@click.option("--source", is_flag=True, help="Print the script instead of the facts.")
@json_option
def show(family: str, index: int, source: bool, as_json: bool) -> None:
    """Show the facts of record INDEX of FAMILY, or its script."""
    ((name, found),) = families(family)
    record = found.record(index)
    if source:
        _print_source(record.read())
        return
    facts = describe(name, found, record)
    facts["tasks"] = [
        f"{name}/{t.id}" for t in found.tasks.values() if index in (t.start.index, t.target.index)
    ]
    if as_json:
        print_json(facts)
    else:
        _print_facts(facts, found.scripts_hint)


def _print_source(text: str) -> None:
    """Print a script: to a file or a pipe as it is, to a terminal without control characters."""
    if sys.stdout.isatty():
        text = clean(text)
    click.echo(text.encode("utf-8"), nl=False)


def _print_facts(facts: dict[str, Any], scripts_hint: str) -> None:
    echo(f"record       {facts['index']} of {one_line(facts['family'])}: {clean(facts['title'])}")
    state = "" if facts["state"] == "imported" else f" ({facts['state']}{scripts_hint})"
    path = "–" if facts["path"] is None else f"{clean(facts['path'])}{state}"
    rows = {
        "category": clean(facts["category"]) or "–",
        "known time": _known_time(facts) or "–",
        "time": clean(_reference_time(facts)),
        "tasks": ", ".join(map(clean, facts["tasks"])) or "–",
        "hints": ", ".join(map(str, facts["hint_levels"])) or "–",
        "needs": clean("; ".join(facts["needs"])) or "–",
        "script": path,
        "description": clean(facts["description"]).strip() or "–",
    }
    for key, text in rows.items():
        echo(f"{key:<12} {text}")
    for change in facts["changes"]:
        echo(f"  - {clean(change)}")


def _reference_time(facts: dict[str, Any]) -> str:
    time = seconds(facts["time_ms"])
    if time is None:
        return "–"
    where = f" on {facts['hardware']}" if facts["hardware"] else ""
    return f"{time}{where}" + (f"; {facts['time_note']}" if facts["time_note"] else "")


@command.command("diff", short_help="Print the human change of a task.")
@click.argument("task", type=TaskName(), metavar="TASK|ID")
@click.option(
    "--family",
    default="nanogpt",
    show_default=True,
    type=FamilyName(),
    help="Family of a task that is given by its id alone.",
)
def diff(task: str, family: str) -> None:
    """Print what humans changed: the unified diff between the two records of a task.

    TASK is FAMILY/ID or PATH/OF/FOLDER/ID; a number alone is a task of --family.
    """
    from speedkit.core.task import find_task

    name = f"{family.rstrip('/')}/{task}" if task.isascii() and task.isdigit() else task
    echo_diff(human_change(find_task(name)))


def human_change(task: Task) -> Iterator[str]:
    """Return the lines of the unified diff from the start to the target record of a task.

    Raises:
        FamilyError: a script is not at hand.
    """
    import difflib

    lines = difflib.unified_diff(
        _lines(task.start.read()),
        _lines(task.target.read()),
        f"{task.family.name}/record-{task.start.index}/{task.script}",
        f"{task.family.name}/record-{task.target.index}/{task.script}",
        lineterm="",
    )
    for line in lines:
        yield from line.split("\n")


def _lines(text: str) -> list[str]:
    r"""Split at ``\n`` alone, and mark a last line without one as diff programs do."""
    *whole, rest = text.split("\n")
    return [*whole, f"{rest}\n\\ No newline at end of file"] if rest else whole


@command.command("import")
@click.option("--from", "source", metavar="PATH|URL", help="A clone of the repository, or its URL.")
@click.option(
    "--clock",
    type=click.Choice(["consistent", "official"]),
    default="consistent",
    show_default=True,
    help="Clock of records 1 to 3: from step 10 on, or with the compilation.",
)
@click.option("--family", default="nanogpt", show_default=True, type=FamilyName())
def import_scripts(source: str | None, clock: str, family: str) -> None:
    """Import the record scripts of a family, each checked by its hash.

    A clone is only read. Without --from the family's own repository is cloned.
    """
    from speedkit.records.nanogpt.importer import Imported, import_records

    found = _imported_family(family)

    def tell(one: Imported) -> None:
        notes = f" ({'; '.join(one.notes)})" if one.notes else ""
        state = "there already" if one.kept else f"imported{notes}"
        click.echo(f"record {one.record.index}: {clean(state)}", err=True)

    report = import_records(source, found, clock=clock, on_record=tell)  # type: ignore[arg-type]
    echo(f"{len(report.stored)} imported, {len(report.records)} at hand in {found.script_root}")


@command.command("export")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--family", default="nanogpt", show_default=True, type=FamilyName())
def export_scripts(folder: Path, family: str) -> None:
    """Copy the imported scripts to FOLDER, with their originals where they were changed."""
    from speedkit.records.nanogpt.importer import export_records

    for path in export_records(_imported_family(family), folder):
        echo(str(path))


def _imported_family(name: str) -> Family:
    from speedkit.core.task import find_family

    family = find_family(name)
    if family.scripts != "cache":
        where = f"the scripts of {family.name} stand in {family.root}"
        raise UsageError(f"{where}; there is nothing to import or to export")
    return family


TIME_HEADERS = ("record", "runs", "median", "sd", "reported", "ratio", "val_loss", "note")


@command.command("time", short_help="Time the records anew on this machine.")
@click.argument("family", type=FamilyName(), metavar="FAMILY|PATH")
@click.option("--records", "chosen", metavar="1,2,…", help="Records to time; default: all.")
@click.option(
    "--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="Runs of each."
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File of the times, gone on with if it is there; default: FAMILY-times.json.",
)
@click.option("--executor", type=ComponentName("executor"), help="Name of the executor.")
@click.option(
    "-o",
    "--option",
    "option",
    multiple=True,
    metavar="executor.OPTION=VALUE",
    help="Set an option of the executor.",
)
@click.option("--load", multiple=True, metavar="FILE.py|MODULE", help="Load a plugin.")
@json_option
@click.pass_context
def time_records(
    ctx: click.Context,
    family: str,
    chosen: str | None,
    repeats: int,
    out: Path | None,
    executor: str | None,
    option: tuple[str, ...],
    load: tuple[str, ...],
    as_json: bool,
) -> None:
    """Run the records of FAMILY in turn, --repeats times each, and compare with what was reported.

    Every run is kept at once, so that the command can be interrupted and given again. A record
    that is not imported, or that cannot run here, is passed over with the reason.
    """
    from speedkit.timing import retime

    config = resolve_config(None, None, {"executor": executor, "option": option, "load": load})
    if other := [o for o in option if not o.strip().startswith("executor.")]:
        raise UsageError(f"-o {other[0]}: timing uses the executor only")
    try:
        made = retime(
            family,
            _indexes(chosen),
            repeats=repeats,
            out=out,
            executor=config.executor,
            options=config.options.get("executor"),
            plugins=plugins_of(ctx, load),
            on_run=lambda index, k, trial: _say_run(index, k, repeats, trial),
        )
    except KeyboardInterrupt:
        click.echo("interrupted; what was measured is kept: give the command again", err=True)
        sys.exit(130)
    if as_json:
        print_json(made.to_dict())
    else:
        _print_times(made)
    if not any(record.runs_ms for record in made.records):
        sys.exit(1)


def _indexes(text: str | None) -> list[int] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise UsageError(f"--records {text}: write numbers, for example 1,2,5")
    return list(dict.fromkeys(map(int, parts)))


def _say_run(index: int, k: int, of: int, trial: Trial) -> None:
    metrics = trial.metrics
    result = trial.reason if metrics is None else seconds(metrics.train_time_ms) or "no time"
    click.echo(clean(f"record {index}, run {k}/{of}: {result}"), err=True)


def _print_times(made: Timing) -> None:
    print_table([_time_row(record, made.target_loss) for record in made.records], TIME_HEADERS)
    times = [record.ratio for record in made.records if record.ratio is not None]
    if len(times) > 1:
        echo(f"\nratio of measured to reported time: {min(times):.3f} to {max(times):.3f}")


def _time_row(record: RecordTiming, target: float) -> list[Any]:
    from speedkit.calibrate import spread

    missed = sum(not loss <= target for loss in record.losses)
    late = f"{missed} of {len(record.losses)} runs above {target:g}" if missed else ""
    note = one_line("; ".join(text for text in (record.problem, late) if text))
    return [
        clean(f"{record.index} {record.title}"),
        len(record.runs_ms),
        seconds(record.median_ms),
        seconds(spread(record.runs_ms)),
        seconds(record.reported_ms),
        None if record.ratio is None else f"{record.ratio:.3f}",
        ", ".join(f"{loss:.4f}" for loss in record.losses) or None,
        note or None,
    ]
