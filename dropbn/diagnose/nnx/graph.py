"""An NNX model taken apart into what a trace is built from and its variables, and put together again."""

import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from flax.core import unfreeze
from flax.traverse_util import flatten_dict, unflatten_dict

from dropbn.diagnose.registry import OURS
from dropbn.diagnose.tracing import MissingKey, Path, name_of
from dropbn.errors import DropbnError


class Leaf(NamedTuple):
    """An array of a model.

    Attributes:
      place: its path in the graph, whose keys may be numbers.
      collection: "params", "batch_stats" or, of any other array, "state".
      shape: its shape and dtype.
    """

    place: tuple
    collection: str
    shape: jax.ShapeDtypeStruct

    @property
    def name(self) -> Path:
        """Its path in the variables."""
        return self.collection, *map(str, self.place)


class Stream(NamedTuple):
    """A key or a count of a random stream: its path in the graph, tag, shape, and whether it is the key."""

    place: tuple
    tag: str
    shape: tuple[int, ...]
    is_key: bool


class Skeleton(NamedTuple):
    """A model without the values of its arrays; it has a hash if its attributes have one."""

    kind: type
    graph: Any
    leaves: tuple[Leaf, ...]
    streams: tuple[Stream, ...]

    @property
    def shapes(self) -> dict:
        """Of the variables."""
        return unflatten_dict({leaf.name: leaf.shape for leaf in self.leaves})

    def merge(self, variables: Mapping, rngs: Mapping[str, jax.Array]) -> nnx.Module:
        """A copy of the model with these variables, whose streams have the keys that `stream_key` gives.

        Raises:
          DropbnError: variables that do not fit.
        """
        flat = flatten_dict(unfreeze(dict(variables)))
        state = []
        for leaf in self.leaves:
            if leaf.name not in flat or jnp.shape(flat[leaf.name]) != leaf.shape.shape:
                found = f"has shape {jnp.shape(flat[leaf.name])}" if leaf.name in flat else "is missing"
                raise DropbnError(
                    f"The variables do not fit the model: '{'/'.join(leaf.name)}' {found}, and that of the "
                    f"model has shape {leaf.shape.shape}."
                )
            state.append((leaf.place, flat[leaf.name]))
        for place, tag, shape, is_key in self.streams:
            key = stream_key(rngs, tag, place, shape) if is_key else jnp.zeros(shape, jnp.uint32)
            state.append((place, key))
        model = nnx.merge(self.graph, nnx.from_flat_state(state))
        for tag in {stream.tag for stream in self.streams}:
            if _chosen(rngs, tag) is None:
                without_keys(model, tag)
        return model


def split(model: nnx.Module) -> tuple[Skeleton, dict]:
    """A model taken apart: its skeleton and its variables, by collection. Random keys are in neither."""
    graph, state = nnx.split(model)
    leaves, streams, values = [], [], {}
    for place, variable in nnx.to_flat_state(state):
        if str(place[-1]).startswith(OURS):  # in a copy that runs
            continue
        value = value_of(variable)
        if isinstance(variable, nnx.RngState):
            streams.append(Stream(place, variable.tag, value.shape, isinstance(variable, nnx.RngKey)))
            continue
        kinds = {nnx.Param: "params", nnx.BatchStat: "batch_stats"}
        found = (name for kind, name in kinds.items() if isinstance(variable, kind))
        leaf = Leaf(place, next(found, "state"), jax.ShapeDtypeStruct(jnp.shape(value), value.dtype))
        leaves.append(leaf)
        values[leaf.name] = value
    return Skeleton(type(model), graph, tuple(leaves), tuple(streams)), unflatten_dict(values)


def put_statistics(model: nnx.Module, batch_stats: Mapping) -> nnx.Module:
    """Puts running statistics into the model, which is returned.

    Raises:
      DropbnError: statistics that do not fit the model, which is then left as it was.
    """
    flat = {tuple(path): value for path, value in flatten_dict(unfreeze(dict(batch_stats))).items()}
    own = {tuple(map(str, p)): v for p, v in nnx.to_flat_state(nnx.state(model, nnx.BatchStat))}
    if own.keys() != flat.keys() or any(jnp.shape(flat[p]) != jnp.shape(value_of(v)) for p, v in own.items()):
        raise DropbnError("The statistics are not those of this model: take them for the model itself.")
    places = nnx.to_flat_state(nnx.state(model, nnx.BatchStat))
    nnx.update(model, nnx.from_flat_state([(p, v.replace(flat[tuple(map(str, p))])) for p, v in places]))
    return model


def stream_key(
    rngs: Mapping[str, jax.Array], tag: str, place: tuple, shape: tuple[int, ...] = ()
) -> jax.Array:
    """The key of one stream: that of its tag, or else of "dropout", with the stream's place folded in.

    Every nnx.Dropout has a stream of its own, and the tag alone would give all of them the same key. The
    keys of stacked layers are split along their axes. A stream without a key gets a constant one, and must
    not be drawn from.
    """
    key = _chosen(rngs, tag)
    key = jax.random.key(0) if key is None else key
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    key = jax.random.fold_in(key, zlib.crc32("/".join(map(str, place)).encode()))
    return jax.random.split(key, shape) if shape else key


def streams_for_call(rngs: Mapping[str, jax.Array]) -> nnx.Rngs:
    """Streams for a model that takes `rngs` at the call."""
    keys = {tag: stream_key(rngs, tag, ("call", tag)) for tag in {**rngs, "default": None}}
    made = nnx.Rngs(**keys)
    if not rngs:
        object.__setattr__(made["default"], "__class__", _Keyless)
        object.__setattr__(made["default"], "_place", "rngs")
    return made


def without_keys(model: nnx.Module, tag: str) -> None:
    """Makes the streams of a tag refuse to be drawn from."""
    for path, node in list(nnx.iter_graph(model)):
        if isinstance(node, nnx.RngStream) and node.tag == tag:
            object.__setattr__(node, "__class__", _Keyless)
            object.__setattr__(node, "_place", name_of(tuple(map(str, path))))


def is_keyless(stream: nnx.RngStream) -> bool:
    """Whether a stream got no key."""
    return isinstance(stream, _Keyless)


def _chosen(rngs, tag):
    return rngs.get(tag, rngs.get("dropout"))


class _Keyless(nnx.RngStream):
    """A stream that got no key."""

    def __call__(self) -> jax.Array:
        raise MissingKey(
            f"The random stream at '{vars(self)['_place']}' is drawn from but got no key: pass "
            f"rngs={{'{self.tag}': key}}.",
            self.tag,
        )


def value_of(variable: Any) -> Any:
    """The array that a variable holds, or is."""
    return variable.get_value() if isinstance(variable, nnx.Variable) else variable
