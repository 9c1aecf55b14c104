"""The example that runs a whole study, on the toy family."""

from __future__ import annotations

import importlib.util
import json

import pytest

from tests.conftest import INSTANT, TESTS, TOY


@pytest.fixture
def study():
    """The function of the example."""
    path = TESTS.parent / "examples" / "mini_study.py"
    spec = importlib.util.spec_from_file_location("mini_study", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.study


def test_a_study_is_whole_and_is_not_done_twice(study, tmp_path, capsys):
    settings = {
        "task": f"{TOY}/1",
        "load": (str(INSTANT),),
        "executor": "instant",
        "seeds": 1,
        "nodes": 1,
        "chain_to": 1,
        "draws": 100,
        "figures": ("scaffolds-agents", "judge-fsr", "records", "cumulative"),
    }
    out = tmp_path / "study"
    written = study(out, **settings)
    drawn = {p.name for p in written.files if p.suffix == ".png"}
    assert drawn == {"scaffolds-agents.png", "judge-fsr.png", "records-toy.png", "cumulative.png"}
    assert written.skipped == {}
    rows = (out / "results.csv").read_text().splitlines()
    assert len(rows) == 7
    cells = {tuple(c["key"]): c for c in json.loads((out / "comparison.json").read_text())["cells"]}
    assert cells["tree", "oracle"]["over_seeds"]["mean"]["value"] == pytest.approx(1.0)
    assert cells["flat", "noop"]["over_seeds"]["mean"]["value"] == pytest.approx(0.0)
    assert "flat-oracle-0: FSR +1.000" in capsys.readouterr().out

    journals = sorted(out.rglob("events.jsonl"))
    before = [p.read_bytes() for p in journals]
    assert len(journals) == 7
    study(out, **{**settings, "figures": ("outcomes",)})
    assert [p.read_bytes() for p in journals] == before
