"""Which file a path means, and which format it has."""

import os
import pathlib
import re

from dropbn.diagnose.variables.files import Msgpack, Npz, Safetensors
from dropbn.diagnose.variables.orbax import Orbax, items
from dropbn.diagnose.variables.stored import SAVE, Stored, pickled, reading
from dropbn.errors import DropbnError, shown


def find(path: str | os.PathLike) -> pathlib.Path:
    """The file or the step that a path means: in a directory of numbered checkpoints, the newest.

    Raises:
      DropbnError: there is no checkpoint.
    """
    place = pathlib.Path(path)
    if "://" in os.fspath(path):
        raise DropbnError(f"{shown(path)} is not on this machine: copy it here and give the copy's path.")
    with reading(place):
        if not place.exists():
            raise DropbnError(
                f"There is no {shown(place)}: give the path of a checkpoint or of a file of arrays."
            )
        if not place.is_dir() or items(place):
            return place
        names = sorted(os.listdir(place))
    steps = [name for name in names if re.fullmatch(r"(.*_)?\d+", name)]
    if not steps:
        held = f"holds {', '.join(names[:8])}{', ...' * (len(names) > 8)}" if names else "is empty"
        raise DropbnError(
            f"{shown(place)} is no checkpoint of orbax and no directory of numbered ones; it {held}. Give "
            "the directory that orbax wrote."
        )
    return place / max(steps, key=lambda name: int(re.findall(r"\d+", name)[-1]))


def opened(place: pathlib.Path) -> "Stored":
    """What is stored in a place that `find` found. The content tells the format, not the name.

    Raises:
      DropbnError: it has another format, or it is damaged.
    """
    if place.is_dir():
        return Orbax(place)
    if not place.is_file():
        raise DropbnError(f"{shown(place)} is not there, or is no regular file.")
    with reading(place), place.open("rb") as file:
        start = file.read(16)
    if not start:
        raise DropbnError(f"{shown(place)} is empty: save or copy it again.")
    if start.startswith(b"\x89HDF"):
        raise DropbnError(f"{shown(place)} is an HDF5 file (.h5), which is not read. {SAVE}")
    if start[0] == 0x80 and start[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        raise pickled(place)
    if start.startswith(b"PK"):
        return Npz(place)
    if start[5:9] == b"\0\0\0{":  # the end of the header's length, and the header
        return Safetensors(place)
    if 0x80 < start[0] <= 0x8F or start[0] in (0xDE, 0xDF):  # A map begins so.
        return Msgpack(place)
    raise DropbnError(
        f"{shown(place)} has none of the formats that are read: checkpoints of orbax, Flax's msgpack, "
        f".safetensors and .npz. {SAVE}"
    )
