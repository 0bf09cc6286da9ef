"""Writers of files. A reader finds the old file or the new one, whatever happens to the writer."""

import contextlib
import os
import pathlib
import secrets
import stat
from collections.abc import Iterator
from typing import BinaryIO

from dropbn.errors import DropbnError

SUFFIX = ".tmp"  # of what a kill can leave behind


def replace(path: str | os.PathLike, content: str | bytes) -> None:
    """Writes a file, in place of the one that may be there. A text is written in UTF-8.

    Raises:
      DropbnError: as `replacing`.
    """
    # A text may contain file names, which need not be valid UTF-8.
    data = content if isinstance(content, bytes) else content.encode("utf-8", errors="replace")
    with replacing(path) as file:
        file.write(data)


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Opens a new file, which takes the place of `path` once its content is on the disk.

    Until then it stands beside `path` under a name that no other process uses. After an exception, `path` is
    as it was.

    Raises:
      DropbnError: the file cannot be written, or `path` is no regular file.
    """
    path = pathlib.Path(path)
    refuse_special(path)
    temporary = path.with_name(f".{secrets.token_hex(8)}{SUFFIX}")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise DropbnError(f"Cannot write to {path}: {error.strerror or error}.") from error
        raise


def make_directory(path: str | os.PathLike) -> pathlib.Path:
    """Makes a directory and those above it, where they do not exist; returns it.

    Raises:
      DropbnError: it cannot be made, for example because a file is in its place.
    """
    path = pathlib.Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DropbnError(f"Cannot make the directory {path}: {error.strerror}.") from error
    return path


def make_part(directory: str | os.PathLike, name: str) -> pathlib.Path:
    """Makes the directory `name` of a workdir, where it does not exist; returns it.

    Raises:
      DropbnError: as `make_directory`; it is a link, which may lead anywhere.
    """
    path = pathlib.Path(directory, name)
    if path.is_symlink():
        raise DropbnError(f"Cannot write to {path}: it is a symbolic link, not a directory of its workdir.")
    return make_directory(path)


def refuse_special(path: str | os.PathLike) -> None:
    """Raises unless `path` is a regular file, or nothing yet.

    A device or a pipe in its place would be replaced, and a link may lead anywhere.
    """
    try:
        mode = os.lstat(path).st_mode
    except OSError:  # Writing will say what is wrong, if anything is.
        return
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a directory", stat.S_IFLNK: "a symbolic link", stat.S_IFIFO: "a pipe"}
        kind = kinds.get(stat.S_IFMT(mode), "a device or a socket")
        raise DropbnError(f"Cannot write to {path}: it is {kind}, not a regular file.")
