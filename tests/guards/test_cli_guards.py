"""``speedkit guards`` lists what is registered, and says what cannot be imported."""

from __future__ import annotations

import json

from click.testing import CliRunner

from speedkit.cli.guards import command

PLUGIN = '''
import speedkit
from speedkit.core.guards import Guard


class Odd(Guard):
    title = "odd \\x1b[31m things"
    name = "odd"

    def check_result(self, result):
        return ()


@speedkit.hookimpl
def register_guards(register):
    """Offer guards."""
    register("odd", Odd)
    register("lost", "no_such_module:Guard")
'''


def listed(tmp_path, *flags):
    path = tmp_path / "odd_guards.py"
    path.write_text(PLUGIN)
    done = CliRunner().invoke(command, ["--load", str(path), *flags])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_guards_are_listed_with_kind_cost_and_options(tmp_path):
    guards = {g["name"]: g for g in json.loads(listed(tmp_path, "--json"))["guards"]}
    assert guards["odd"]["asked"] == ["after the run"]
    assert guards["odd"]["cost"] == 0
    assert guards["odd"]["options"] == {"strictness": "normal"}
    assert "no_such_module" in guards["lost"]["reason"]


def test_the_table_is_clean_and_has_the_order_of_the_cost(tmp_path):
    text = listed(tmp_path)
    assert "\x1b" not in text
    assert "cannot be imported" in text
    names = [line.split()[0] for line in text.splitlines()[2:]]
    assert names[-1] == "lost"


def test_the_built_in_guards_are_there(tmp_path):
    guards = {g["name"]: g for g in json.loads(listed(tmp_path, "--json"))["guards"]}
    built_in = ["constraints", "log", "clock", "data", "evaluation"]
    assert set(built_in) <= set(guards)
    assert [guards[name]["cost"] for name in built_in] == [0, 0, 0, 1, 2]
    assert guards["constraints"]["asked"] == ["before the run"]
    assert guards["data"]["asked"] == ["before the run", "after the run"]
    assert all(guards[name]["title"] for name in built_in)
