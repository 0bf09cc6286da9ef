"""The batch normalizations of any Linen model, and the moments of their inputs, batch by batch."""

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from dropbn import modes, moments, switches
from dropbn.batches import Batches
from dropbn.errors import DropbnError
from dropbn.moments import Moments

Path = tuple[str, ...]

# The leaf beside mean and var in which a layer's moments ride: a collection that the model does not know
# would vanish under nn.scan.
_MOMENTS = switches.OURS + "moments"


class Layer(NamedTuple):
    """What tracing tells of a batch normalization.

    Attributes:
      momentum, epsilon: its own.
      scan: how many nn.scans were begun before it.
      stack: how many of it nn.scan has stacked, as a shape; () outside of one.
    """

    momentum: float
    epsilon: float
    scan: int
    stack: tuple[int, ...]


class Observer:
    """Moments of the input of every batch normalization of a model, in one mode, by one compiled program.

    Attributes:
      layers: path -> `Layer`, in the order of the trace.
      num_images: how many the last pass has seen.
    """

    def __init__(
        self,
        model: nn.Module,
        variables: dict,
        batches: Batches,
        mode: modes.Mode,
        rngs: dict | None = None,
        kwargs: dict | None = None,
    ):
        """Traces the model.

        Args:
          model: any Linen module.
          variables: its variables, for their shapes.
          batches: its inputs.
          mode: noise and BN's source; statistics are frozen.
          rngs: random keys by stream; the batch's index is folded in. By default key 0 for "dropout".
          kwargs: further arguments of the model's `__call__`.

        Raises:
          DropbnError: the model has no batch normalization, or one that cannot be observed.
        """
        self._batches, self._mode, self._rngs = batches, mode._replace(update=False), modes.default_rngs(rngs)
        traced = _abstract((variables, batches.inputs(batches.first), self._rngs))
        self.layers, self._shapes, self._moments_of = _programs(model, self._mode, kwargs, *traced)
        self.num_images = 0

    def __call__(self, variables: dict) -> Iterator[dict[Path, Moments]]:
        """The moments of every layer in float64, for each batch.

        Raises:
          DropbnError: a layer whose input is not finite; one image as a batch where BN uses the batch;
            batches that end earlier than in the last pass.
        """
        self.num_images, pending = 0, None
        for index, batch in enumerate(itertools.chain(self._batches, [None])):
            dispatched = None
            if batch is not None:
                x = self._batches.inputs(batch)
                if self._mode.batch_norm == "batch":
                    modes.refuse_one_image(x)
                dispatched = self._moments_of(variables, x, self._rngs, index)
                if _share_a_cpu(x):
                    jax.block_until_ready(dispatched)
            # Fetched only now, while the device works on the batch just dispatched.
            if pending is not None:
                yield self._fetched(pending, index - 1)
            if batch is not None:
                self.num_images += len(x)
            pending = dispatched

    def _fetched(self, packed, index):
        packed = np.asarray(packed, np.float64)
        ends = itertools.accumulate(map(math.prod, self._shapes), initial=0)
        slices = itertools.starmap(slice, itertools.pairwise(ends))
        parts = (packed[part].reshape(shape) for part, shape in zip(slices, self._shapes, strict=True))
        found = {path: Moments(*itertools.islice(parts, len(Moments._fields))) for path in self.layers}
        if not np.isfinite(packed).all():
            path = next(path for path, parts in found.items() if not all(np.isfinite(p).all() for p in parts))
            raise DropbnError(
                f"The input of '{'/'.join(path)}' is not finite in batch {index}: look for NaN in the "
                "batches or weights."
            )
        return found

    def each(self) -> Iterator[tuple[str, Path, tuple[int, ...]]]:
        """(name, path, index) of every layer, in network order.

        nn.scan stacks layers; each is one of its own here, named "path[i]", whose values stand at `index` of
        the stacked ones, and a stack runs through all its BNs in turn. Other layers have the index ().
        """
        for (_, stack), paths in itertools.groupby(self.layers, lambda path: self.layers[path][-2:]):
            paths = list(paths)
            for index, path in itertools.product(np.ndindex(stack), paths):
                yield ("/".join(path) or ".") + "".join(f"[{i}]" for i in index), path, index


def settled(observer: Observer, variables: dict) -> dict[Path, tuple[np.ndarray, np.ndarray]]:
    """(mean, var) that running statistics settle to: the averages over batches of batch means and variances.

    For weights that do not change, `running = momentum * running + (1 - momentum) * batch` has this
    expectation whatever its momentum. It is not the population's variance, which has the spread of the batch
    means on top.

    Args:
      observer: in training's mode.
      variables: the model's.
    """
    sums, number = {}, 0
    for number, found in enumerate(observer(variables), 1):  # noqa: B007
        for path, of_layer in found.items():
            mean, var = sums.get(path, (0, 0))
            sums[path] = (mean + of_layer.mean, var + of_layer.variance)
    return {path: (mean / number, var / number) for path, (mean, var) in sums.items()}


