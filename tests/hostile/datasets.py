"""Images and arrays of users that are wrong, and prepared data that was edited."""

import shutil
import struct
import zlib

import numpy as np
from PIL import Image

from tests.hostile import made
from tests.hostile.doors import case
from tests.hostile.ends import Case


def cases() -> list[Case]:
    """All cases of this file."""
    return [*_own(), *_prepared()]


def _own():
    def of(kind, name, make, *flags, may="fail"):
        words = [*made.TRAIN, f"--config.data.name={kind}:{{}}/d", "--config.batch_size=4", *flags]
        return case("data", f"{kind} {name}", words, may, lambda directory: make(directory / "d"))

    yield of(
        "npz", "good", lambda path: made.arrays(path) or (path.parent / "d.npz").rename(path), may="pass"
    )
    yield of("folder", "good", made.images, may="pass")
    image, label = np.zeros((4, 8, 8, 3), np.uint8), np.zeros(4, int)
    changes = {
        "no labels": {"train_labels": None},
        "float images": {"train_images": np.zeros((24, 8, 8, 3))},
        "16 bits": {"train_images": np.zeros((24, 8, 8, 3), np.uint16)},
        "channels first": {"train_images": np.zeros((24, 3, 8, 8), np.uint8)},
        "three axes": {"test_images": image[0]},
        "empty": {"test_images": image[:0], "test_labels": label[:0]},
        "another size": {"test_images": np.zeros((8, 9, 9, 3), np.uint8)},
        "other channels": {"test_images": np.zeros((8, 8, 8, 1), np.uint8)},
        "labels of text": {"train_labels": np.array(["a"] * 24)},
        "labels of floats": {"train_labels": np.zeros(24)},
        "negative labels": {"train_labels": np.arange(24) - 3},
        "large labels": {"train_labels": np.full(24, 2**40)},
        "few labels": {"train_labels": np.zeros(3, int)},
        "labels with an axis": {"train_labels": np.zeros((24, 1), int)},
        "constant images": {"train_images": np.zeros((24, 8, 8, 3), np.uint8)},
        "objects": {"test_labels": np.array([print] * 8, dtype=object)},
        "a missing class": {"train_labels": np.zeros(24, int)},
    }
    for name, change in changes.items():

        def make(path, change=change):
            made.arrays(path, **change)
            path.with_suffix(".npz").rename(path)

        yield of("npz", name, make, may="either" if name == "a missing class" else "fail")
    contents = {
        "nothing": b"",
        "text": b"x" * 999,
        "zip": b"PK\x03\x04" + bytes(99),
        "npy": b"\x93NUMPY\x01\0",
    }
    for name, content in contents.items():
        yield of("npz", name, lambda path, content=content: path.write_bytes(content))
    for name, make in made.INSTEAD.items():
        yield of("npz", name, make)
        yield of("folder", name, make)

    def changed(change):
        def make(path):
            made.images(path)
            change(path)

        return make

    def saved(file, mode="RGB", size=(8, 8), kind="PNG"):
        def change(path):
            (path / file).unlink(missing_ok=True)
            Image.new(mode, size).save(path / file, kind)

        return change

    first = "train/a/0.png"
    folders = {
        "no test": lambda path: shutil.rmtree(path / "test"),
        "no class": lambda path: shutil.rmtree(path / "train/a"),
        "another class": lambda path: (path / "train/a").rename(path / "train/c"),
        "an empty class": lambda path: [file.unlink() for file in (path / "train/a").iterdir()],
        "a nested class": lambda path: (path / "train/a/more").mkdir(),
        "a bitmap": saved("train/a/x.bmp", kind="BMP"),
        "another size": saved(first, size=(9, 8)),
        "grey": saved(first, "L"),
        "16 bits": saved(first, "I;16"),
        "a million pixels wide": saved(first, size=(60_000, 1)),
        "a file beside the classes": saved("train/0.png"),
        "an empty image": lambda path: (path / first).write_bytes(b""),
        "a cut image": lambda path: (path / first).write_bytes((path / first).read_bytes()[:60]),
        "text": lambda path: (path / first).write_text("x" * 500),
        "EPS": lambda path: (path / first).write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 8\n"),
        "an image of a gigapixel": lambda path: (path / first).write_bytes(_gigapixel()),
    }
    for name, change in folders.items():
        may = "either" if name == "grey" else "fail"
        yield of("folder", name, changed(change), may=may)
        if name not in (
            "another size",
            "a million pixels wide",
            "grey",
        ):  # A size of their own makes them fit.
            sized = ("--config.data.image_size=8", "--config.data.resize=8")
            yield of("folder", f"{name}, streamed", changed(change), *sized, may=may)
    for name, make in made.INSTEAD.items():

        def change(path, make=make):
            (path / first).unlink()
            make(path / first)

        yield of("folder", f"{name} as an image", changed(change))


def _gigapixel():
    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", 2**20, 2**20, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(99)))
        + chunk(b"IEND", b"")
    )


def _prepared():
    """The prepared digits, cut, edited or replaced."""

    def empty(file):
        file.write_bytes(b"")

    def cut(file):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    def flip(file):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 255
        file.write_bytes(content)

    changes = {"empty": empty, "cut": cut, "flipped": flip, "missing": lambda file: file.unlink()}
    changes |= {"a directory": lambda file: (file.unlink(), file.mkdir())}
    changes |= {"text": lambda file: file.write_text("x" * 5000)}
    files = (
        "dataset_info.json",
        "features.json",
        "*-train.array_record*",
        "*-test.array_record*",
        "decoded.npz",
    )
    for pattern in files:
        for name, change in changes.items():

            def prepare(directory, pattern=pattern, change=change):
                shutil.copytree(made.root().parent / "data", directory / "data")
                [file] = (directory / "data").glob(f"digits/*/{pattern}")
                change(file)

            words = ["train.py", "--workdir={}/w", *made.MLP, made.SHORT, "--config.data.dir={}/data"]
            yield case("data", f"prepared {pattern} {name}", words, "either", prepare)
