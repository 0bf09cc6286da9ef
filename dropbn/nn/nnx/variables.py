"""The variables of a Linen model for an NNX model whose layers have the same names, and back.

Linen keeps `params` and `batch_stats` apart, NNX keeps `Param` and `BatchStat` side by side in each layer.
The path of a leaf is the same: `variables["params"]["conv1"]["kernel"]` is `model.conv1.kernel`.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax import nnx, traverse_util

from dropbn.errors import DropbnError

COLLECTIONS: dict[str, type[nnx.Variable]] = {"params": nnx.Param, "batch_stats": nnx.BatchStat}


def from_linen(variables: Mapping[str, Any], model: nnx.Module) -> dict:
    """What `nnx.update(model, ...)` takes to give `model` the values of `variables`.

    Args:
      variables: of a Linen model. A collection that it lacks, and any but `params` and `batch_stats`, stays
        as it is in `model`.
      model: the NNX model; it is not changed.

    Raises:
      DropbnError: a collection has other paths than `model`, or a leaf another shape.
    """
    updates: dict[tuple, Any] = {}
    for collection in COLLECTIONS.keys() & variables.keys():
        leaves = traverse_util.flatten_dict(nn.unbox(variables[collection]))
        own = _leaves(model, collection)
        by_name = {tuple(map(str, path)): path for path in own}
        odd = sorted("/".join(path) for path in by_name.keys() ^ leaves.keys())
        if odd:
            raise DropbnError(f"{collection}: only one of the two models has {', '.join(odd)}.")
        for name, leaf in leaves.items():
            path = by_name[name]
            if jnp.shape(leaf) != own[path].shape:
                raise DropbnError(
                    f"{collection}: '{'/'.join(name)}' has the shape {jnp.shape(leaf)}, "
                    f"and {own[path].shape} in the NNX model."
                )
            updates[path] = jnp.asarray(leaf)
    return traverse_util.unflatten_dict(updates)


def to_linen(model: nnx.Module) -> dict[str, Any]:
    """The `params` and `batch_stats` of `model` as the variables of a Linen model."""
    found = {}
    for collection in COLLECTIONS:
        leaves = {tuple(map(str, path)): leaf for path, leaf in _leaves(model, collection).items()}
        if leaves:
            found[collection] = traverse_util.unflatten_dict(leaves)
    return found


def _leaves(model, collection):
    """Path -> array."""
    return {path: leaf[...] for path, leaf in nnx.to_flat_state(nnx.state(model, COLLECTIONS[collection]))}
