"""What is in the folder of the package is in a built distribution as well."""

from __future__ import annotations

import tomli

from tests.conftest import TESTS

ROOT = TESTS.parent


def test_every_file_of_the_package_is_distributed():
    settings = tomli.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    given = {
        path
        for package, patterns in settings["package-data"].items()
        for pattern in patterns
        for path in ROOT.joinpath(*package.split(".")).glob(pattern)
    }
    files = [p for p in (ROOT / "speedkit").rglob("*") if p.is_file()]
    files = [p for p in files if p.parent.name != "__pycache__"]  # with torn ones of killed tests
    modules = {p for p in files if p.suffix == ".py" and (p.parent / "__init__.py").exists()}
    assert len(files) > len(modules) > 100
    assert [str(p.relative_to(ROOT)) for p in files if p not in modules | given] == []
