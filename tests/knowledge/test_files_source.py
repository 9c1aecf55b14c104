"""The files knowledge source."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from speedkit.core.errors import UsageError
from speedkit.core.task import Family, Task
from speedkit.plugins.knowledge.files import FilesKnowledge

FAMILY = """
schema = 1
name = "tiny"
script = "train.py"
[target]
val_loss = 2.6
[[record]]
index = 1
title = "first"
[[record]]
index = 2
title = "second"
"""


@pytest.fixture
def task(tmp_path: Path) -> Task:
    folder = tmp_path / "family"
    folder.mkdir()
    (folder / "family.toml").write_text(FAMILY)
    return Family.load(folder).task(1)


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "notes"
    (folder / "deep").mkdir(parents=True)
    for name, text in {"b.md": "B", "a.md": "A é", "c.txt": "C", "deep/d.md": "D"}.items():
        (folder / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(folder)
    return folder


def files(paths: object, **options: object) -> FilesKnowledge:
    return FilesKnowledge(FilesKnowledge.Options(paths=paths, **options))


def complaint(source: FilesKnowledge, task: Task) -> str:
    with pytest.raises(UsageError) as error:
        source.entries(task)
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("paths", "texts"),
    [
        ("a.md", ["A é"]),
        ("c.txt, a.md", ["C", "A é"]),
        (("*.md",), ["A é", "B"]),
        (["**/*.md"], ["A é", "B", "D"]),
        (["b.md", "*.md", "./b.md"], ["B", "A é"]),
        (["*"], ["A é", "B", "C"]),
    ],
)
def test_paths_and_globs(notes: Path, task: Task, paths: object, texts: list[str]) -> None:
    entries = files(paths).entries(task)
    assert [e.text for e in entries] == texts
    assert {e.source for e in entries} == {"files"}


def test_the_title_is_the_path(notes: Path, task: Task) -> None:
    assert [e.title for e in files(["deep/*", "a.md"]).entries(task)] == ["deep/d.md", "a.md"]


def test_absolute_paths_and_the_home_folder(
    notes: Path, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(notes))
    assert [e.text for e in files([str(notes / "b.md"), "~/c.txt"]).entries(task)] == ["B", "C"]


def test_a_file_with_glob_characters_in_its_name(notes: Path, task: Task) -> None:
    (notes / "[x].md").write_text("brackets")
    assert [e.text for e in files(["[x].md"]).entries(task)] == ["brackets"]


def test_a_byte_order_mark_is_dropped(notes: Path, task: Task) -> None:
    (notes / "bom.md").write_bytes(b"\xef\xbb\xbftext")
    assert [e.text for e in files("bom.md").entries(task)] == ["text"]


def test_no_path_given(task: Task) -> None:
    assert "at least one path" in complaint(FilesKnowledge(), task)


@pytest.mark.parametrize("path", ["missing.md", "*.rst", "a.md/b", "x" * 5000])
def test_nothing_matches(notes: Path, task: Task, path: str) -> None:
    assert complaint(files([path]), task) == f"knowledge files: no file matches {path}"


def test_a_folder(notes: Path, task: Task) -> None:
    message = "knowledge files: deep is a folder; write deep/* for the files in it"
    assert complaint(files("deep"), task) == message


def test_a_file_that_is_too_large(notes: Path, task: Task) -> None:
    (notes / "big.md").write_bytes(b"x" * 11)
    assert "big.md is larger than 10 bytes" in complaint(files("big.md", max_bytes=10), task)
    assert len(files("big.md", max_bytes=11).entries(task)) == 1


def test_a_file_that_is_no_text(notes: Path, task: Task) -> None:
    (notes / "binary.md").write_bytes(b"ok\xff\xfe")
    assert "binary.md is not UTF-8 text (byte 2)" in complaint(files("binary.md"), task)


def test_too_many_files(notes: Path, task: Task) -> None:
    assert "4 files match, the limit is 3" in complaint(files(["**/*"], max_files=3), task)


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="needs Linux's /proc")
def test_a_file_that_cannot_be_read(task: Task) -> None:
    assert "cannot read /proc/self/mem: " in complaint(files("/proc/self/mem"), task)


def test_a_pipe_is_no_file(notes: Path, task: Task) -> None:
    os.mkfifo(notes / "pipe")
    assert "no file matches pipe" in complaint(files("pipe"), task)


def test_options_are_described() -> None:
    assert all(field.description for field in FilesKnowledge.Options.model_fields.values())
