"""One's own images: exactly those that were given, and errors that name the file."""

import os
import socket
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from configs import base
from dropbn import data
from dropbn.data import files
from dropbn.errors import DropbnError

RNG = np.random.default_rng(0)


def _load(name):
    config = base.get_config().data
    config.name = str(name)
    return data.load(config)


def _folder(root, channels=3, sizes=(("train", 5), ("test", 2)), classes=("zebra crossing", "äpfel")):
    """Writes random PNGs; returns them by split as (class name, pixels) in the order of the names."""
    written = {}
    for split, number in sizes:
        for name in sorted(classes):
            (root / split / name).mkdir(parents=True)
            for i in range(number):
                pixels = RNG.integers(0, 256, (6, 7, channels)).astype(np.uint8)
                Image.fromarray(pixels.squeeze()).save(root / split / name / f"{i}.png")
                written.setdefault(split, []).append((name, pixels))
    return written


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_gives_exactly_its_images(tmp_path, channels):
    written = _folder(tmp_path / "my images", channels)
    for name in ("notes.txt", ".DS_Store", "Thumbs.db"):
        (tmp_path / "my images" / "train" / "äpfel" / name).write_text("no image")
    (tmp_path / "my images" / "train" / ".hidden").mkdir()
    found = _load(f"folder:{tmp_path / 'my images'}")
    assert found.num_classes == 2
    for split in ("train", "test"):
        images, labels = getattr(found, split)
        assert images.dtype == np.uint8 and labels.dtype == np.int32
        np.testing.assert_array_equal(images, [pixels for _, pixels in written[split]])
        np.testing.assert_array_equal(
            labels, [("zebra crossing", "äpfel").index(n) for n, _ in written[split]]
        )
    pixels = np.array([pixels for _, pixels in written["train"]], np.float64) / 255
    np.testing.assert_allclose(found.mean, pixels.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(found.std, pixels.std((0, 1, 2)), rtol=1e-6)


def _png(depth, color, rows):
    """A PNG of 7 x 6 pixels, by hand: Pillow writes no colours of 16 bits."""

    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 7, 6, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def _break(root, how):
    image = root / "train" / "äpfel" / "3.png"
    if how == "corrupt":
        image.write_bytes(image.read_bytes()[:40])
    elif how == "no image":
        image.write_bytes(b"hello")
    elif how == "size":
        Image.fromarray(np.zeros((6, 6, 3), np.uint8)).save(image)
    elif how == "deep":
        Image.fromarray(np.zeros((6, 7), np.uint16)).save(image)
    elif how == "deep colour":
        image.write_bytes(_png(16, 2, bytes(6 * (1 + 7 * 6))))
    elif how == "nested":
        (root / "train" / "äpfel" / "red").mkdir()
        Image.fromarray(np.zeros((6, 7, 3), np.uint8)).save(root / "train" / "äpfel" / "red" / "9.png")
    elif how == "another type":
        for i in range(5):
            Image.fromarray(np.zeros((6, 7, 3), np.uint8)).save(root / "test" / "äpfel" / f"{i}.webp")
    elif how == "beside the classes":
        Image.fromarray(np.zeros((6, 7, 3), np.uint8)).save(root / "test" / "9.png")
    elif how == "channels":
        Image.fromarray(np.zeros((6, 7), np.uint8)).save(image)
    elif how == "class":
        (root / "test" / "äpfel").rename(root / "test" / "birnen")
    elif how == "empty":
        for file in (root / "test" / "äpfel").iterdir():
            file.unlink()
    elif how == "split":
        (root / "test").rename(root / "val")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("corrupt", "äpfel/3.png cannot be read as an image"),
        ("no image", "äpfel/3.png cannot be read as an image"),
        ("size", r"äpfel/3.png is \(6, 6, 3\)"),
        ("deep", r"äpfel/3.png has more than 8 bits a channel \(I;16\)"),
        ("deep colour", r"äpfel/3.png has more than 8 bits a channel \(RGB\)"),
        ("nested", r"train/äpfel holds what is not read: red/\. Put PNG and JPEG files directly"),
        ("another type", r"test/äpfel holds what is not read: 0.webp, 1.webp, 2.webp and 2 more\."),
        ("beside the classes", r"test holds what is not read: 9.png\. Put the images of each class"),
        ("channels", r"äpfel/3.png is \(6, 7, 1\)"),
        ("class", "differ in the classes birnen, äpfel"),
        ("empty", "test/äpfel has no images"),
        ("split", "test has no class folders"),
    ],
)
def test_broken_folders(tmp_path, how, message):
    _folder(tmp_path)
    _break(tmp_path, how)
    with pytest.raises(DropbnError, match=message):
        _load(f"folder:{tmp_path}")


