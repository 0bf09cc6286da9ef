"""Your own images: folders of image files, or an .npz archive of arrays."""

import bisect
import dataclasses
import itertools
import os
import pathlib
import zipfile
from collections.abc import Sequence

import numpy as np

from dropbn.data.splits import Split
from dropbn.errors import DropbnError

SUFFIXES = (".png", ".jpg", ".jpeg")
SPLITS = ("train", "test")
_CHANNELS = (1, 3, 4)
_DEPTH_AT = 24  # where the IHDR chunk of a PNG says its bits a channel
_MOST_PIXELS = 80_000_000  # of an image; Pillow warns of those that are slightly larger.
FORMATS = ("PNG", "JPEG")  # Pillow knows many more, and one of them starts Ghostscript.
# What may lie among images, as notes and what file managers leave. Any other file may be an image that would
# silently be missing.
_NOTES = (".csv", ".db", ".html", ".ini", ".json", ".log", ".md", ".tsv", ".txt", ".xml", ".yaml", ".yml")


def stacked(examples: list[dict]) -> Split:
    """Examples {"image", "label"} as a split."""
    images, labels = ([example[key] for example in examples] for key in ("image", "label"))
    return Split(np.stack(images), np.array(labels, np.int32))


@dataclasses.dataclass(frozen=True)
class Files:
    """Examples in image files. A file is read when its example is asked for.

    Attributes:
      files: the files.
      labels: their classes.
    """

    files: tuple[pathlib.Path, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> dict:
        """The example of a row.

        Raises:
          DropbnError: the file cannot be read as an image; the message names it.
        """
        return {"image": _read(self.files[row]), "label": self.labels[row]}

    def take(self, rows: Sequence[int]) -> Split:
        """The examples of some rows, all images of one shape.

        Raises:
          DropbnError: an image has not the size and channels of the first; the message names it.
        """
        examples = [self[row] for row in rows]  # For small images, threads take several times as long.
        shapes = [example["image"].shape for example in examples]
        for row, shape in zip(rows, shapes, strict=True):
            if shape != shapes[0]:
                raise DropbnError(
                    f"{self.files[row]} is {shape} (height, width, channels), {self.files[rows[0]]} is "
                    f"{shapes[0]}: all images of a folder have one shape, or data.image_size gives them one."
                )
        return stacked(examples)


@dataclasses.dataclass(frozen=True)
class Arrays:
    """Examples in arrays: images uint8 (examples, height, width, channels), and integer labels."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> dict:
        return {"image": self.images[row], "label": int(self.labels[row])}

    def take(self, rows: slice | np.ndarray) -> Split:
        return Split(self.images[rows], self.labels[rows].astype(np.int32))


@dataclasses.dataclass(frozen=True)
class Joined:
    """Examples of several sources, one source after another."""

    sources: tuple[Sequence, ...]

    def __len__(self) -> int:
        return sum(map(len, self.sources))

    def __getitem__(self, row: int) -> dict:
        ends = list(itertools.accumulate(map(len, self.sources)))
        index = bisect.bisect(ends, row)
        return self.sources[index][row - ends[index] + len(self.sources[index])]

    def take(self, rows: Sequence[int]) -> Split:
        """The examples of some rows.

        Raises:
          DropbnError: the images have several shapes.
        """
        examples = [self[row] for row in rows]
        if len(shapes := {example["image"].shape for example in examples}) > 1:
            raise DropbnError(
                f"data.split mixes images of the shapes {sorted(shapes)} (height, width, channels): all "
                "images have one shape, or data.image_size gives them one."
            )
        return stacked(examples)


def from_folder(path: str | os.PathLike) -> tuple[dict[str, Files], int]:
    """Finds `path/train/<class>/*.png|jpg` and `path/test/<class>/...`.

    Classes are numbered in the order of their names. Files are in the order of their names.

    Returns:
      ({"train": Files, "test": Files}, number of classes).

    Raises:
      DropbnError: a folder is missing, empty or unreadable, the splits have different classes, or something
        other than notes lies where it is not read: folders in a class, files beside the classes, other types
        of images. The message names them.
    """
    root = _expanded(path)
    folders = {split: _class_folders(root / split) for split in SPLITS}
    names = {split: {folder.name for folder in found} for split, found in folders.items()}
    if unpaired := names["train"] ^ names["test"]:
        raise DropbnError(f"{root}: train and test differ in the classes {', '.join(sorted(unpaired))}.")
    splits = {}
    for split, found in folders.items():
        pairs = [(file, label) for label, folder in enumerate(found) for file in _files(folder)]
        splits[split] = Files(*zip(*pairs, strict=True))
    return splits, len(folders["train"])


def from_npz(path: str | os.PathLike) -> tuple[dict[str, Arrays], int]:
    """Reads train_images, train_labels, test_images, test_labels from an .npz; nothing is unpickled.

    Returns:
      ({"train": Arrays, "test": Arrays}, number of classes).

    Raises:
      DropbnError: the file cannot be read, an array is missing, images are not uint8 (examples, height,
        width, channels), or labels are not one integer in [0, classes) for each image.
    """
    try:
        _refuse_special(_expanded(path))
        with np.load(_expanded(path), allow_pickle=False) as file:
            # NumPy never reads to the checksum at the end of an array whose header says too little.
            if damaged := file.zip.testzip():
                raise zipfile.BadZipFile(f"{damaged} is damaged")
            arrays = {
                split: tuple(np.asarray(file[f"{split}_{kind}"]) for kind in ("images", "labels"))
                for split in SPLITS
            }
    except Exception as error:  # zipfile, zlib and NumPy raise many kinds for broken files.
        raise DropbnError(
            f"Cannot read {path} ({error}): an .npz dataset holds the arrays train_images, train_labels, "
            "test_images and test_labels."
        ) from error
    for split, (images, labels) in arrays.items():
        if images.dtype != np.uint8 or images.ndim != 4 or not images.size:
            raise DropbnError(
                f"{path}: {split}_images is {images.dtype} {images.shape}; images are uint8 (examples, "
                "height, width, channels), at least one."
            )
        if images.shape[1] in _CHANNELS and images.shape[3] > max(_CHANNELS):
            raise DropbnError(
                f"{path}: {split}_images is {images.shape}, which looks like (examples, channels, height, "
                f"width). Save {split}_images.transpose(0, 2, 3, 1) instead."
            )
        if (
            labels.dtype.kind not in "iu"
            or labels.shape != images.shape[:1]
            or labels.min() < 0
            or labels.max() >= 2**31 - 1
        ):
            raise DropbnError(
                f"{path}: {split}_labels is {labels.dtype} {labels.shape}; labels are {len(images)} integers "
                "from 0, within int32."
            )
    if arrays["train"][0].shape[1:] != arrays["test"][0].shape[1:]:
        raise DropbnError(f"{path}: training and test images differ in their shape.")
    num_classes = int(arrays["train"][1].max()) + 1
    if arrays["test"][1].max() >= num_classes:
        raise DropbnError(
            f"{path}: test_labels reach {arrays['test'][1].max()}, train_labels {num_classes - 1}."
        )
    return {split: Arrays(*pair) for split, pair in arrays.items()}, num_classes


OPENERS = {"folder": from_folder, "npz": from_npz}


def _expanded(path):
    return pathlib.Path(os.path.expanduser(path))  # pathlib's own raises for a user that does not exist.


def _listed(folder):
    try:
        return sorted(folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        raise DropbnError(f"Cannot read the folder {folder}: {error.strerror}.") from error


def _class_folders(folder):
    folders = [f for f in _listed(folder) if f.is_dir() and not f.name.startswith(".")]
    if not folders:
        raise DropbnError(
            f"{folder} has no class folders: put the images at {folder}/<class>/*.png or *.jpg."
        )
    _refuse_unread(folder, folders, "Put the images of each class into its own folder")
    return folders


def _files(folder):
    files = [file for file in _listed(folder) if file.suffix.lower() in SUFFIXES]
    if not files:
        raise DropbnError(f"{folder} has no images ({', '.join(SUFFIXES)}).")
    _refuse_unread(folder, files, "Put PNG and JPEG files directly into the folder of their class")
    return files


def _refuse_unread(folder, read, advice):
    """Raises if a folder holds something, other than notes and hidden files, that is not among the `read`."""
    known = {*read}
    unread = [
        f"{file.name}{'/' * file.is_dir()}"
        for file in _listed(folder)
        if file not in known and file.suffix.lower() not in _NOTES and not file.name.startswith(".")
    ]
    if unread:
        more = f" and {len(unread) - 3} more" if len(unread) > 3 else ""
        raise DropbnError(
            f"{folder} holds what is not read: {', '.join(unread[:3])}{more}. {advice}, or remove it."
        )


def _refuse_special(path):
    """Raises for a pipe, a socket or a device, whose reader may wait forever."""
    if path.exists() and not path.is_file():
        raise OSError("it is not a regular file")


def _open(file):
    from PIL import Image

    _refuse_special(file)
    image = Image.open(file, formats=FORMATS)
    if image.width * image.height > _MOST_PIXELS:
        image.close()
        raise ValueError(f"{image.width} x {image.height} pixels are more than {_MOST_PIXELS:,}")
    if image.format != "PNG":
        return image
    with image:
        image.verify()  # It compares the checksums, which decoding does not; then the file must be reopened.
    return Image.open(file, formats=FORMATS)


def _bits(file):
    """The bits a channel of a PNG. Pillow does not say them: it reads the upper eight of sixteen."""
    with open(file, "rb") as opened:
        return opened.read(_DEPTH_AT + 1)[_DEPTH_AT]


def _read(file):
    try:
        with _open(file) as image:
            mode = image.mode
            is_deep = mode.startswith(("I", "F")) or (image.format == "PNG" and _bits(file) > 8)
            grey = mode in ("1", "L", "LA")
            pixels = np.asarray(image.convert("L" if grey else "RGB"))
    except Exception as error:  # Pillow raises many kinds for broken files.
        raise DropbnError(f"{file} cannot be read as an image (PNG or JPEG): {error}.") from error
    if is_deep:
        raise DropbnError(f"{file} has more than 8 bits a channel ({mode}): convert it to 8.")
    return pixels[..., None] if grey else pixels
