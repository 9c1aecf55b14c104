"""The evaluation guard against models made by the tests, whose logits no job computes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from speedkit.core.components import Ending, Execution, RankError
from speedkit.core.evaluation import LOGITS, REQUEST, TOKENS, ModelTest
from speedkit.core.findings import Level
from speedkit.core.task import Family, find_task
from speedkit.plugins.guards.evaluation import (
    EvaluationGuard,
    EvaluationOptions,
    distance,
    loss_of,
    sequences,
)
from tests.guards.results import HONEST, result

VOCAB, LENGTH = 16, 32
LINE = HONEST[-1]


def text(seed: int, size: int) -> np.ndarray:
    """Tokens of which each is most often one more than the one before."""
    rng = np.random.default_rng(seed)
    steps = np.where(rng.random(size) < 0.7, 1, rng.integers(VOCAB, size=size))
    return (np.cumsum(steps) % VOCAB).astype(np.uint16)


TEST = ModelTest(
    "program", "the contract", VOCAB, LENGTH, text(1, 64 * LENGTH + 1), text(2, 32 * LENGTH + 1)
)


def honest(tokens: np.ndarray) -> np.ndarray:
    """Predict the next token from this one alone: logits (N, T, VOCAB)."""
    logits = np.zeros((*tokens.shape, VOCAB), dtype=np.float32)
    np.put_along_axis(logits, ((tokens.astype(int) + 1) % VOCAB)[..., None], 3.5, axis=-1)
    return logits


def true_loss(model) -> float:
    inputs, targets = sequences(TEST.public, LENGTH)
    return float(loss_of(model(inputs), targets).mean())


def look_ahead(tokens):
    logits = honest(tokens)
    np.put_along_axis(logits[:, :-1], tokens[:, 1:].astype(int)[..., None], 2.0, axis=-1)
    return logits


class Remembering:
    """A model with a memory across calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, tokens):
        self.calls += 1
        return honest(tokens) * (1 + 0.05 * self.calls)


def overfitted(tokens):
    """Know the public tokens by heart."""
    public = {
        row.tobytes(): targets for row, targets in zip(*sequences(TEST.public, LENGTH), strict=True)
    }
    logits = honest(tokens)
    for row, one in zip(tokens, logits, strict=True):
        if (known := public.get(row.astype(np.uint16).tobytes())) is not None:
            np.put_along_axis(one, known.astype(int)[..., None], 9.0, axis=-1)
    return logits


def program(model, folder, ending=Ending.FINISHED, spoil=lambda data: data):
    """Return a run function in which ``model`` answers."""

    def run(source, *, inputs, collect, timeout_s):
        assert source == "program"
        request = json.loads(inputs[REQUEST])
        tokens = np.frombuffer(inputs[TOKENS], "<u2").reshape(-1, request["length"])
        paths = {}
        for i, name in enumerate(collect):
            assert name == LOGITS.format(i)
            part = tokens[i * request["parts"] : (i + 1) * request["parts"]]
            paths[name] = folder / name
            paths[name].write_bytes(spoil(model(part).astype("<f4").tobytes()))
        errors = () if ending is Ending.FINISHED else (RankError(0, "NameError: GPT"),)
        return Execution(ending, errors=errors), paths if ending is Ending.FINISHED else {}

    return run


@pytest.fixture
def examine(tmp_path, monkeypatch):
    monkeypatch.setattr(Family, "model_test", lambda self, task, data, seed: TEST)

    def examine(model=honest, claimed=None, artifacts=None, options=None, **ways):
        loss = true_loss(model) if claimed is None else claimed
        line = LINE.replace("1.7900", f"{loss:.4f}")
        one = result(
            tmp_path,
            [line],
            data=tmp_path,
            artifacts={"model.pt": tmp_path} if artifacts is None else artifacts,
            run=program(model, tmp_path, **ways),
        )
        guard = EvaluationGuard(EvaluationOptions(**(options or {})))
        return [(f.level, f.reason) for f in guard.check_result(one)]

    return examine