@pytest.mark.parametrize("kind", ["pipe", "socket", "large"])
def test_what_would_wait_forever_or_take_all_memory(tmp_path, kind, monkeypatch):
    _folder(tmp_path / "d")
    image = tmp_path / "d" / "train" / "äpfel" / "3.png"
    if kind == "large":
        monkeypatch.setattr(files, "_MOST_PIXELS", 6 * 7 - 1)
    else:
        image.unlink()
        if kind == "pipe":
            os.mkfifo(image)
        else:
            monkeypatch.chdir(image.parent)
            with socket.socket(socket.AF_UNIX) as listening:
                listening.bind(image.name)
    reason = "7 x 6 pixels are more than 41" if kind == "large" else "it is not a regular file"
    with pytest.raises(DropbnError, match=rf"\.png cannot be read as an image \(PNG or JPEG\): {reason}"):
        _load(f"folder:{tmp_path / 'd'}")


def test_an_archive_that_is_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "d.npz")
    with pytest.raises(DropbnError, match=r"Cannot read .*d\.npz \(it is not a regular file\)"):
        _load(f"npz:{tmp_path / 'd.npz'}")


def _arrays(**changes):
    arrays = {
        "train_images": RNG.integers(0, 256, (9, 4, 4, 2)).astype(np.uint8),
        "train_labels": np.arange(9) % 3,
        "test_images": RNG.integers(0, 256, (4, 4, 4, 2)).astype(np.uint8),
        "test_labels": np.array([2, 1, 0, 2], np.uint8),
    }
    return {k: v for k, v in {**arrays, **changes}.items() if v is not None}


def test_an_npz_gives_exactly_its_arrays(tmp_path):
    arrays = _arrays()
    np.savez(tmp_path / "d.npz", **arrays)
    found = _load(f"npz:{tmp_path / 'd.npz'}")
    assert found.num_classes == 3
    for split in ("train", "test"):
        np.testing.assert_array_equal(getattr(found, split).images, arrays[f"{split}_images"])
        np.testing.assert_array_equal(getattr(found, split).labels, arrays[f"{split}_labels"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_labels": None}, "holds the arrays"),
        ({"test_labels": np.array([object()] * 4)}, "holds the arrays"),  # would have to be unpickled
        ({"train_images": np.zeros((9, 4, 4, 2), np.float32)}, "train_images is float32"),
        ({"test_images": np.zeros((4, 4, 4), np.uint8)}, "test_images is uint8 .4, 4, 4."),
        ({"test_images": np.zeros((4, 5, 5, 2), np.uint8)}, "differ in their shape"),
        ({"train_images": np.zeros((9, 3, 8, 8), np.uint8)}, r"Save train_images.transpose\(0, 2, 3, 1\)"),
        ({"train_images": np.zeros((9, 1, 28, 28), np.uint8)}, "looks like .examples, channels, height"),
        ({"train_labels": np.arange(8)}, "labels are 9 integers"),
        ({"train_labels": np.arange(9) - 1}, "labels are 9 integers"),
        ({"train_labels": np.zeros(9)}, "labels are 9 integers"),
        ({"test_labels": np.full(4, 3)}, "test_labels reach 3, train_labels 2"),
        ({"train_images": np.zeros((9, 4, 4, 2), np.uint8)}, "is constant"),
    ],
)
def test_broken_archives(tmp_path, changes, message):
    np.savez(tmp_path / "d.npz", **_arrays(**changes))
    with pytest.raises(DropbnError, match=message):
        _load(f"npz:{tmp_path / 'd.npz'}")


def test_what_is_not_there(tmp_path):
    with pytest.raises(DropbnError, match="Cannot read"):
        _load(f"npz:{tmp_path / 'd.npz'}")
    with pytest.raises(DropbnError, match="has no class folders"):
        _load(f"folder:{tmp_path / 'missing'}")
    with pytest.raises(DropbnError, match=r"Known: digits, mnist, .*, folder:PATH, npz:PATH"):
        _load("folders:here")
