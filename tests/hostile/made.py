"""What the cases start from, made once: a run with its evaluation, a study with its table, and data."""

import json
import os
import pathlib
import shutil
from collections.abc import Callable

import numpy as np
from PIL import Image

from tests.hostile import doors

MLP = (
    "--config.model.name=mlp",
    "--config.model.depth=1",
    "--config.model.width=8",
    "--config.model.block=dense drop bn relu",
    "--config.model.head=dense",
    "--config.eval.train_examples=100",
    "--config.batch_size=64",
)
LONG = "x" * 20_000
SHORT = "--config.duration=2 epochs"
TRAIN = ("train.py", "--workdir={}/w", *MLP, SHORT)
STUDY = ("dropbn", "study", "--config=configs/small.py:digits", "--seeds=1", "--only=place=P4")
MEMBER = (
    "--config.model.name=mlp",
    "--config.model.depth=1",
    "--config.model.width=8",
    "--config.model.block=bn relu dense",
    "--config.model.head=dense",
    "--config.duration=2 epochs",
    "--config.eval.train_examples=100",
)


def root() -> pathlib.Path:
    """Where it was made."""
    return pathlib.Path(os.environ["HOSTILE_ROOT"], "made")


def make(directory: pathlib.Path) -> None:
    """Makes everything."""
    directory.mkdir()
    images(directory / "folder")
    arrays(directory / "arrays.npz")
    run, study = directory / "run", directory / "study"
    for words in (
        ["train.py", f"--workdir={run}", *MLP, SHORT],
        ["eval.py", f"--workdir={run}"],
        ["dropbn", "report", f"--workdir={run}"],
        [*STUDY, f"--workdir={study}", *MEMBER],
        [*STUDY, f"--workdir={study}", *MEMBER, "--collect"],  # It draws fewer figures.
        ["dropbn", "report", f"--workdir={study}"],
    ):
        ended = doors.run(words, directory)
        assert ended.status == 0, ended
    os.chmod(directory.parent, 0o755)


def copy(name: str, directory: pathlib.Path) -> pathlib.Path:
    """A copy of what was made under that name, in a directory; returns it."""
    source, to = root() / name, directory / name
    if source.is_dir():
        shutil.copytree(source, to)
    else:
        shutil.copy(source, to)
    return to


def edit(file: pathlib.Path, **fields) -> None:
    """Changes fields of a JSON file; a dot leads inwards as __."""
    tree = json.loads(file.read_text())
    for name, value in fields.items():
        *outer, last = name.split("__")
        inner = tree
        for key in outer:
            inner = inner[key]
        inner[last] = value
    file.write_text(json.dumps(tree))


def images(directory: pathlib.Path) -> None:
    """A folder of 24 training and 8 test images of two classes."""
    draw = np.random.default_rng(0)
    for split, number in (("train", 12), ("test", 4)):
        for label in "ab":
            (directory / split / label).mkdir(parents=True)
            for i in range(number):
                pixels = draw.integers(0, 256, (8, 8, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(directory / split / label / f"{i}.png")


def arrays(file: pathlib.Path, **changes) -> None:
    """An archive of 24 training and 8 test images; `changes` are further arrays, or None to leave one out."""
    draw = np.random.default_rng(0)
    found = {
        "train_images": draw.integers(0, 256, (24, 8, 8, 3)).astype(np.uint8),
        "train_labels": np.arange(24) % 2,
        "test_images": draw.integers(0, 256, (8, 8, 8, 3)).astype(np.uint8),
        "test_labels": np.arange(8) % 2,
    }
    np.savez(file, **{name: array for name, array in (found | changes).items() if array is not None})


# What may stand in the place of a file.
INSTEAD: dict[str, Callable[[pathlib.Path], object]] = {
    "a directory": lambda path: path.mkdir(),
    "a pipe": os.mkfifo,
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "a link to /etc/passwd": lambda path: path.symlink_to("/etc/passwd"),
}
