"""Files of arrays: Flax's msgpack, .safetensors and .npz."""

import json
import pathlib
import re
import zipfile
from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import serialization

from dropbn import writers
from dropbn.diagnose.variables.stored import SAVE, Key, Stored, pickled, reading
from dropbn.errors import DropbnError, shown


class Msgpack(Stored):
    """A file of `flax.serialization.to_bytes` or `msgpack_serialize`."""

    format = "msgpack"

    def _open(self):
        self._tree = serialization.msgpack_restore(self.place.read_bytes())
        self._holders: dict[Key, tuple[Any, Any]] = {}
        self._walk(self._tree, ())
        return list(self._holders)

    def _walk(self, node, path):
        """Notes where each array is held: the dict or list, and the key in it."""
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            if isinstance(value, (dict, list)):
                self._walk(value, (*path, str(key)))
            elif isinstance(value, (np.ndarray, np.generic, jnp.ndarray)):
                self._holders[*path, str(key)] = node, key

    def _array(self, key):
        node, last = self._holders[key]
        return np.asarray(node[last])

    def write(self, path: pathlib.Path, changed: Mapping[Key, np.ndarray]) -> None:
        copy = Msgpack(self.place)
        for key, array in changed.items():
            node, last = copy._holders[key]
            node[last] = array
        # In place, because Flax would sort the names otherwise.
        writers.replace(path, serialization.msgpack_serialize(copy._tree, in_place=True))


class Safetensors(Stored):
    """A .safetensors file: the length of a header, the header, which is JSON, and the arrays' bytes."""

    format = "safetensors"
    _names: ClassVar = {"F": "float", "I": "int", "U": "uint"}
    _others: ClassVar = {
        "BOOL": "bool",
        "BF16": "bfloat16",
        "F8_E4M3": "float8_e4m3fn",
        "F8_E5M2": "float8_e5m2",
    }

    def _open(self):
        self._content = self.place.read_bytes()
        self._start = 8 + int.from_bytes(self._content[:8], "little")
        self._header = json.loads(self._content[8 : self._start])
        self._header.pop("__metadata__", None)
        end = max((about["data_offsets"][1] for about in self._header.values()), default=0)
        if self._start + end > len(self._content):
            raise ValueError(f"{self._start + end - len(self._content)} bytes are missing at its end")
        return [(name,) for name in self._header]

    def _array(self, key):
        about = self._header[key[0]]
        kind = about["dtype"]
        dtype = jnp.dtype(self._others.get(kind) or re.sub(r"^[FIU]", lambda m: self._names[m[0]], kind))
        return np.frombuffer(self._content[self._part(key)], dtype).reshape(about["shape"])

    def _part(self, key):
        """Where the bytes of an array are in the file."""
        return slice(*(self._start + offset for offset in self._header[key[0]]["data_offsets"]))

    def write(self, path: pathlib.Path, changed: Mapping[Key, np.ndarray]) -> None:
        content = bytearray(self._content)
        for key, array in changed.items():
            content[self._part(key)] = array.tobytes()
        writers.replace(path, bytes(content))


class Npz(Stored):
    """A file of `numpy.savez` or `numpy.savez_compressed`."""

    format = "npz"
    _end: ClassVar = ".npy"

    def _open(self):
        with zipfile.ZipFile(self.place) as archive:
            names = archive.namelist()
            if any(name.endswith("data.pkl") for name in names):
                raise pickled(self.place)
            if any(name.endswith(".h5") for name in names):
                raise DropbnError(f"{shown(self.place)} is a model of Keras, which is not read. {SAVE}")
            if damaged := archive.testzip():
                raise ValueError(f"{damaged} is not what was saved")
            names = [name.removesuffix(self._end) for name in names if name.endswith(self._end)]
            for name in names:
                with archive.open(name + self._end) as file:
                    if b"'descr': '|O'" in file.read(128):
                        raise DropbnError(
                            f"{shown(self.place)} holds '{name}' as a pickle, which is not read. {SAVE}"
                        )
        return [(name,) for name in names]

    def _array(self, key):
        with zipfile.ZipFile(self.place) as archive, archive.open(key[0] + self._end) as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
        # NumPy writes an array of bfloat16 as one of two bytes without a name.
        return array.view(jnp.bfloat16) if array.dtype == np.dtype("V2") else array

    def write(self, path: pathlib.Path, changed: Mapping[Key, np.ndarray]) -> None:
        with (
            reading(self.place),
            zipfile.ZipFile(self.place) as archive,
            writers.replacing(path) as file,
            zipfile.ZipFile(file, "w") as copy,
        ):
            for info in archive.infolist():
                key = (info.filename.removesuffix(self._end),)
                if key not in changed:
                    copy.writestr(info, archive.read(info))
                    continue
                with copy.open(info, "w", force_zip64=True) as entry:
                    np.lib.format.write_array(entry, changed[key], allow_pickle=False)
