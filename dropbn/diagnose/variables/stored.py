"""What every format has: arrays that are read by name, and written with some of them changed."""

import abc
import contextlib
import pathlib
from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

import jax
import numpy as np

from dropbn.errors import DropbnError, shown

Key = tuple[str, ...]
Format = Literal["orbax", "msgpack", "safetensors", "npz"]
SAVE = (
    "Load it where it was written, and save its arrays under the model's names, as .safetensors or by "
    "numpy.savez(path, **{'params/Conv_0/kernel': array, ...})."
)


class Stored(abc.ABC):
    """The arrays of a file or of a checkpoint.

    Attributes:
      place: the file or the directory.
      keys: the names of the arrays. In a file without a tree, a name is a tuple of one string.
    """

    format: ClassVar[Format]

    def __init__(self, place: pathlib.Path) -> None:
        """Finds the names.

        Raises:
          DropbnError: the file is damaged, or it keeps its arrays in a way that is not read.
        """
        self.place = place
        with reading(place):
            self.keys = self._open()

    def __getitem__(self, key: Key) -> np.ndarray:
        """An array.

        Raises:
          DropbnError: it cannot be read.
        """
        with reading(self.place):
            return self._array(key)

    def shape(self, key: Key) -> jax.ShapeDtypeStruct:
        """An array's shape and dtype.

        Raises:
          DropbnError: as for the array.
        """
        array = self[key]
        return jax.ShapeDtypeStruct(array.shape, array.dtype)

    @abc.abstractmethod
    def write(self, path: pathlib.Path, changed: Mapping[Key, np.ndarray]) -> None:
        """Writes all that is stored here to another place, with some arrays changed.

        Args:
          path: the new place. A file that is there is replaced; a directory is refused.
          changed: arrays of the shapes and dtypes of those that they replace.

        Raises:
          DropbnError: it cannot be written.
        """

    @abc.abstractmethod
    def _open(self) -> list[Key]:
        """Prepares reading, and returns the names."""

    @abc.abstractmethod
    def _array(self, key: Key) -> np.ndarray:
        """An array; any error means that the file is damaged."""


def pickled(place: pathlib.Path) -> DropbnError:
    """The error for a file that is a pickle."""
    return DropbnError(
        f"{shown(place)} is a pickle, as PyTorch writes it (.pt, .pth, .pkl, .ckpt), which can run any "
        f"program and is not read. {SAVE}"
    )


@contextlib.contextmanager
def reading(place: pathlib.Path) -> Iterator[None]:
    """Turns any error in reading into a sentence."""
    try:
        yield
    except DropbnError:
        raise
    except Exception as error:  # A damaged file fails in as many ways as there are formats.
        raise DropbnError(
            f"{shown(place)} cannot be read ({reason(error)}). If it is damaged or was cut short, save or "
            "copy it again."
        ) from error


def reason(error: Exception) -> str:
    """The system's text if the error has one, otherwise the start of its message."""
    lines = str(getattr(error, "strerror", None) or error).strip().splitlines() or [type(error).__name__]
    return lines[0] if len(lines[0]) <= 200 else lines[0][:197] + "..."
