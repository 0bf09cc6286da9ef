"""Readers of text, JSON and JSON lines: files that anybody may have edited, cut or replaced."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from dropbn.errors import DropbnError, shown

# A type, several types, or a list of one of these for a list whose elements are of it.
Kinds = type | tuple[type, ...] | list
NUMBER = (int, float)


def read_text(file: str | os.PathLike) -> str:
    """The text of a file.

    Raises:
      DropbnError: there is none; it is a directory, a device or a pipe, which may never end; it cannot be
        read or is not text in UTF-8.
    """
    path = pathlib.Path(file)
    try:
        if path.exists() and not path.is_file():
            raise DropbnError(f"{shown(path)} is not a regular file.")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DropbnError(f"Cannot read {shown(path)}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise DropbnError(f"{shown(path)} is not text in UTF-8 (byte {error.start}).") from error


def read_json(file: str | os.PathLike, fields: Mapping[str, Kinds] | None = None) -> dict:
    """The JSON object in a file.

    Args:
      file: the file.
      fields: the types of the fields that it must have. A dot leads inwards: {"model.depth": int}.

    Raises:
      DropbnError: as `read_text`; it is not JSON, not an object, or lacks a field of that type.
    """
    found = _object(read_text(file), shown(file))
    check_fields(found, fields or {}, shown(file))
    return found


def read_json_lines(file: str | os.PathLike, fields: Mapping[str, Kinds] | None = None) -> list[dict]:
    """The JSON objects in a file, one a line, without a last line that a kill has cut short.

    Args:
      file: the file; without it there are no objects.
      fields: as in `read_json`, for every line.

    Raises:
      DropbnError: as `read_json`; the message names the line.
    """
    if not os.path.exists(file):
        return []
    text, found = read_text(file), []
    for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), 1):
        where = f"{shown(file)}, line {number}"
        found.append(_object(line, where))
        check_fields(found[-1], fields or {}, where)
    return found


def check_fields(found: dict, fields: Mapping[str, Kinds], where: str) -> None:
    """Raises for the first of `fields` that an object lacks or has with another type."""
    for name, kinds in fields.items():
        value: Any = found
        for key in name.split("."):
            if not isinstance(value, dict) or key not in value:
                raise DropbnError(f"{where} has no field {name!r}.")
            value = value[key]
        if not is_a(value, kinds):
            raise DropbnError(f"{where}: {name!r} is {shown(repr(value))}, not {_name(kinds)}.")


def is_a(value: Any, kinds: Kinds) -> bool:
    """Whether a value has one of the types; a bool is no number here, though it is one in Python."""
    if isinstance(kinds, list):
        return isinstance(value, (list, tuple)) and all(is_a(each, kinds[0]) for each in value)
    wanted = kinds if isinstance(kinds, tuple) else (kinds,)
    return isinstance(value, wanted) and (not isinstance(value, bool) or bool in wanted)


def _name(kinds):
    if isinstance(kinds, list):
        return f"a list, each element {_name(kinds[0])}"
    if isinstance(kinds, tuple):
        return " or ".join(kind.__name__ for kind in kinds)
    return kinds.__name__


def _object(text, where):
    try:
        found = json.loads(text)
    except RecursionError as error:
        raise DropbnError(f"{where} is not valid JSON of ours: it is nested too deeply.") from error
    except ValueError as error:
        raise DropbnError(f"{where} is not valid JSON: {error}.") from error
    if not isinstance(found, dict):
        raise DropbnError(f"{where} does not hold a JSON object.")
    return found
