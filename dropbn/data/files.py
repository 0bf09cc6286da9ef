"""One's own images: folders of image files, or an .npz archive of arrays."""

import concurrent.futures
import pathlib

import numpy as np

from dropbn.errors import DropbnError

SUFFIXES = (".png", ".jpg", ".jpeg")
SPLITS = ("train", "test")


def from_folder(path) -> tuple[dict, list[str]]:
    """Reads `path/train/<class>/*.png|jpg` and `path/test/<class>/...`, all images of one size.

    Classes are numbered in the order of their names; files are read in the order of theirs.

    Returns:
      ({"train": (images uint8 (examples, height, width, channels), labels), "test": ...}, class names).

    Raises:
      DropbnError: a missing or empty folder, classes that differ between the splits, a file that is no
        image or has another size or number of channels than the first; the message names it.
    """
    root = pathlib.Path(path).expanduser()
    classes = {split: _class_folders(root / split) for split in SPLITS}
    names = [folder.name for folder in classes["train"]]
    if unpaired := set(names) ^ {folder.name for folder in classes["test"]}:
        raise DropbnError(f"{root}: train and test differ in the classes {', '.join(sorted(unpaired))}.")
    splits = {}
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for split, folders in classes.items():
            files = [(file, label) for label, folder in enumerate(folders) for file in _files(folder)]
            images = list(pool.map(_read, (file for file, _ in files)))
            for (file, _), image in zip(files, images, strict=True):
                if image.shape != images[0].shape:
                    raise DropbnError(
                        f"{file} is {image.shape} (height, width, channels), {files[0][0]} is "
                        f"{images[0].shape}: all images of a folder dataset have one shape."
                    )
            splits[split] = np.stack(images), np.array([label for _, label in files], np.int32)
    return splits, names


def from_npz(path) -> tuple[dict, int]:
    """Reads train_images, train_labels, test_images, test_labels from an .npz; nothing is unpickled.

    Returns:
      ({"train": (images, labels), "test": (images, labels)}, number of classes).

    Raises:
      DropbnError: a file that cannot be read, a missing array, images that are not uint8 (examples,
        height, width, channels), labels that are not as many integers in [0, classes).
    """
    try:
        with np.load(pathlib.Path(path).expanduser(), allow_pickle=False) as file:
            arrays = {
                split: tuple(file[f"{split}_{kind}"] for kind in ("images", "labels")) for split in SPLITS
            }
    except (OSError, ValueError, KeyError) as error:
        raise DropbnError(
            f"Cannot read {path} ({error}): an .npz dataset holds the arrays train_images, train_labels, "
            "test_images and test_labels."
        ) from error
    for split, (images, labels) in arrays.items():
        if images.dtype != np.uint8 or images.ndim != 4 or not len(images):
            raise DropbnError(
                f"{path}: {split}_images is {images.dtype} {images.shape}; images are uint8 (examples, "
                "height, width, channels), at least one."
            )
        if (
            not np.issubdtype(labels.dtype, np.integer)
            or labels.shape != images.shape[:1]
            or labels.min() < 0
        ):
            raise DropbnError(
                f"{path}: {split}_labels is {labels.dtype} {labels.shape}; labels are {len(images)} integers "
                "from 0."
            )
    if arrays["train"][0].shape[1:] != arrays["test"][0].shape[1:]:
        raise DropbnError(f"{path}: training and test images differ in their shape.")
    num_classes = int(arrays["train"][1].max()) + 1
    if arrays["test"][1].max() >= num_classes:
        raise DropbnError(
            f"{path}: test_labels reach {arrays['test'][1].max()}, train_labels {num_classes - 1}."
        )
    return arrays, num_classes


def _class_folders(folder):
    folders = sorted(f for f in folder.iterdir() if f.is_dir()) if folder.is_dir() else []
    if not folders:
        raise DropbnError(
            f"{folder} has no class folders: put the images at {folder}/<class>/*.png or *.jpg."
        )
    return folders


def _files(folder):
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
    if not files:
        raise DropbnError(f"{folder} has no images ({', '.join(SUFFIXES)}).")
    return files


def _read(file):
    from PIL import Image

    try:
        with Image.open(file) as image:
            grey = image.mode in ("1", "L", "I", "I;16", "F", "LA")
            pixels = np.asarray(image.convert("L" if grey else "RGB"))
    except (OSError, SyntaxError, ValueError) as error:  # Pillow raises each of them for broken files.
        raise DropbnError(f"{file} cannot be read as an image: {error}.") from error
    return pixels[..., None] if grey else pixels
