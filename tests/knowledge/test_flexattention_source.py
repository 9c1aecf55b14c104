"""The flexattention knowledge source, and what it shares with the muon source."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from speedkit.core.errors import ExecutorError, UsageError
from speedkit.core.task import find_task
from speedkit.plugins.knowledge import reference
from speedkit.plugins.knowledge.flexattention import NAMES, FlexAttentionKnowledge
from speedkit.plugins.knowledge.muon import MuonKnowledge

TASK = find_task("nanogpt/11")
RUN_EXAMPLES = """
import importlib, sys, warnings
warnings.simplefilter("ignore")
import torch
torch.set_num_threads(1)
for name in sys.argv[1:]:
    importlib.import_module(name)
    print("done", name)
"""
SIGNATURES = """
import inspect, json, sys, torch
from torch.nn.attention import flex_attention as f
found = {
    "flex_attention": f.flex_attention,
    "create_block_mask": f.create_block_mask,
    "BlockMask.from_kv_blocks": f.BlockMask.from_kv_blocks,
}
names = {k: list(inspect.signature(v).parameters) for k, v in found.items()}
print(json.dumps([torch.__version__, names]))
"""


def knowledge(**options: object) -> FlexAttentionKnowledge:
    return FlexAttentionKnowledge(FlexAttentionKnowledge.Options(**options))


def examples(source: type[reference.GuideKnowledge]) -> list[str]:
    text = source.guide.read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_every_example_of_the_guides_runs(tmp_path: Path) -> None:
    names = []
    for source, count in ((FlexAttentionKnowledge, 4), (MuonKnowledge, 3)):
        found = examples(source)
        assert len(found) == count
        for k, example in enumerate(found):
            names.append(f"{source.name}_{k}")
            (tmp_path / f"{names[-1]}.py").write_text(example)
    done = subprocess.run(
        [sys.executable, "-c", RUN_EXAMPLES, *names],
        cwd=tmp_path,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.findall(r"^done (\w+)$", done.stdout, re.MULTILINE) == names


def test_the_guide_names_what_the_task_needs() -> None:
    (guide,) = knowledge(reference=False).entries(TASK)
    assert (guide.source, guide.title) == ("flexattention", "FlexAttention guide")
    for word in ("score_mod", "mask_mod", "from_kv_blocks", "torch.compile", "## Common errors"):
        assert word in guide.text


def test_the_reference_is_that_of_the_installed_torch() -> None:
    (entry,) = knowledge(guide=False).entries(TASK)
    command = [sys.executable, "-c", SIGNATURES]
    version, expected = json.loads(subprocess.check_output(command, text=True))
    assert entry.title == f"FlexAttention API reference, torch {version}"
    for name, parameters in expected.items():
        block = re.search(rf"^```\n{re.escape(name)}\((.*?)^```$", entry.text, re.M | re.S)
        assert block, name
        shown = re.findall(r"^    \**(\w+)", block[1], re.MULTILINE)
        assert shown == parameters
    assert "0x" not in entry.text
    assert "'Tensor'" not in entry.text


def test_the_controller_does_not_import_torch(tmp_path: Path) -> None:
    answer = json.dumps({"torch": "9.9", "items": [[NAMES[0], "signature", "docstring"]]})
    python = _fake_python(tmp_path, f"echo '{answer}'")
    code = (
        "import sys\n"
        "from speedkit.plugins.knowledge.flexattention import FlexAttentionKnowledge as K\n"
        "found = K(K.Options(python=sys.argv[1])).entries(None)\n"
        "print(len(found), found[1].title.split()[-1], 'torch' in sys.modules)"
    )
    done = subprocess.check_output([sys.executable, "-c", code, python], text=True)
    assert done.split() == ["2", "9.9", "False"]


@pytest.mark.parametrize(("limit", "fits"), [(2_000, False), (6_000, False), (500_000, True)])
def test_the_reference_keeps_its_size(limit: int, fits: bool) -> None:
    (entry,) = knowledge(guide=False, max_chars=limit).entries(TASK)
    assert len(entry.text) <= limit
    assert ("Left out for length" not in entry.text) == fits


def test_what_does_not_fit_loses_its_docstring_first() -> None:
    items = (reference.Item("m:a", "a(x)", "long " * 500), reference.Item("m:b", "b(y)", "short"))
    text = reference.Reference("9.9", items, ("m:c",)).text(2_000)
    assert "a(x)" in text
    assert "long" not in text
    assert "short" in text
    assert "Left out for length, in whole or in part: a." in text
    assert "Not in torch 9.9: c." in text


def test_names_that_a_torch_lacks_are_named() -> None:
    found = reference.ask(sys.executable, (NAMES[0], "torch:no_such", "torch.no_such:x"))
    assert found.missing == ("torch:no_such", "torch.no_such:x")
    assert [item.name for item in found.items] == [NAMES[0]]


def test_an_interpreter_without_torch_gets_one_clear_line(tmp_path: Path) -> None:
    python = _fake_python(tmp_path, f'exec "{sys.executable}" -S "$@"')
    with pytest.raises(UsageError, match="has no torch; set the option python") as caught:
        knowledge(python=python).entries(TASK)
    assert "\n" not in str(caught.value)


def test_an_interpreter_that_fails_gets_one_clear_line(tmp_path: Path) -> None:
    python = _fake_python(tmp_path, "echo broken >&2; exit 3")
    with pytest.raises(UsageError, match="cannot be read: broken; set the option python"):
        knowledge(python=python).entries(TASK)


def test_an_interpreter_that_is_not_there() -> None:
    with pytest.raises(ExecutorError, match="no interpreter at"):
        knowledge(python="/no/such/python").entries(TASK)


def test_no_secret_reaches_the_interpreter(tmp_path: Path, monkeypatch) -> None:
    seen = tmp_path / "seen"
    python = _fake_python(tmp_path, f'env > "{seen}"; exit 3')
    monkeypatch.setenv("CANARY_API_KEY", "canary-value-123")
    with pytest.raises(UsageError):
        knowledge(python=python).entries(TASK)
    assert "canary" not in seen.read_text().lower()


def _fake_python(folder: Path, body: str) -> str:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("options", [{"max_chars": 10}, {"pyhton": "x"}, {"guide": "perhaps"}])
def test_wrong_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        FlexAttentionKnowledge.Options(**options)


def test_hints_and_flexattention_combine() -> None:
    from speedkit.core.assemble import assemble
    from speedkit.core.config import load_config
    from speedkit.core.plugins import Plugins

    config = load_config(
        {
            "task": "nanogpt/11",
            "coder": "noop",
            "summarizer": "rules",
            "knowledge": ("hints", "flexattention"),
            "options": {"knowledge": {"levels": "1", "reference": "false"}},
        }
    )
    parts = assemble(config, Plugins())
    entries = [e for source in parts.knowledge for e in source.entries(TASK)]
    assert [e.source for e in entries] == ["hints", "flexattention"]
    chosen = [entry["name"] for entry in parts.manifest["knowledge"]]
    assert chosen == ["hints", "flexattention"]
