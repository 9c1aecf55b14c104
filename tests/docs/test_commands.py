"""Runs what the pages tell the reader to run, in the order of the page."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import sysconfig
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import INSTANT, TESTS, TOY
from tests.docs.blocks import blocks_of

pytestmark = pytest.mark.long

ROOT = TESTS.parent
PAGES = [
    "README.md",
    *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs" / "tutorial").glob("*.md")),
    *(f"docs/howto/{name}.md" for name in ("git-history", "model-server", "own-family", "resume")),
    "docs/howto/write-a-plugin.md",
    "docs/explanation/differences.md",
    "docs/explanation/early-stopping.md",
    "docs/reference/hooks.md",
]
NOT_RUN = {
    "README.md": 4,
    "docs/tutorial/first-run.md": 2,
    "docs/howto/model-server.md": 2,
    "docs/howto/write-a-plugin.md": 1,
}
"""How many blocks of a page say why they are not run."""
DRY = {"README.md": 3, "docs/tutorial/first-run.md": 1, "docs/explanation/differences.md": 1}
"""How many blocks of a page are run with ``--dry-run``."""
OFFLINE = {
    "PIP_NO_INDEX": "1",
    "PIP_NO_DEPS": "1",
    "PIP_NO_BUILD_ISOLATION": "0",  # pip reads the word after NO_, so 0 is what switches it on
    "PIP_CONFIG_FILE": os.devnull,
    "GIT_CONFIG_GLOBAL": os.devnull,
}
KIT = "speedkit.testing.pytest_plugin"
LIMIT_S = 300
READ = "test_what_a_page_says_works"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """An environment with speedkit, into which pages may install, and a cache that they share."""
    folder = tmp_path_factory.mktemp("home")
    venv.create(folder / "venv", with_pip=False)
    base = str(folder / "venv")
    site = Path(sysconfig.get_path("purelib", vars={"base": base, "platbase": base}))
    here = sysconfig.get_path("purelib")
    site.joinpath("_these.pth").write_text(f"import site; site.addsitedir({here!r})\n{ROOT}\n")
    program = folder / "venv" / "bin" / "speedkit"
    program.write_text(f'#!/bin/sh\nexec {base}/bin/python -m speedkit "$@"\n')
    program.chmod(0o755)
    return folder


class Reader:
    """Somebody who does what a page says, in a folder that looks like that of the sources."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.folder = folder
        for name in ("examples", "tests"):
            (folder / name).symlink_to(ROOT / name)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SPEEDKIT_", "PYTHON"))}
        kept.pop("VIRTUAL_ENV", None)
        self.env = {
            **kept,
            **OFFLINE,
            "HOME": str(home),
            "PATH": f"{home}/venv/bin:{os.environ['PATH']}",
            "SPEEDKIT_CACHE_DIR": str(home / "cache"),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        if not any(p.value == KIT for p in importlib.metadata.entry_points(group="pytest11")):
            self.env["PYTEST_ADDOPTS"] = f"-p {KIT}"  # installed before the kit had an entry point

    def type(self, script: str, status: int = 0, where: str = "") -> str:
        """Run a shell script and check how it ends; return what it said."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        said = done.stdout + done.stderr
        assert done.returncode == status, f"{where}: {script}\n{said}"
        assert "Traceback" not in done.stderr, f"{where}: {said}"
        return said

    def python(self, text: str, where: str) -> None:
        """Run a Python block."""
        path = self.folder / "block.py"
        path.write_text(text, encoding="utf-8")
        self.type("python block.py", where=where)

    def save(self, name: str, text: str) -> None:
        """Keep a block as the file that it is."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


@pytest.fixture
def reader(tmp_path, home):
    return Reader(tmp_path, home)


@pytest.fixture(scope="module")
def reading(request, tmp_path_factory, home):
    """Have the pages that are asked for read, two at a time; return what becomes of each."""
    items = [i for i in request.session.items if getattr(i, "originalname", "") == READ]
    pages = [item.callspec.params["page"] for item in items]
    folders = {page: tmp_path_factory.mktemp("sources") for page in pages}
    with ThreadPoolExecutor(2) as pool:
        yield {page: pool.submit(read, page, Reader(folders[page], home)) for page in pages}


def read(page, reader):
    """Do what a page says."""
    values = {}
    if page == "README.md":
        reader.type(
            f"speedkit run {TOY}/1 --load {INSTANT} --executor instant --coder tuner --nodes 6 "
            "--out finished --seed 1"
        )
        values = {" RUN": " finished"}
    for block in page_blocks(page):
        where = f"{page}:{block.line}"
        if block.reason:
            continue
        if block.file:
            reader.save(block.file, block.text)
        if block.language == "python":
            reader.python(block.text, where)
        elif block.commands:
            script = block.script
            for old, new in values.items():
                script = script.replace(old, new)
            reader.type(script, block.status, where)


def page_blocks(page):
    return blocks_of((ROOT / page).read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_says_works(page, reading):
    reading[page].result()


def test_only_so_many_blocks_are_left_out():
    left_out = {page: [b for b in page_blocks(page) if b.reason] for page in PAGES}
    assert {page: len(blocks) for page, blocks in left_out.items() if blocks} == NOT_RUN
    dry = {page: sum(b.note == "dry run" for b in page_blocks(page)) for page in PAGES}
    assert {page: count for page, count in dry.items() if count} == DRY


@pytest.mark.parametrize("page", PAGES)
def test_a_note_stands_before_something_that_could_be_run(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    noted = [b for b in blocks_of(text) if b.note]
    assert text.count("<!-- not run:") + text.count("<!-- dry run") + text.count("<!-- fails:") == (
        len(noted)
    )
    assert all(b.runs for b in noted)


def test_every_tutorial_has_commands():
    for page in (p for p in PAGES if p.startswith("docs/tutorial/")):
        assert any(b.commands and not b.note for b in page_blocks(page)), page


def test_the_program_of_the_pages_is_this_one(reader):
    import speedkit

    assert speedkit.__version__ in reader.type("speedkit --version")
    where = "python -c 'import speedkit; print(speedkit.__file__)'"
    assert str(ROOT) in reader.type(where)
    assert sys.version.split()[0] in reader.type("python --version")
