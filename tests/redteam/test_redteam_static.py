"""What the static guard must catch of the cheats, and must let through of honest scripts."""

from __future__ import annotations

import pytest

from speedkit.core.findings import Level
from speedkit.core.guards import Code
from speedkit.core.task import find_family
from speedkit.plugins.guards.constraints import ConstraintsGuard
from tests.redteam.cheats import CHEATS, PARSER, SANDBOX, STATIC, VERIFICATION, task

GUARDS = (STATIC, "log", "clock", "data", "evaluation")


def findings(node: str, start: str) -> list:
    one = task()
    files = {one.script: start}
    return list(ConstraintsGuard().check_code(Code(one, files, files, {one.script: node})))


def test_there_are_enough_cheats_and_each_names_its_defences():
    assert len(CHEATS) >= 20
    assert len({c.name for c in CHEATS}) == len(CHEATS)
    for cheat in CHEATS:
        assert {cheat.defence, *cheat.also} <= {*GUARDS, PARSER, SANDBOX, VERIFICATION}


@pytest.mark.parametrize("cheat", CHEATS, ids=lambda c: c.name)
def test_a_cheat_runs_as_python_and_is_caught_by_the_static_guard_if_that_is_its_defence(cheat):
    source = cheat.source()
    compile(source, cheat.name, "exec")
    found = findings(source, task().start.read())
    assert all(f.level in (Level.QUARANTINE, Level.REJECT) for f in found)
    assert bool(found) == (STATIC in (cheat.defence, *cheat.also))


MINI = find_family("mini").records


@pytest.mark.parametrize("start", [r.index for r in MINI[:-1]])
def test_no_record_of_mini_is_held_back_whatever_it_starts_from(start):
    before = MINI[start - 1].read()
    for record in MINI[start:]:
        assert findings(record.read(), before) == []
