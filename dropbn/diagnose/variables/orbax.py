"""Checkpoints of orbax."""

import json
import os
import pathlib
import secrets
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from dropbn import writers
from dropbn.diagnose.variables.stored import Key, Stored, reading, reason
from dropbn.errors import DropbnError, extra, shown

_ARRAYS = ("jax.Array", "np.ndarray", "scalar")  # what orbax calls the leaves that it keeps as arrays


class Orbax(Stored):
    """A checkpoint of orbax: a directory that holds a tree, or several items that hold one each."""

    format = "orbax"

    def _open(self):
        self._leaves = {}
        if not (found := items(self.place)):
            raise DropbnError(f"{shown(self.place)} is no checkpoint of orbax, or was not saved to the end.")
        for item in found:
            about = json.loads((item / "_METADATA").read_text())
            inside = item.relative_to(self.place)
            for leaf in about["tree_metadata"].values():
                if leaf["value_metadata"]["value_type"] in _ARRAYS:
                    keys = tuple(str(each["key"]) for each in leaf["key_metadata"])
                    self._leaves[*inside.parts, *keys] = inside, ".".join(keys), about
        return list(self._leaves)

    def _array(self, key):
        return self._tensor(self.place, key).read().result()

    def shape(self, key: Key) -> jax.ShapeDtypeStruct:
        with reading(self.place):
            tensor = self._tensor(self.place, key)
        return jax.ShapeDtypeStruct(tensor.shape, tensor.dtype.numpy_dtype)

    def _tensor(self, place, key):
        """An array of this checkpoint or of a copy, for tensorstore to read or to write."""
        with extra("train"):
            import tensorstore
        inside, name, about = self._leaves[key]
        item = place.resolve() / inside
        files: dict[str, Any] = {"driver": "file", "path": f"{item}/"}
        if (item / "manifest.ocdbt").exists():
            files = {"driver": "ocdbt", "base": files, "path": ""}
        files["path"] += f"{name}/"
        spec: dict[str, Any] = {"driver": "zarr3" if about.get("use_zarr3") else "zarr", "kvstore": files}
        if about.get("store_array_data_equal_to_fill_value"):  # Then a part that is missing was lost.
            spec["fill_missing_data_reads"] = False
        return tensorstore.open(spec, open=True).result()

    def write(self, path: pathlib.Path, changed: Mapping[Key, np.ndarray]) -> None:
        if os.path.lexists(path):
            raise DropbnError(f"{shown(path)} exists: give a new path for the checkpoint.")
        temporary = path.with_name(f".{secrets.token_hex(8)}{writers.SUFFIX}")
        try:
            writers.make_directory(path.parent)
            shutil.copytree(self.place, temporary)
            for key, array in changed.items():
                self._tensor(temporary, key).write(array).result()
            temporary.rename(path)
        except BaseException as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if isinstance(error, Exception) and not isinstance(error, DropbnError):
                raise DropbnError(f"Cannot write to {shown(path)}: {reason(error)}.") from error
            raise


def items(place: pathlib.Path) -> list[pathlib.Path]:
    """The directories of a checkpoint that hold a tree: the checkpoint itself, or those in it."""
    if (place / "_METADATA").is_file():
        return [place]
    return [each for each in sorted(place.iterdir()) if (each / "_METADATA").is_file()]
