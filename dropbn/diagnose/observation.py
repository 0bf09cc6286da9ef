"""The batch normalizations of any model, and the moments of their inputs, batch by batch."""

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from dropbn.diagnose import interception, registry, tracing
from dropbn.diagnose.batches import Batches
from dropbn.diagnose.cache import cached
from dropbn.diagnose.call import fold_in, num_examples
from dropbn.diagnose.interception import Mode
from dropbn.diagnose.model import Model
from dropbn.diagnose.noise_flow import marks
from dropbn.diagnose.norms import Norm, Statistics
from dropbn.diagnose.tracing import Path, abstract, flat_stats
from dropbn.errors import DropbnError
from dropbn.nn.kernels.moments import Moments

# The leaf beside mean and var in which a layer's moments ride: a collection that the model does not know
# would vanish under nn.scan.
_MOMENTS = registry.OURS + "moments"
# The leaf that every call of a layer marks while the model is traced.
_CALLS = registry.OURS + "calls"


class Layer(NamedTuple):
    """What tracing tells of a batch normalization.

    Attributes:
      norm: its momentum, where it keeps its statistics, and so on.
      calls: how often a forward pass calls it.
      loops: the numbers of the loops around it in the trace; () outside of loops.
      stack: the shape in which nn.scan or nn.vmap has stacked such layers; () outside of them.
    """

    norm: Norm
    calls: int
    loops: tuple[int, ...]
    stack: tuple[int, ...]

    @property
    def weights(self) -> np.ndarray:
        """The weights of its calls in its running statistics: m^(k-1-j) (1-m) / (1-m^k) of call j of k, (k,).

        Each call moves the statistics once, by the momentum m. So the last call of a step weighs most.
        """
        weights = self.norm.momentum ** np.arange(self.calls - 1, -1, -1.0)
        return weights / weights.sum()


class Observer:
    """Moments of the input of every batch normalization of a model, in one mode, by one compiled program.

    Attributes:
      layers: path -> `Layer`, in the order of the trace.
      moving: the paths of those whose statistics training moves.
      rngs: random keys by stream.
      num_images: how many the last pass has seen.
    """

    def __init__(self, model: Model, variables: dict, batches: Batches, mode: Mode) -> None:
        """Traces the model.

        Args:
          model: a model and how it is called.
          variables: its variables, for their shapes.
          batches: its inputs.
          mode: noise and BN's source; statistics are frozen.

        Raises:
          DropbnError: the model has no batch normalization, or one that cannot be observed; the first batch
            gives one a single value per channel, and BN uses the batch.
        """
        self._batches, x = batches, batches.inputs(batches.first)
        layers = model.layers(variables, x)
        if mode.batch_norm == "batch":
            layers.refuse_one_value()
        self.rngs = model.rngs(layers)
        traced = abstract((variables, x, self.rngs))
        self.layers, self._shapes, self._moments_of = _programs(model, mode.frozen, *traced)
        # A model of which only test mode is known does not freeze them.
        frozen = () if model.has_one_mode(layers) else layers.frozen
        self.moving = [path for path in self.layers if path not in frozen]
        self.num_images = 0

    @property
    def known(self) -> dict[Path, Norm]:
        """What is known of each layer."""
        return {path: layer.norm for path, layer in self.layers.items()}

    def __call__(self, variables: dict) -> Iterator[dict[Path, list[Moments]]]:
        """The moments of every layer in float64, call by call, for each batch.

        Raises:
          DropbnError: a layer whose input is not finite, or whose state is lost; batches that end
            earlier than in the last pass.
        """
        self.num_images, pending = 0, None
        for index, batch in enumerate(itertools.chain(self._batches, [None])):
            dispatched = None
            if batch is not None:
                x = self._batches.inputs(batch)
                dispatched = self._moments_of(variables, x, self.rngs, index)
                if _share_a_cpu(x):
                    jax.block_until_ready(dispatched)
            # Fetched only now, while the device works on the batch just dispatched.
            if pending is not None:
                yield self._fetched(pending, index - 1)
            if batch is not None:
                self.num_images += num_examples(x)
            pending = dispatched

    def _fetched(self, packed, index):
        packed = np.asarray(packed, np.float64)
        ends = itertools.accumulate(map(math.prod, self._shapes), initial=0)
        slices = itertools.starmap(slice, itertools.pairwise(ends))
        parts = (packed[part].reshape(shape) for part, shape in zip(slices, self._shapes, strict=True))
        found = {path: [*itertools.islice(parts, len(Moments._fields))] for path in self.layers}
        for path, (counts, means, *_) in found.items():
            if not (np.all(counts) or np.any(means[counts == 0])):
                raise DropbnError(
                    f"What '{'/'.join(path)}' saw in batch {index} is lost, as are its running statistics in "
                    "training: a transformation of JAX, such as jax.checkpoint, got the module. Use that of "
                    "NNX, such as nnx.remat."
                )
        if not np.isfinite(packed).all():
            path = next(path for path, parts in found.items() if not all(np.isfinite(p).all() for p in parts))
            raise DropbnError(
                f"The input of '{'/'.join(path)}' is not finite in batch {index}: look for NaN in the "
                "batches or weights."
            )
        return {path: _by_call(parts, self.layers[path]) for path, parts in found.items()}

    def each(self) -> Iterator[tuple[str, Path, tuple[int, ...]]]:
        """(name, path, index) of every layer, in network order.

        nn.scan stacks layers. Here each is a layer of its own, named "path[i]", with its values at `index` of
        the stacked arrays; all BNs of one step come before those of the next. Other layers have the index ().
        """
        for (_, stack), group in itertools.groupby(self.layers, lambda path: self.layers[path][-2:]):
            paths = list(group)
            for index, path in itertools.product(np.ndindex(stack), paths):
                yield tracing.name_of(path) + "".join(f"[{i}]" for i in index), path, index


