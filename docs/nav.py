"""Puts pages that ``mkdocs.yml`` does not name at the end of their folder's section."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SECTIONS = {
    "tutorial": "Tutorial",
    "howto": "How to",
    "reference": "Reference",
    "explanation": "Explanation",
}
"""The section of each folder."""


def on_config(config: Any) -> Any:
    """Complete the navigation; called by mkdocs."""
    docs = Path(config["docs_dir"])
    sections = {
        title: pages
        for entry in config["nav"]
        if isinstance(entry, dict)
        for title, pages in entry.items()
    }
    for folder, title in SECTIONS.items():
        pages = sorted(path.relative_to(docs).as_posix() for path in (docs / folder).glob("*.md"))
        sections[title] += [page for page in pages if page not in sections[title]]
    return config
