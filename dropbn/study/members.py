"""The members of a study: every cell of a table, with several seeds."""

import importlib.util
import itertools
import pathlib
import re
from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

import ml_collections
from absl import flags
from ml_collections import config_flags

from dropbn.errors import DropbnError


class Member(NamedTuple):
    """A run of a study.

    Attributes:
      cell: as after the colon of --config=configs/study.py:CELL.
      config: of the run.
      directory: its workdir.
    """

    cell: str
    config: ml_collections.ConfigDict
    directory: pathlib.Path

    @property
    def name(self) -> str:
        return f"{self.cell}, seed {self.config.seed}"


def load(file: str) -> ModuleType:
    """A study's config file as a module.

    It has `get_config(cell)`, `sweep(table)` and `TABLES`, and where they make sense `claims(table)`,
    `METRIC` ("accuracy" or "error") and `COMPARABLE`, False where the paper's values are of other networks.

    Raises:
      DropbnError: there is no such file, or it lists no tables.
    """
    if not pathlib.Path(file).is_file() or not file.endswith(".py"):
        raise DropbnError(f"There is no config file {file}.")
    spec = importlib.util.spec_from_file_location(pathlib.Path(file).stem, file)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # A config file is code: whatever it raises.
        raise DropbnError(f"{file} cannot be loaded: {type(error).__name__}: {error}") from error
    if not (hasattr(module, "sweep") and hasattr(module, "TABLES")):
        raise DropbnError(f"{file} has no sweep(table): it is one experiment; train it with train.py.")
    return module


def create(
    file: str, cells: Sequence[str], seeds: int, directory, overrides: Sequence[str] = (), quick: bool = False
) -> list[Member]:
    """The members of a study, seeds 0, 1, ... of each cell.

    Args:
      file: the study's config file.
      cells: what its `get_config` takes.
      seeds: how many of each cell.
      directory: the study's workdir.
      overrides: "--config.field=value", for every member.
      quick: whether each is shrunk for a laptop.

    Raises:
      Exception: what ml_collections and the file raise for a cell or an override that they refuse;
        `dropbn.cli.parsing` makes a sentence of it.
    """
    found = []
    for cell, seed in itertools.product(cells, range(seeds)):
        name = f"{file}:{cell}{',quick' * quick}"
        arguments, values = (
            ["study", f"--config={name}", *overrides, f"--config.seed={seed}"],
            flags.FlagValues(),
        )
        config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
        values(arguments)
        found.append(Member(cell, values["config"].value, directory_of(cell, directory) / f"seed{seed}"))
    return found


def directory_of(cell: str, directory) -> pathlib.Path:
    """Where the members of a cell are kept in a study's workdir, as seed0, seed1, ..."""
    return pathlib.Path(directory, "members", re.sub(r"[^\w.=+]+", "-", cell))
