"""The site builds without a warning, needs nothing from elsewhere, and its pages fit the code."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.conftest import TESTS

ROOT = TESTS.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
FETCHED = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?https?:"""
    r"""|<link\b[^>]*\brel=["']?(?:stylesheet|preload|preconnect|icon)\b[^>]*https?:"""
)
"""What a browser would fetch from elsewhere."""
MENTIONED = re.compile(r"`((?:benchmarks|docs|examples|speedkit|tests)/[\w./-]+)`")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("material", reason="the extra `docs` is not installed")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "http_proxy": "http://127.0.0.1:9"}
    env["https_proxy"] = env["http_proxy"]  # whatever would be fetched is not there
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr
    return folder


def test_every_page_is_in_the_site(site):
    for page in PAGES:
        assert (site / page.relative_to(DOCS).with_suffix(".html")).is_file(), page


def test_every_page_can_be_reached_from_the_first(site):
    first = (site / "index.html").read_text(encoding="utf-8")
    for page in PAGES:
        assert f'href="{page.relative_to(DOCS).with_suffix(".html").as_posix()}"' in first, page


def test_no_program_is_published(site):
    assert not list(site.rglob("*.py"))


def test_a_page_fetches_nothing_from_elsewhere(site):
    assert FETCHED.search('<link rel="stylesheet" href="https://fonts.example/a.css">')
    assert FETCHED.search('<script src="https://cdn.example/a.js">')
    for page in site.rglob("*.html"):
        found = FETCHED.search(page.read_text(encoding="utf-8"))
        assert found is None, f"{page.name}: {found and found[0]}"
    for style in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)[\"' ]*https?:", style.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(DOCS).as_posix())
def test_files_that_a_page_mentions_are_there(page):
    for name in MENTIONED.findall(page.read_text(encoding="utf-8")):
        assert (ROOT / name).exists(), name
