"""Every public function has annotations for all its parameters and for what it returns."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def _module(file: pathlib.Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = sorted(ROOT.glob("dropbn/**/*.py"))


def _missing(body: list[ast.stmt], prefix: str = "") -> list[str]:
    """The annotations that public functions and methods lack, such as "Class.method: parameter"."""
    found = []
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            found += _missing(node.body, f"{node.name}.")
        if isinstance(node, ast.FunctionDef) and (not node.name.startswith("_") or node.name.endswith("__")):
            given = node.args
            parameters = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
            bare = [p.arg for p in parameters if p and not p.annotation and p.arg not in ("self", "cls")]
            bare += [] if node.returns else ["return"]
            found += [f"{prefix}{node.name}: {name}" for name in bare]
    return found


@pytest.mark.parametrize("file", FILES, ids=_module)
def test_public_functions_are_annotated(file):
    assert _missing(ast.parse(file.read_text()).body) == []


def test_a_missing_annotation_is_found():
    code = """
def f(x: int, *rest, y=1) -> int: ...
def _private(x): ...
class C:
    def __init__(self, a: int): ...
    def method(self, **kwargs: int) -> int: ...
    def _private(self, x): ...
"""
    assert sorted(_missing(ast.parse(code).body)) == ["C.__init__: return", "f: rest", "f: y"]