def statistics(variables: dict, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Running (mean, variance) of a layer, in float64."""
    layer = variables["batch_stats"]
    for key in path:
        layer = layer[key]
    return tuple(np.asarray(layer[key], np.float64) for key in ("mean", "var"))


def refuse_untrained(name: str, mean: np.ndarray, var: np.ndarray) -> None:
    """Raises for running statistics that are those of initialisation."""
    if np.all(mean == 0) and np.all(var == 1):
        raise DropbnError(
            f"The running statistics of '{name}' are still at mean 0, variance 1: train the model first, "
            "or restore its batch_stats."
        )


def with_statistics(variables: dict, statistics: dict[Path, tuple[np.ndarray, np.ndarray]]) -> dict:
    """The variables with (mean, var) of the given layers replaced, in the dtypes they had."""
    stats = flat_stats(variables)
    for path, found in statistics.items():
        for key, value in zip(("mean", "var"), found, strict=True):
            stats[(*path, key)] = jnp.asarray(value, stats[(*path, key)].dtype)
    return {**variables, "batch_stats": unflatten_dict(stats)}


def flat_stats(variables: dict) -> dict[Path, jax.Array]:
    """`batch_stats` by path."""
    return flatten_dict(flax.core.unfreeze(variables.get("batch_stats", {})))


@modes.kept
def _programs(model, mode, kwargs, treedef, leaves):
    """A model's layers by path, the shapes of their moments, and the program that takes those of a batch."""
    variables, x, rngs = treedef.unflatten(jax.ShapeDtypeStruct(*leaf) for leaf in leaves)

    def apply(variables, x, rngs, index, observe):
        keys = modes.fold_in(rngs, index)
        return modes.apply(model, variables, x, mode=mode, rngs=keys, observe=observe, **kwargs)

    layers, empty = _trace(apply, variables, x, rngs)

    @jax.jit
    def moments_of(variables, x, rngs, index):
        stats = unflatten_dict(flat_stats(variables) | empty)
        _, stats = apply({**variables, "batch_stats": stats}, x, rngs, index, _record)
        flat = flatten_dict(stats)
        # As one array: of many small ones, each costs the host as much.
        return jnp.concatenate([jnp.ravel(part) for path in layers for part in flat[(*path, _MOMENTS)]])

    return layers, [part.shape for path in layers for part in empty[(*path, _MOMENTS)]], moments_of


def _abstract(tree):
    """The structure of a tree, and (shape, dtype) of its leaves: hashable."""
    leaves, treedef = jax.tree.flatten(tree)
    return treedef, tuple((np.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)


def _record(norm, x):
    seen, new = norm.get_variable("batch_stats", _MOMENTS), moments.of(x, switches.attribute(norm, "axis"))
    both = moments.merge(seen, new)  # of a layer that is called again
    merged = jax.tree.map(lambda a, b: jnp.where(seen.count > 0, a, b), both, new)
    norm.put_variable("batch_stats", _MOMENTS, Moments(*merged))


def _trace(apply, variables, x, rngs):
    """The model's layers by path, in the order of the trace, and empty moments for each of them."""
    layers, empty, scans = {}, {}, []
    stats = flat_stats(variables)

    def track(run, args, kwargs, context):
        if type(context.module).__name__.startswith("Scan"):  # as nn.scan names the class that it makes
            scans.append(context.module)
        return run(*args, **kwargs)

    def observe(norm, x):
        stacked, own = stats[(*norm.path, "mean")].shape, norm.get_variable("batch_stats", "mean").shape
        if stacked[len(stacked) - len(own) :] != own:
            raise DropbnError(
                f"'{'/'.join(norm.path)}' is stacked along another axis than the first; give its "
                "transformation variable_axes={'batch_stats': 0} to measure it."
            )
        momentum, epsilon = (switches.attribute(norm, name) for name in ("momentum", "epsilon"))
        stack = stacked[: len(stacked) - len(own)]
        layers.setdefault(norm.path, Layer(momentum, epsilon, len(scans), stack))
        zeros = np.zeros(stacked, np.float32)
        empty[(*norm.path, _MOMENTS)] = Moments(np.zeros(stack, np.float32), zeros, zeros, zeros)

    with nn.intercept_methods(track):
        jax.eval_shape(lambda *given: apply(*given, 0, observe), variables, x, rngs)
    if not layers:
        raise DropbnError("The model has no batch normalization that dropbn.modes can reach.")
    return layers, empty


def _share_a_cpu(x):
    # Simulated CPU devices share one pool of threads: programs in flight together can starve each other's
    # collectives, until XLA aborts the process.
    devices = x.devices() if isinstance(x, jax.Array) else ()
    return len(devices) > 1 and all(device.platform == "cpu" for device in devices)