def converged(observer: Observer, variables: dict) -> dict[Path, Statistics]:
    """(mean, var) that running statistics converge to: averages of the means and variances of batches.

    For weights that do not change, `running = momentum * running + (1 - momentum) * batch` has this
    expectation whatever its momentum. It is not the population's variance, which has the spread of the batch
    means on top. If a step calls a layer several times, it is the mean over the calls, weighted by
    `Layer.weights`, without the spread of their means.

    Args:
      observer: one in train mode.
      variables: those of the model.
    """
    return averaged(observer, converged_by_call(observer, variables))


def converged_by_call(observer: Observer, variables: dict) -> dict[Path, list[Statistics]]:
    """What running statistics would converge to if every call of a layer had its own; see `converged`.

    A BN that training freezes is left out.
    """
    sums: dict[Path, np.ndarray] = {}
    number = 0
    for number, found in enumerate(observer(variables), 1):  # noqa: B007
        for path in observer.moving:
            new = np.array([observer.layers[path].norm.remembered(call) for call in found[path]])
            sums[path] = sums[path] + new if path in sums else new
    return {path: [(mean, var) for mean, var in total / number] for path, total in sums.items()}


def averaged(observer: Observer, by_call: dict[Path, list[Statistics]]) -> dict[Path, Statistics]:
    """(mean, var) of every layer, averaged over its calls as Flax's moving average does."""
    return {
        path: tuple(np.average(calls, axis=0, weights=observer.layers[path].weights))
        for path, calls in by_call.items()
    }


def refuse_untrained(name: str, mean: np.ndarray, var: np.ndarray) -> None:
    """Raises for running statistics that are those of initialisation."""
    if np.all(mean == 0) and np.all(var == 1):
        raise DropbnError(
            f"The running statistics of '{name}' are still at mean 0, variance 1: train the model first, "
            "or restore its batch_stats."
        )


def with_statistics_by_call(
    observer: Observer, variables: dict, by_call: dict[Path, list[Statistics]]
) -> dict:
    """The variables with running statistics for each call of a layer; a run uses them in order."""
    stats: dict[Path, Any] = flat_stats(variables)
    for path, calls in by_call.items():
        layer = observer.layers[path]
        axis, dtype = len(layer.stack), stats[*path, layer.norm.mean.name].dtype
        stats[(*path, registry.BY_CALL)] = tuple(
            jnp.asarray(np.stack(values, axis), dtype) for values in zip(*calls, strict=True)
        )
    return {**variables, "batch_stats": unflatten_dict(stats)}


