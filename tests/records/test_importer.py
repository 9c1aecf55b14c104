"""Importing record scripts from a git history: a small one of our own, and the real one."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import subprocess
from pathlib import Path

import pytest

from speedkit.core.errors import FamilyError, UsageError
from speedkit.core.task import Family, find_family
from speedkit.records.nanogpt.importer import (
    export_records,
    hide_userinfo,
    import_records,
    original_path,
    record_status,
    status,
)
from tests.records.test_transforms import TRAINER

CLONE = os.environ.get("SPEEDKIT_TEST_MODDED_NANOGPT")
needs_clone = pytest.mark.skipif(
    CLONE is None, reason="SPEEDKIT_TEST_MODDED_NANOGPT names no clone"
)

PLAIN = "import torch\nprint('plain')\n"
FRAMED = "import torch\nprint('framed, with a letter: ü')\n"
HEAD = "import torch\n\nprint('head')\n"
NO_NEWLINE = "print('no newline at the end')"
RULE = "=" * 20 + "\n"
FILES = {  # path -> (content, first, last)
    "train.py": (PLAIN, 1, 2),
    "logs/framed.txt": (RULE + FRAMED + RULE + "step:1/2 val_loss:3\n", 2, 3),
    "logs/head.txt": (HEAD + RULE + "step:1/2 val_loss:3\n", 1, 3),
    "logs/headnl.txt": (HEAD.replace("head", "another") + "\n" + RULE, 1, 3),
    "no_newline.py": (NO_NEWLINE, 1, 1),
}
SCRIPTS = [PLAIN, FRAMED, HEAD, HEAD.replace("head", "another"), NO_NEWLINE + "\n"]


def git(folder: Path, *command: str) -> str:
    env = {
        **os.environ,
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_SYSTEM": os.devnull,
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@example.org",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@example.org",
    }
    done = subprocess.run(
        ["git", "-c", "init.defaultBranch=main", *command],
        cwd=folder,
        env=env,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


@pytest.fixture
def clone(tmp_path) -> Path:
    """A history in which the scripts' commit is not the last one, with a work tree in use."""
    folder = tmp_path / "clone"
    folder.mkdir()
    git(folder, "init", "-q")
    for path, (content, _, _) in FILES.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_bytes(content.encode())
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "scripts")
    git(folder, "rm", "-qr", "logs")
    (folder / "train.py").write_text("print('newer')\n")
    git(folder, "commit", "-qam", "newer")
    (folder / "train.py").write_text("print('not committed')\n")
    return folder


@pytest.fixture
def family(tmp_path, clone) -> Family:
    return make_family(tmp_path / "family", git(clone, "rev-parse", "HEAD~1"))


def make_family(folder: Path, commit: str, **changes: str) -> Family:
    head = 'schema = 1\nname = "tiny"\nscript = "t.py"\nscripts = "cache"\n'
    lines = [head, "target = { val_loss = 1 }\n"]
    for k, (path, script) in enumerate(zip(FILES, SCRIPTS, strict=True), start=1):
        sha = changes.get(f"sha{k}", hashlib.sha256(script.encode()).hexdigest())
        first, last = FILES[path][1:]
        path = changes.get(f"path{k}", path)
        lines.append(
            f'[[record]]\nindex = {k}\ntitle = "r{k}"\nscript = "record_{k:02d}.py"\n'
            f'source = {{ commit = "{commit}", path = "{path}", first = {first}, '
            f'last = {last}, sha256 = "{sha}" }}\n'
        )
    folder.mkdir(exist_ok=True)
    (folder / "family.toml").write_text("".join(lines), encoding="utf-8")
    return find_family(str(folder))


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file with its content and time of change, git's own included."""
    return {
        str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mtime_ns)
        for p in folder.rglob("*")
        if p.is_file()
    }


def test_scripts_are_cut_out_of_files_and_logs(clone, family):
    report = import_records(clone, family)
    assert [r.read() for r in family.records] == SCRIPTS
    assert len(report.stored) == 5
    assert [r.record.index for r in report.records] == [1, 2, 3, 4, 5]
    assert report.source == str(clone)
    assert {s.state for s in status(family)} == {"imported"}
    mode = family.record(1).path.stat().st_mode
    assert not mode & stat.S_IXUSR


def test_the_clone_is_only_read(clone, family):
    before = snapshot(clone)
    import_records(clone, family)
    assert snapshot(clone) == before


