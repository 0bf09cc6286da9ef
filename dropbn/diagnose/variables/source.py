"""Variables, and the source that they came from."""

import os
import pathlib
import re
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dropbn import writers
from dropbn.diagnose.variables import formats
from dropbn.diagnose.variables.names import Name, listed, named, some
from dropbn.diagnose.variables.search import Search, is_real
from dropbn.diagnose.variables.stored import Format, Key
from dropbn.errors import DropbnError, shown


class Source(NamedTuple):
    """Where variables came from, and how they lay there, so that they go back in the format they came in.

    Attributes:
      path: the path that was given.
      format: the file's.
      step: the name of the step in `path`, if that is a directory of numbered checkpoints.
      keys: for the name of each variable, the key of its array in the file.
      hints: sentences about what was chosen, and about conventions that may differ from Flax's.
    """

    path: pathlib.Path
    format: Format
    step: str
    keys: Mapping[Name, Key]
    hints: tuple[str, ...] = ()


def read(path: str | os.PathLike, like: dict, *, within: str = "") -> tuple[dict, Source]:
    """Reads the variables of a model.

    They are found by their names and shapes wherever they lie in the file: at its top, in a training state,
    or in an `nnx.State`. The state of an optimizer is passed over.

    Args:
      path: a checkpoint of orbax or a directory of numbered ones, of which the newest is read; or a file of
        Flax's msgpack, .safetensors or .npz. The content tells which it is.
      like: variables of the wanted structure and shapes, by collection (arrays or `jax.ShapeDtypeStruct`s).
      within: the part of the file to look in, such as "ema" or "state/params", if it holds several copies.

    Returns:
      (the variables, NumPy arrays in the structure of `like`; their source). An array has the dtype that
      `like` has if that can hold its values, otherwise the file's. Other collections than params and
      batch_stats are left out, with a hint, if the file does not hold them.

    Raises:
      DropbnError: there is no such file, its format is not read, or it is damaged; its arrays do not fit, and
        the message names the paths and shapes that differ; several copies fit; a value is not finite, or a
        variance is negative.
    """
    place = formats.find(path)
    held = formats.opened(place)
    search = Search(held, like, within)
    keys = search.found()
    here = {collection for collection, *_ in keys}
    like = {name: tree for name, tree in like.items() if name in here or not jax.tree.leaves(tree)}
    wanted = named(like)
    arrays = {name: _cast(held[keys[name]], wanted[name].dtype) for name in wanted}
    _check(arrays, place)
    path = pathlib.Path(path)
    source = Source(path, held.format, "" if place == path else place.name, keys, tuple(search.hints))
    return jax.tree.unflatten(jax.tree.structure(like), arrays.values()), source


def write(path: str | os.PathLike, variables: dict, source: Source) -> None:
    """Writes variables in the format and layout of their source; all else that it holds is kept.

    Of a directory of numbered checkpoints, only the one that was read is written.

    Args:
      path: the new place. A file that is there is replaced; a directory is refused.
      variables: in the structure that `read` returned. They are written in the file's dtypes.
      source: from `read`; the file must still be there.

    Raises:
      DropbnError: the variables are not those of the source, or are not finite in its dtypes; the source
        cannot be read, or the new place not be written.
    """
    path, given = pathlib.Path(path), named(variables)
    held = formats.opened(source.path / source.step)
    changed, misfits = {}, []
    for name in sorted(source.keys.keys() | given.keys()):
        if name not in given or name not in source.keys:
            misfits.append(f"{'/'.join(name)}: {'missing' if name not in given else 'not in the file'}")
            continue
        key, new = source.keys[name], np.asarray(given[name])
        old = held[key]
        if new.shape != old.shape:
            misfits.append(f"{'/'.join(name)}: {new.shape}, {old.shape} in the file")
        elif not np.array_equal(old.astype(new.dtype), new):
            with np.errstate(over="ignore"):
                changed[key] = new.astype(old.dtype)
            if is_real(old) and not np.isfinite(changed[key]).all():
                misfits.append(f"{'/'.join(name)}: not finite as {old.dtype}")
    if misfits:
        raise DropbnError(f"These variables do not fit {shown(held.place)}:{listed(misfits)}")
    if source.step:
        if os.path.lexists(path):
            raise DropbnError(f"{shown(path)} exists: give a new path.")
        writers.make_directory(path)
    held.write(path / source.step, changed)


def _cast(array, dtype):
    return array.astype(dtype) if jnp.promote_types(array.dtype, dtype) == dtype else array


def _check(arrays, place):
    """Refuses values that no trained model has."""
    broken = [name for name, array in arrays.items() if is_real(array) and not np.isfinite(array).all()]
    if broken:
        raise DropbnError(
            f"{shown(place)} has values that are not finite in {some(broken)}: training diverged, or the "
            "file is damaged. Give an earlier checkpoint."
        )
    negative = [
        name
        for name, array in arrays.items()
        if name[0] != "params" and re.search(r"var(iance)?$", name[-1]) and (array < 0).any()
    ]
    if negative:
        raise DropbnError(
            f"{shown(place)} has negative variances in {some(negative)}: it keeps something else there, such "
            "as their logarithms, or is damaged. Store the variances."
        )
