"""The members of a study: the runs of every cell of a table, one for each seed."""

import importlib.util
import itertools
import os
import pathlib
import re
from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

import ml_collections
from absl import flags
from ml_collections import config_flags

from dropbn import failures
from dropbn.errors import DropbnError


class Member(NamedTuple):
    """A member of a study: one run of a cell, with one seed.

    Attributes:
      cell: the cell, as after the colon of --config=configs/study.py:CELL.
      config: the config of the run.
      directory: the workdir of the run.
    """

    cell: str
    config: ml_collections.ConfigDict
    directory: pathlib.Path

    @property
    def name(self) -> str:
        return f"{self.cell}, seed {self.config.seed}"


def load(file: str) -> ModuleType:
    """A study's config file as a module.

    The module has `get_config(cell)`, `sweep(table)` and `TABLES`. It may have `claims(table)`, `METRIC`
    ("accuracy" or "error") and `COMPARABLE`, which is False if the paper's values belong to other networks.

    Raises:
      DropbnError: the file does not exist or has no tables.
    """
    if not pathlib.Path(file).is_file() or not file.endswith(".py"):
        raise DropbnError(f"There is no config file {file}; name one in --config=FILE:TABLE.")
    spec = importlib.util.spec_from_file_location(pathlib.Path(file).stem, file)
    assert spec and spec.loader  # Every .py file has a loader.
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # A config file is code: whatever it raises.
        raise DropbnError(f"{file} cannot be loaded: {failures.sentence(error)}") from error
    if not (hasattr(module, "sweep") and hasattr(module, "TABLES")):
        raise DropbnError(
            f"{file} has no sweep(table), so it is a single experiment: train it with train.py."
        )
    return module


def create(
    file: str,
    cells: Sequence[str],
    seeds: int,
    directory: str | os.PathLike,
    overrides: Sequence[str] = (),
    quick: bool = False,
) -> list[Member]:
    """The members of a study, with seeds 0, 1, ... for each cell.

    Args:
      file: the study's config file.
      cells: cells that its `get_config` takes.
      seeds: how many seeds each cell has.
      directory: the study's workdir.
      overrides: "--config.field=value" for every member.
      quick: whether each member is shrunk for a laptop.

    Raises:
      Exception: whatever ml_collections and the file raise for a cell or an override that they refuse;
        `dropbn.cli.parsing` turns it into a sentence.
    """
    found = []
    for cell, seed in itertools.product(cells, range(seeds)):
        name = f"{file}:{cell}{',quick' * quick}"
        arguments = ["study", f"--config={name}", *overrides, f"--config.seed={seed}"]
        values = flags.FlagValues()
        config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
        values(arguments)
        found.append(Member(cell, values["config"].value, directory_of(cell, directory) / f"seed{seed}"))
    return found


def directory_of(cell: str, directory: str | os.PathLike) -> pathlib.Path:
    """The directory of a cell in a study's workdir; its members are seed0, seed1, ... in it."""
    return pathlib.Path(directory, "members", re.sub(r"[^\w.=+]+", "-", cell))