def test_bare_clones_subfolders_and_addresses_will_do(clone, family, tmp_path):
    bare = tmp_path / "bare.git"
    git(tmp_path, "clone", "-q", "--bare", str(clone), str(bare))
    for source in (bare, bare.as_uri()):
        for record in family.records:
            record.path.unlink(missing_ok=True)
        assert len(import_records(source, family).stored) == 5
        assert [r.read() for r in family.records] == SCRIPTS


def test_an_import_goes_on_where_it_stopped(clone, family):
    import_records(clone, family)
    kept = family.record(2).path
    before = kept.stat().st_mtime_ns
    family.record(1).path.unlink()
    family.record(3).path.write_text("print('damaged')\n")
    assert record_status(family.record(1)).state == "missing"
    assert record_status(family.record(3)).state == "damaged"
    report = import_records(clone, family)
    assert [r.record.index for r in report.stored] == [1, 3]
    assert [r.kept for r in report.records] == [False, True, False, True, True]
    assert kept.stat().st_mtime_ns == before
    assert family.record(3).read() == HEAD


def test_what_is_whole_needs_no_clone(clone, family, tmp_path):
    import_records(clone, family)
    report = import_records(tmp_path / "nowhere", family)
    assert report.source is None
    assert report.stored == ()


def test_another_clock_needs_no_clone(clone, tmp_path):
    (clone / "trainer.py").write_text(TRAINER)
    git(clone, "add", ".")
    git(clone, "commit", "-qm", "trainer")
    family = make_family(tmp_path / "family", git(clone, "rev-parse", "HEAD~2"))
    with (family.root / "family.toml").open("a", encoding="utf-8") as file:
        sha256 = hashlib.sha256(TRAINER.encode()).hexdigest()
        file.write(
            '[[record]]\nindex = 6\ntitle = "r6"\nscript = "six.py"\ntransform = "record_03"\n'
            f'source = {{ commit = "{git(clone, "rev-parse", "HEAD")}", path = "trainer.py", '
            f'last = {len(TRAINER.splitlines())}, sha256 = "{sha256}" }}\n'
        )
    family = find_family(str(family.root))
    import_records(clone, family)
    assert record_status(family.record(6)).clock == "consistent"
    report = import_records(tmp_path / "nowhere", family, clock="official")
    assert [r.record.index for r in report.stored] == [6]
    assert report.source is None
    assert record_status(family.record(6)).clock == "official"


def test_another_script_is_refused_by_name_and_not_stored(clone, tmp_path):
    commit = git(clone, "rev-parse", "HEAD~1")
    family = make_family(tmp_path / "family", commit, sha3="0" * 64)
    with pytest.raises(FamilyError, match=r"record 3: logs/head\.txt .* is not the script"):
        import_records(clone, family)
    assert [s.state for s in status(family)] == ["imported"] * 2 + ["missing"] * 3
    assert sorted(p.name for p in family.script_root.iterdir()) == ["record_01.py", "record_02.py"]


def test_a_path_that_is_not_in_the_commit_is_named(clone, tmp_path):
    commit = git(clone, "rev-parse", "HEAD~1")
    family = make_family(tmp_path / "family", commit, path2="logs/gone.txt")
    with pytest.raises(FamilyError, match=r"record 2: .* has no logs/gone\.txt in commit"):
        import_records(clone, family)


def test_a_missing_commit_says_what_to_do(clone, tmp_path):
    family = make_family(tmp_path / "family", "1" * 40)
    with pytest.raises(FamilyError, match=r"record 1: .* lacks commit 111111111111; .*git fetch"):
        import_records(clone, family)


def test_a_shallow_clone_says_what_to_do(clone, family, tmp_path):
    shallow = tmp_path / "shallow"
    git(tmp_path, "clone", "-q", "--depth", "1", clone.as_uri(), str(shallow))
    with pytest.raises(FamilyError, match=r"shallow clone .*git fetch --unshallow"):
        import_records(shallow, family)


def test_a_partial_clone_says_what_to_do(clone, family, tmp_path):
    git(clone, "config", "uploadpack.allowFilter", "true")
    partial = tmp_path / "partial"
    git(
        tmp_path, "clone", "-q", "--no-checkout", "--filter=blob:none", clone.as_uri(), str(partial)
    )
    (clone / ".git").rename(clone / "moved")  # so that nothing can be fetched behind the scenes
    with pytest.raises(FamilyError, match=r"partial clone and lacks train\.py"):
        import_records(partial, family)