def test_an_honest_model_passes_and_leaves_its_evidence_but_no_logits(examine, tmp_path):
    assert examine() == []
    evidence = json.loads((tmp_path / "evaluation.json").read_text())
    assert evidence["public_loss"] == pytest.approx(true_loss(honest), abs=1e-4)
    assert evidence["hidden_loss"] == pytest.approx(evidence["public_loss"], abs=0.15)
    assert evidence["splice_difference"] == 0
    assert list(tmp_path.glob("guard_logits*")) == []


def test_a_loss_that_the_model_does_not_have_is_rejected(examine):
    ((level, reason),) = examine(claimed=true_loss(honest) - 0.05)
    assert level is Level.REJECT
    assert "is claimed" in reason


def test_a_loss_that_is_better_than_claimed_is_held(examine):
    ((level, reason),) = examine(claimed=true_loss(honest) + 0.05)
    assert level is Level.QUARANTINE
    assert "less than" in reason


def test_a_model_over_the_target_is_rejected_even_if_the_parser_was_deceived(examine):
    found = examine(lambda tokens: 0 * honest(tokens))
    assert [level for level, _ in found] == [Level.REJECT]
    assert "over the target" in found[0][1]


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (look_ahead, "looks ahead"),
        (Remembering(), "get other logits"),
        (overfitted, "fitted to the validation data"),
    ],
)
def test_a_model_that_cheats_is_rejected(examine, model, reason):
    found = examine(model, options={"tolerance": 5.0})
    assert {level for level, _ in found} == {Level.REJECT}
    assert reason in found[0][1]


def test_probes_can_be_left_out(examine):
    assert examine(look_ahead, options={"probes": False, "tolerance": 5.0}) == []


def not_numbers(tokens):
    return honest(tokens) + np.float32("nan")


@pytest.mark.parametrize(
    ("ways", "reason"),
    [
        ({"ending": Ending.CRASHED}, "NameError: GPT; the contract"),
        ({"ending": Ending.TIMED_OUT}, "the contract"),
        ({"spoil": lambda data: data[:-4]}, "wrong size; the contract"),
        ({"spoil": lambda data: b""}, "wrong size"),
        ({"spoil": lambda data: 5 * data}, "wrong size"),
        ({"model": not_numbers, "claimed": 1.5}, "not finite"),
        ({"artifacts": {}}, "no model.pt was saved: the contract"),
    ],
)
def test_a_model_that_cannot_be_tested_is_held(examine, ways, reason):
    ((level, said),) = examine(**ways)
    assert level is Level.QUARANTINE
    assert reason in said


def test_a_family_without_a_test_passes(tmp_path):
    one = result(tmp_path, task=find_task("mini/1"), data=None)
    assert list(EvaluationGuard().check_result(one)) == []


def test_the_loss_is_the_cross_entropy_of_torch():
    torch = pytest.importorskip("torch")
    logits = np.random.default_rng(0).normal(size=(3, 5, 7)).astype(np.float32) * 30
    targets = np.random.default_rng(1).integers(7, size=(3, 5)).astype(np.uint16)
    theirs = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits).flatten(0, 1), torch.from_numpy(targets.astype(np.int64)).flatten()
    )
    assert loss_of(logits, targets).mean() == pytest.approx(float(theirs), abs=1e-5)


def test_logits_that_differ_by_a_constant_mean_the_same():
    logits = honest(sequences(TEST.public, LENGTH)[0])
    assert distance(logits, logits + 7) == pytest.approx(0, abs=1e-5)
    assert distance(logits, 1.2 * logits) > 0.05


def test_mini_offers_the_test_of_its_contract(tmp_path):
    task = find_task("mini/6")
    data = task.data_folder()
    test = task.family.model_test(task, data, 7)
    assert (test.vocab, test.length, len(test.public)) == (256, 128, 32769)
    assert len(test.hidden) == 16385
    assert not np.array_equal(test.hidden, test.public[: len(test.hidden)])
    assert np.array_equal(test.hidden, task.family.model_test(task, data, 7).hidden)
    assert not np.array_equal(test.hidden, task.family.model_test(task, data, 8).hidden)
    compile(test.program, "program", "exec")