@cached
def _programs(model, mode, treedef, leaves):
    """A model's layers by path, the shapes of their moments, and the program that takes a batch's moments."""
    variables, x, rngs = treedef.unflatten(leaves)

    def apply(variables, x, rngs, index, observe, retrace=False):
        return model.apply(variables, x, mode, fold_in(rngs, index), observe, retrace)

    layers, empty = _trace(apply, variables, x, rngs, model.layers(variables, x).known)

    @jax.jit
    def moments_of(variables, x, rngs, index):
        stats = unflatten_dict(flat_stats(variables) | empty)
        _, stats = apply({**variables, "batch_stats": stats}, x, rngs, index, _record)
        flat = flatten_dict(stats)
        # As one array: of many small ones, each costs the host as much.
        return jnp.concatenate([jnp.ravel(part) for path in layers for part in flat[(*path, _MOMENTS)]])

    return layers, [part.shape for path in layers for part in empty[(*path, _MOMENTS)]], moments_of


def _record(layer, norm, x, mask):
    if not layer.has(_MOMENTS):
        return
    seen = layer.get(_MOMENTS)
    new = interception.moments_of(layer, norm, x, mask)
    # The last ones are kept, as many as there are calls. So no call needs to know its number, even in a loop.
    parts = (jnp.concatenate([old[1:], part[None]]) for old, part in zip(seen, new, strict=True))
    layer.put(_MOMENTS, Moments(*parts))


def _by_call(parts, layer):
    before = (slice(None),) * len(layer.stack)
    return [Moments(*(part[*before, call] for part in parts)) for call in range(layer.calls)]


def _trace(apply, variables, x, rngs, known):
    """The model's layers by path, in the order of the trace, and empty moments for each of them."""
    layers: dict[Path, Layer] = {}
    empty = {}
    stats = flat_stats(variables)
    counted = {(*path, _CALLS): stats[*path, norm.mean.name] for path, norm in known.items()}
    variables = {**variables, "batch_stats": unflatten_dict(stats | counted)}

    def observe(layer, norm, x, mask):
        if not layer.has(_CALLS):
            return
        name = norm.mean.name
        stacked, own = stats[*layer.path, name].shape, layer.get(name).shape
        if stacked[len(stacked) - len(own) :] != own:
            raise DropbnError(
                f"'{'/'.join(layer.path)}' is stacked along another axis than the first; give its "
                "transformation variable_axes={'batch_stats': 0} to measure it."
            )
        stack = stacked[: len(stacked) - len(own)]
        layers.setdefault(layer.path, Layer(norm, 0, (), stack))
        called = layer.get(_CALLS)
        called = marks.mark_p.bind(called, kind="norm", name=layer.path, times=1)
        layer.put(_CALLS, called)

    # A block under nn.jit would else pass unseen where another was made alike.
    jaxpr = jax.make_jaxpr(lambda *given: apply(*given, 0, observe, retrace=True))(variables, x, rngs)
    if not layers:
        raise DropbnError("The model has no batch normalization that dropbn.diagnose.registry knows.")
    number, loops = marks.calls(jaxpr.jaxpr), marks.loops(jaxpr.jaxpr)
    for path, layer in layers.items():
        calls = number[path] / math.prod(layer.stack)
        if math.isnan(calls):
            raise DropbnError(
                f"The data decide how often '{'/'.join(path)}' is called (nn.cond, nn.while_loop): call it "
                "equally often in every branch, or loop by nn.scan."
            )
        layers[path] = layer._replace(calls=int(calls), loops=loops[path])
        count = np.zeros((*layer.stack, int(calls)), np.float32)
        zeros = np.zeros((*count.shape, *layer.norm.channels), np.float32)
        empty[(*path, _MOMENTS)] = Moments(count, zeros, zeros, zeros)
    return layers, empty


def _share_a_cpu(x):
    # Simulated CPU devices share one pool of threads: programs in flight together can starve each other's
    # collectives, until XLA aborts the process.
    devices = x.devices() if isinstance(x, jax.Array) else ()
    return len(devices) > 1 and all(device.platform == "cpu" for device in devices)