def test_what_is_no_repository_is_named(family, tmp_path):
    (tmp_path / "plain").mkdir()
    with pytest.raises(UsageError, match="plain is no git repository"):
        import_records(tmp_path / "plain", family)
    with pytest.raises(UsageError, match="no folder"):
        import_records(tmp_path / "gone", family)
    with pytest.raises(UsageError, match="--from"):
        import_records(None, family)


@pytest.mark.parametrize(
    "address", ["https://me:geheim@127.0.0.1:9/x.git", "https://geheim@127.0.0.1:9/x.git"]
)
def test_passwords_in_addresses_are_never_shown(family, address):
    with pytest.raises(UsageError, match=r"cannot clone https://127\.0\.0\.1:9/x\.git") as caught:
        import_records(address, family)
    assert "geheim" not in str(caught.value)
    assert "geheim" not in hide_userinfo(f"fatal: cannot reach '{address}'")


def test_addresses_that_would_run_commands_are_refused(family, tmp_path):
    marker = tmp_path / "ran"
    with pytest.raises(UsageError):
        import_records(f"ext::touch {marker}", family)
    with pytest.raises(UsageError):
        import_records(f"--upload-pack=touch {marker}", family)
    assert not marker.exists()


def test_scripts_are_exported_together(clone, family, tmp_path):
    with pytest.raises(FamilyError, match="record 1 of tiny is missing; run: speedkit records"):
        export_records(family, tmp_path / "out")
    import_records(clone, family)
    paths = export_records(family, tmp_path / "out")
    assert [p.read_text(encoding="utf-8") for p in paths] == SCRIPTS


# --- the real history -------------------------------------------------------------------


@pytest.fixture
def nanogpt() -> Family:
    return find_family("nanogpt")


@needs_clone
@pytest.mark.filterwarnings("ignore:invalid escape")
def test_all_21_records_are_imported(nanogpt):
    report = import_records(CLONE, nanogpt)
    assert len(report.stored) == 21
    for record in nanogpt.records:
        data = original_path(record).read_bytes()
        assert hashlib.sha256(data).hexdigest() == record.source.sha256
        compile(record.read(), record.script, "exec")
    transformed = [s.record.index for s in status(nanogpt) if s.clock == "consistent"]
    assert transformed == [1, 2, 3]
    assert {s.state for s in status(nanogpt)} == {"imported"}
    assert nanogpt.record(6).read() == nanogpt.record(7).read()


@needs_clone
def test_the_other_clock_changes_three_scripts(nanogpt):
    import_records(CLONE, nanogpt)
    report = import_records(CLONE, nanogpt, clock="official")
    assert [r.record.index for r in report.stored] == [1, 2, 3]
    assert all("official" in " ".join(r.notes) for r in report.stored)
    assert [s.clock for s in status(nanogpt)[:3]] == ["official"] * 3


@needs_clone
def test_reference_times_with_compilation_need_the_official_clock(nanogpt):
    import_records(CLONE, nanogpt)
    assert "record 1 counts the compilation" in nanogpt.task(1).reference_problem()
    assert "--clock official" in nanogpt.task(3).reference_problem()
    assert nanogpt.task(4).reference_problem() == ""
    import_records(CLONE, nanogpt, clock="official")
    assert nanogpt.task(1).reference_problem() == ""


@needs_clone
def test_a_run_says_which_clock_its_records_have(nanogpt):
    import_records(CLONE, nanogpt)
    first, second = nanogpt.task(1).notes()
    assert first.startswith("record 1 has the consistent clock")
    assert second.startswith("record 2 ")
    assert len(nanogpt.task(3).notes()) == 1
    assert nanogpt.task(4).notes() == ()
    import_records(CLONE, nanogpt, clock="official")
    assert "compilation included" in nanogpt.task(1).notes()[0]


def test_a_family_without_such_a_hook_has_no_such_problem(family):
    assert family.task(1).reference_problem() == ""
    assert family.task(1).notes() == ()


@needs_clone
def test_a_changed_transformed_script_is_damaged(nanogpt):
    import_records(CLONE, nanogpt)
    path = nanogpt.record(1).path
    path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert record_status(nanogpt.record(1)).state == "damaged"
    original_path(nanogpt.record(2)).unlink()
    assert record_status(nanogpt.record(2)).state == "damaged"
    assert [r.record.index for r in import_records(CLONE, nanogpt).stored] == [1, 2]


@needs_clone
def test_every_task_has_a_human_change(nanogpt):
    import_records(CLONE, nanogpt)
    for task in nanogpt.tasks.values():
        assert task.start.read() != task.target.read()
    assert re.search(r"class Muon", nanogpt.task(3).target.read())
