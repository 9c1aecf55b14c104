"""A few cheats run for real: what only the guards of the run can catch."""

from __future__ import annotations

import pytest

from speedkit.core.findings import Level
from speedkit.core.node import Outcome
from tests.redteam.cheats import CHEATS, task
from tests.redteam.field import Field

BY_NAME = {c.name: c for c in CHEATS}

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def field(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("SPEEDKIT_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
    yield Field(task(), tmp_path_factory.mktemp("red"))
    patch.undo()


def test_an_honest_record_passes_every_guard_of_the_run(field):
    verdict = field.run("honest", task().start.read())
    assert verdict.trial is not None
    assert verdict.trial.outcome is Outcome.VALID, verdict.trial.reason
    # A machine that does other work at the same time may make a time look odd, never a loss.
    assert [f for found in verdict.findings.values() for f in found if f.guard != "clock"] == []
    assert all(f.level is not Level.REJECT for f in verdict.findings["clock"])


@pytest.mark.parametrize("name", ["looks_ahead_by_attention", "overwrites_the_validation_data"])
def test_a_cheat_that_no_reader_of_its_log_could_see_is_rejected(field, name):
    cheat = BY_NAME[name]
    verdict = field.run(name, cheat.source())
    assert verdict.trial is not None
    assert verdict.trial.outcome is Outcome.VALID, verdict.trial.reason
    assert Level.REJECT in {f.level for f in verdict.findings[cheat.defence]}
