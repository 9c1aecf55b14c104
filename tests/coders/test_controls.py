"""The coders noop and oracle."""

from __future__ import annotations

from pathlib import Path

import pytest

from speedkit.core.components import CodeRequest, Services
from speedkit.core.errors import FamilyError, UsageError
from speedkit.core.node import Node, Stage, Tree
from speedkit.core.task import Family, Task
from speedkit.plugins.coders.noop import NoopCoder
from speedkit.plugins.coders.oracle import OracleCoder

FAMILY = """
schema = 1
name = "tiny"
script = "train.py"
[target]
val_loss = 2.6
[[record]]
index = 1
title = "first"
script = "one.py"
[[record]]
index = 2
title = "second"
script = "two.py"
[[record]]
index = 3
title = "third"
time_ms = 10
[[record]]
index = 4
title = "fourth"
script = "four.py"
"""
PARENT = {"train.py": "print('é')\r\n", "other.py": "x = 1"}


@pytest.fixture
def family(tmp_path: Path) -> Family:
    (tmp_path / "family.toml").write_text(FAMILY)
    (tmp_path / "one.py").write_text("print(1)\n")
    (tmp_path / "two.py").write_text("print('zwei é')\n", encoding="utf-8")
    return Family.load(tmp_path)


def request(task: Task) -> CodeRequest:
    tree = Tree([Node(0, None, Stage.ROOT, 0), Node(1, 0, Stage.DRAFT, 1)])
    return CodeRequest(
        task=task,
        tree=tree,
        parent=tree[1],
        node_id=2,
        stage=Stage.IMPROVE,
        sibling=0,
        siblings=1,
        files=PARENT,
        knowledge=(),
        seed=1,
        log_dir=Path(),
        read_files=lambda _: PARENT,
    )


def services(task: Task) -> Services:
    def no_model() -> None:
        raise AssertionError("a control needs no model")

    return Services(task, 0, no_model)  # type: ignore[arg-type]


def test_noop_returns_the_parents_code(family: Family) -> None:
    coder = NoopCoder()
    coder.bind(services(family.task(1)))
    draft = coder.write(request(family.task(1)))
    assert draft.files == PARENT
    assert draft.files is not PARENT
    assert draft.hypothesis == "no change: the code of node 1 once more"
    assert not draft.failure
    assert draft.model is None


def test_oracle_returns_the_target_records_script(family: Family) -> None:
    coder = OracleCoder()
    coder.bind(services(family.task(1)))
    draft = coder.write(request(family.task(1)))
    assert draft.files == {"train.py": "print('zwei é')\n", "other.py": "x = 1"}
    assert draft.hypothesis == "record 2 itself: second"
    assert not draft.failure


@pytest.mark.parametrize("method", ["bind", "write"])
def test_oracle_refuses_a_target_without_a_script(family: Family, method: str) -> None:
    task = family.task(2)
    with pytest.raises(UsageError) as error:
        getattr(OracleCoder(), method)(request(task) if method == "write" else services(task))
    assert str(error.value) == (
        "coder oracle copies the target record's script, and record 3 of tiny has none; "
        "choose another coder for tiny/2"
    )


def test_oracle_names_a_script_that_is_missing(family: Family) -> None:
    with pytest.raises(FamilyError, match=r"script of record 4 of tiny is missing: .*four\.py"):
        OracleCoder().bind(services(family.task(3)))
