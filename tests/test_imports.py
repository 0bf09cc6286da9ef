"""Who may import whom: docs/architecture.md states the rule."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1] / "dropbn"
GROUND = "ground"  # the files that lie in dropbn/ itself
MAY_IMPORT = {
    GROUND: [],
    "nn": [GROUND],
    "models": [GROUND, "nn"],
    "diagnose": [GROUND, "nn"],
    "data": [GROUND],
    "train": [GROUND, "nn", "models", "diagnose", "data"],
    "study": [GROUND, "nn", "models", "diagnose", "data", "train"],
    "page": [GROUND, "nn", "models", "diagnose", "data", "train", "study"],
}
FILES = sorted(ROOT.rglob("*.py"))


def _package(name: str) -> str:
    """The package of a dotted name below dropbn."""
    first = name.partition(".")[0]
    return first if (ROOT / first).is_dir() else GROUND


def _imported(file: pathlib.Path) -> set[str]:
    """The packages of dropbn that a file imports from, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "dropbn":
            found |= {_package(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dropbn."):
            found.add(_package(node.module.removeprefix("dropbn.")))
        elif isinstance(node, ast.Import):
            found |= {
                _package(a.name.removeprefix("dropbn.")) for a in node.names if a.name.startswith("dropbn.")
            }
    return found


def test_every_package_has_a_rule():
    assert {_package(file.relative_to(ROOT).parts[0]) for file in FILES if file.parent != ROOT} | {
        GROUND
    } == MAY_IMPORT.keys()


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_run_one_way(package):
    for file in FILES:
        inside = file.relative_to(ROOT)
        own = inside.parts[0] if len(inside.parts) > 1 else GROUND
        if own == package:
            assert _imported(file) - {own} <= {*MAY_IMPORT[own]}, inside


def test_a_user_of_linen_does_not_wait_for_nnx():
    """Only packages named nnx import it when they are imported; others do so in functions."""
    for file in FILES:
        if "nnx" in file.relative_to(ROOT).parts:
            continue
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ImportFrom):
                names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
                assert "nnx" not in names, file
