"""A package that an extra would bring and that is missing is named in a sentence with the pip command."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
# What `pip install dropbn` alone does not bring, and what we use of it.
EXTRAS = ["matplotlib", "PIL", "grain", "sklearn", "tensorflow_datasets", "ml_collections", "tensorboardX"]


def _without(packages: list[str], code: str, tmp_path: pathlib.Path) -> subprocess.CompletedProcess:
    """Runs Python code in a process in which some packages cannot be imported."""
    blocked = f"import sys; sys.modules.update(dict.fromkeys({packages}))"
    return subprocess.run(
        [sys.executable, "-c", f"{blocked}\n{code}"],
        cwd=ROOT,
        env={**os.environ, "TFDS_DATA_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )


def _sentence(package: str, extra: str) -> str:
    return f"This needs {package}, which is not installed: pip install 'dropbn[{extra}]'."


@pytest.mark.parametrize(
    ("package", "extra", "code"),
    [
        ("matplotlib", "plot", "from dropbn.diagnose import shift; shift.Shift([], '').plot()"),
        ("PIL", "data", "import dropbn.data"),
        ("tensorflow_datasets", "data", "from dropbn.data import stock; stock.arrays('digits')"),
        ("sklearn", "data", "from dropbn.data import stock; stock.prepare('digits')"),
        ("ml_collections", "train", "import dropbn.train"),
        ("ml_collections", "train", "import dropbn.study"),
        ("tensorboardX", "train", "from dropbn.train import workdir; workdir.log('.', 0).__enter__()"),
    ],
)
def test_a_missing_package_is_a_sentence(package, extra, code, tmp_path):
    done = _without([package], code, tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == f"dropbn.errors.DropbnError: {_sentence(package, extra)}"


@pytest.mark.parametrize(
    ("command", "package", "extra"),
    [
        ("study --config=configs/small.py", "ml_collections", "train"),
        ("report --workdir=.", "ml_collections", "train"),
        ("module-studies --figure=1", "ml_collections", "train"),
        ("prepare digits", "PIL", "data"),
    ],
)
def test_commands_of_an_installation_without_extras(command, package, extra, tmp_path):
    code = f"sys.argv[1:] = {command.split()}; from dropbn import __main__; __main__.main()"
    done = _without(EXTRAS, code, tmp_path)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr == f"error: {_sentence(package, extra)}\n"


def test_the_library_needs_no_extra(tmp_path):
    code = """
import importlib, pkgutil
import dropbn.diagnose, dropbn.models, dropbn.nn
for package in (dropbn.nn, dropbn.models, dropbn.diagnose):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
sys.argv[1:] = ["lint", "flax.linen:BatchNorm", "--input=2,4"]
from dropbn import __main__
__main__.main()
"""
    done = _without(EXTRAS, code, tmp_path)
    assert done.returncode == 0, done.stderr
