"""What is known of a batch normalization: how it is switched, and where it keeps its statistics.

Nothing else reads or writes running statistics. To all others they have the shape of the channels.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from dropbn.diagnose.registry import Switch
from dropbn.diagnose.seam import Layer
from dropbn.diagnose.tracing import Path, flat_stats
from dropbn.errors import DropbnError
from dropbn.nn.kernels.moments import Moments

# Mean and variance of a layer, in the shape of its channels.
Statistics = tuple[Any, Any]


class Leaf(NamedTuple):
    """Where a statistic is kept.

    Attributes:
      name: of the leaf in `batch_stats`.
      part: the index of the statistic along the first axis of a leaf that holds both; None if it is the leaf.
    """

    name: str
    part: int | None = None


class Mask(NamedTuple):
    """The argument that says which values count.

    Attributes:
      name: of the argument.
      is_padding: whether the values count where it is 0, instead of where it is not.
      lacks: how many of the input's last axes it lacks.
    """

    name: str
    is_padding: bool = False
    lacks: int = 0

    def of(self, arguments: Mapping[str, Any]) -> jax.Array | None:
        """The mask of a call, true where a value counts; None if it has none."""
        given = arguments.get(self.name)
        if given is None:
            return None
        given = given.reshape(*given.shape, *(1,) * self.lacks) if self.lacks else given
        return given == 0 if self.is_padding else given


class Parameter(NamedTuple):
    """The scale or the bias of a batch normalization.

    Attributes:
      name: of the leaf in `params`.
      added: the number that is added to the leaf.
      absent: the number in the place of a leaf that is not there.
    """

    name: str = ""
    added: float = 0.0
    absent: float = 0.0

    def of(self, leaves: Mapping[str, Any]) -> Any:
        """Its value, from the leaves by name."""
        return self.added + (leaves[self.name] if self.name in leaves else np.full(1, self.absent))


class Norm(NamedTuple):
    """A batch normalization.

    Attributes:
      switch: how it is put into test mode; None if it is always in test mode.
      axis, momentum, epsilon: as in `flax.linen.BatchNorm`.
      channels: the shape of its input along `axis`.
      shape: in which it keeps a statistic, such as (1, 1, channels).
      mean, var: where it keeps them.
      mask: the argument that says which values count.
      is_unbiased: whether it remembers m / (m - 1) times the variance of m values.
      collection: in which the leaves are.
      scale, bias: by which it multiplies what it has normalized, and what it adds; None if unknown.
    """

    switch: Switch | None
    axis: int | tuple[int, ...]
    momentum: float
    epsilon: float
    channels: tuple[int, ...]
    shape: tuple[int, ...]
    mean: Leaf = Leaf("mean")
    var: Leaf = Leaf("var")
    mask: Mask = Mask("mask")
    is_unbiased: bool = False
    collection: str = "batch_stats"
    scale: Parameter | None = None
    bias: Parameter | None = None

    @property
    def is_measured(self) -> bool:
        """Whether its statistics are where the tools read and write them."""
        return self.collection == "batch_stats"

    @property
    def leaves(self) -> list[str]:
        """The names of the leaves that hold the statistics."""
        return [*dict.fromkeys((self.mean.name, self.var.name))]

    def split(self, leaves: Mapping[str, Any]) -> Statistics:
        """(mean, variance) from the leaves by name, which may be stacked along their first axes."""
        found = []
        for leaf in (self.mean, self.var):
            value, num_stacked = leaves[leaf.name], self.num_stacked(leaves)
            if leaf.part is not None:
                value = value[*(slice(None),) * num_stacked, leaf.part]
            is_kept = self.shape != self.channels
            found.append(value.reshape(*value.shape[:num_stacked], *self.channels) if is_kept else value)
        mean, var = found
        return mean, var

    def joined(self, leaves: Mapping[str, Any], statistics: Statistics) -> dict[str, jax.Array]:
        """The leaves with these statistics, in the shapes and dtypes that they had."""
        found = {name: leaves[name] for name in self.leaves}
        num_stacked = self.num_stacked(leaves)
        for leaf, value in zip((self.mean, self.var), statistics, strict=True):
            old = found[leaf.name]
            value = jnp.asarray(value, old.dtype)
            if self.shape != self.channels:
                value = value.reshape(*value.shape[:num_stacked], *self.shape)
            if leaf.part is not None:
                value = jnp.asarray(old).at[*(slice(None),) * num_stacked, leaf.part].set(value)
            found[leaf.name] = value
        return found

    def num_stacked(self, leaves: Mapping[str, Any]) -> int:
        """How many axes transformations have put before those of a leaf."""
        return leaves[self.mean.name].ndim - len(self.shape) - (self.mean.part is not None)

    def given(self, layer: Layer) -> dict[str, jax.Array]:
        """The leaves of the layer."""
        return {name: layer.get(name) for name in self.leaves}

    def put(self, layer: Layer, statistics: Statistics) -> None:
        """Replaces the running statistics of the layer."""
        for name, value in self.joined(self.given(layer), statistics).items():
            layer.put(name, value)

    def remembered(self, found: Moments) -> Statistics:
        """The (mean, variance) of a batch towards which the layer moves its statistics."""
        variance = found.variance
        if self.is_unbiased:
            variance = variance * (found.count / (found.count - 1))[..., None]
        return found.mean, variance


def statistics(norms: Mapping[Path, Norm], variables: dict, path: Path) -> Statistics:
    """Running (mean, variance) of the layer at `path`, in float64."""
    layer = variables["batch_stats"]
    for key in path:
        layer = layer[key]
    mean, var = (np.asarray(value, np.float64) for value in norms[path].split(layer))
    return mean, var


def refuse_broken(name: str, mean: np.ndarray, var: np.ndarray) -> None:
    """Raises for running statistics that no training leaves: not finite, or a variance below 0."""
    if not (np.all(np.isfinite(mean)) and np.all(np.isfinite(var)) and np.all(var >= 0)):
        raise DropbnError(
            f"The running statistics of '{name}' are not finite, or a variance is negative: "
            "recalibrate.recalibrate takes them again from batches, if the weights are finite."
        )


def with_statistics(
    norms: Mapping[Path, Norm], variables: dict, statistics: Mapping[Path, Statistics]
) -> dict:
    """The variables with running statistics of some layers replaced, in the shapes and dtypes they had."""
    stats = flat_stats(variables)
    for path, found in statistics.items():
        before = {name: stats[*path, name] for name in norms[path].leaves}
        stats |= {(*path, name): leaf for name, leaf in norms[path].joined(before, found).items()}
    return {**variables, "batch_stats": unflatten_dict(stats)}
