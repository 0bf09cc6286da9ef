"""Run any Linen model with dropout, BN's source and BN's update switched separately.

One `train` flag stands for three switches. Most of what this package measures is a difference between
two settings of only one of them:

===========  =====  ==========  ======
mode         noise  BN uses     running statistics
===========  =====  ==========  ======
`TRAIN`      on     batch       updated
`TEST`       off    running     frozen
`LI_ADJUST`  off    running     updated
===========  =====  ==========  ======

The switches work by interception, on models that know nothing of this package: `flax.linen.Dropout`,
`dropbn.nn.noise` and `flax.linen.BatchNorm` (subclasses included) are reached wherever they stand, also
inside `nn.scan`, `nn.remat` and `nn.jit`; `dropbn.diagnose.registry` says how other types are registered.
Noise that a model draws outside such a module cannot be reached: it is on in every mode but `TEST`, which is
the model's own test mode.
"""

import functools
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from dropbn.diagnose import registry
from dropbn.diagnose.batches import Batches
from dropbn.diagnose.uncertainty import Draws, Sample
from dropbn.errors import DropbnError


class Mode(NamedTuple):
    """Three switches.

    Attributes:
      noise: dropout and its kin on or off.
      batch_norm: BN normalizes with the statistics of the "batch" or with the "running" ones.
      update: running statistics move towards those of the batch, or stay.
    """

    noise: bool
    batch_norm: Literal["batch", "running"]
    update: bool


TRAIN = Mode(noise=True, batch_norm="batch", update=True)
TEST = Mode(noise=False, batch_norm="running", update=False)
LI_ADJUST = Mode(noise=False, batch_norm="running", update=True)

# What these flags of a model say in training.
FLAGS = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
}
_MISFITS = (
    flax.errors.ApplyScopeInvalidVariablesStructureError,
    flax.errors.ScopeCollectionNotFound,
    flax.errors.ScopeParamNotFoundError,
    flax.errors.ScopeParamShapeError,
    flax.errors.ScopeVariableNotFoundError,
)
_calls = itertools.count()


class _Unlike(str):
    """A name that no cache finds again."""

    def __hash__(self):
        return next(_calls)


def apply(
    model: nn.Module,
    variables: dict,
    *args,
    mode: Mode,
    rngs: dict | None = None,
    observe: Callable[[nn.BatchNorm, jax.Array], None] | None = None,
    retrace: bool = False,
    **kwargs,
) -> tuple[Any, dict]:
    """`model.apply` in a given mode.

    A flag of the model that the caller leaves out (train, training, is_training, deterministic,
    use_running_average) is set to evaluation in `TEST` and to training in every other mode, so that layers
    behind `if train:` are reached; whether they draw noise and what BN does follows from `mode` alone. A BN
    constructed with `use_running_average=True`, and a dropout constructed with `deterministic=True`, is
    frozen on purpose: it is left alone, and a warning names it where the mode says otherwise.

    With `update` and running statistics (`LI_ADJUST`) the statistics move towards the moments of the whole
    batch, by the layer's own momentum. A BN that is called twice uses the given statistics both times, and
    both calls move them.

    Args:
      model: any Linen module.
      variables: its variables, `{"params": ..., "batch_stats": ...}`. They are not changed.
      *args: its inputs.
      mode: the three switches.
      rngs: random keys by stream, needed where the mode has noise on.
      observe: called while tracing with every BN module, bound, and its input, before it runs.
      retrace: trace every block under `nn.jit` by itself, also one that is made as another is.
      **kwargs: further arguments of the model's `__call__`.

    Returns:
      (output, batch_stats): the statistics after the call, the given ones where `mode` freezes them.

    Raises:
      DropbnError: `variables` do not fit the model, or lack the statistics of a BN; a layer draws from a
        stream that has no key; the moments of a BN are wanted that is called with a mask; nn.scan broadcasts
        statistics that are moved or measured.
    """
    kwargs = with_flags(model, args, kwargs, mode)
    # nn.jit caches what it traced by the module and what is mutable, not by the mode: a name of our own
    # among the mutable collections keeps this call's trace to itself.
    call = f"{registry.OURS}call {next(_calls)}"
    mutable = ["batch_stats", _Unlike(call) if retrace else call]
    try:
        with nn.intercept_methods(registry.interceptor(mode, observe)):
            output, updated = model.apply(variables, *args, rngs=rngs, mutable=mutable, **kwargs)
    except flax.errors.InvalidRngError as error:
        raise DropbnError(f"A layer draws from a random stream that got no key: {error}") from error
    except _MISFITS as error:
        sentence = str(error).splitlines()[0].split(" (https")[0]
        raise DropbnError(f"The variables do not fit the model: {sentence}") from error
    except ValueError as error:
        if "broadcasted variable" not in str(error):
            raise
        raise DropbnError(
            "nn.scan broadcasts batch_stats that its steps would move or measure: give it "
            "variable_carry='batch_stats', or variable_axes={'batch_stats': 0} for a layer in each step."
        ) from error
    given = flatten_dict(flax.core.unfreeze(variables.get("batch_stats", {})))
    given = {path: leaf for path, leaf in given.items() if not path[-1].startswith(registry.OURS)}
    stats = flatten_dict(flax.core.unfreeze(updated.get("batch_stats", {})))
    for path in [path for path in stats if path[-1] == registry.MOVED]:
        stats[(*path[:-1], "mean")], stats[(*path[:-1], "var")] = stats.pop(path)
    return output, unflatten_dict(stats if mode.update else stats | given)


def with_flags(model: nn.Module, args: tuple, kwargs: dict, mode: Mode) -> dict:
    """`kwargs` and the flags of the model that the caller left out; see `apply`."""
    names = list(inspect.signature(type(inspect.unwrap(model)).__call__).parameters)[1:]
    missing = (set(names[len(args) :]) & FLAGS.keys()) - kwargs.keys()
    # One that the model was constructed with is given already.
    missing = {flag for flag in missing if getattr(model, flag, None) is None}
    return {flag: FLAGS[flag] != (mode == TEST) for flag in sorted(missing)} | kwargs


def kept(build: Callable) -> Callable:
    """`build(model, mode, kwargs, *others)`, which compiles, keeping what it made for the next equal call.

    A model that is measured again, after an epoch say, is then not compiled again. Where an argument has no
    hash, nothing is kept. `kwargs` may be None. An interceptor of the caller's own is traced into what is
    kept.
    """

    @functools.lru_cache(maxsize=16)
    def cached(kinds, model, mode, kwargs, others):
        return build(model, mode, dict(kwargs), *others)

    def call(model, mode, kwargs, *others):
        # A type of layer that is registered in between changes what is traced.
        kinds = (*registry.NOISES.items(), *registry.NORMS.items())
        key = (kinds, model, mode, tuple(sorted((kwargs or {}).items())), others)
        try:
            hash(key)
        except TypeError:
            return build(model, mode, kwargs or {}, *others)
        return cached(*key)

    return call


@kept
def _outputs(model, mode, kwargs):
    @jax.jit
    def outputs(variables, x, rngs):
        output, _ = apply(model, variables, x, mode=mode._replace(update=False), rngs=rngs, **kwargs)
        return output.astype(jnp.float32)

    return outputs


class Predictor:
    """Outputs of a model for batches, in one mode, by one compiled program."""

    def __init__(self, model: nn.Module, mode: Mode, kwargs: dict | None = None):
        """`kwargs` are further arguments of the model's `__call__`; statistics are frozen."""
        self._outputs, self._by_batch = _outputs(model, mode, kwargs), mode.batch_norm == "batch"

    def __call__(self, variables: dict, batches: Batches, rngs: dict | None = None) -> Iterator[tuple]:
        """(batch, float32 outputs) of every batch.

        Where BN uses running statistics a batch that is shorter than the first is padded to its length, which
        saves a compilation.

        Args:
          variables: the model's.
          batches: its inputs, arrays.
          rngs: random keys by stream; the batch's index is folded in.
        """
        rngs, length = default_rngs(rngs), len(batches.inputs(batches.first))
        for index, batch in enumerate(batches):
            x = batches.inputs(batch)
            padded = x
            if self._by_batch:
                refuse_one_image(x)
            elif len(x) < length:
                padded = jnp.concatenate([x, jnp.repeat(x[-1:], length - len(x), axis=0)])
            yield batch, np.asarray(self._outputs(variables, padded, fold_in(rngs, index)))[: len(x)]


def default_rngs(rngs: dict | None) -> dict:
    """Key 0 for "dropout" where no keys are given."""
    return {"dropout": jax.random.key(0)} if rngs is None else rngs


def fold_in(rngs: dict, index) -> dict:
    """`index` folded into the key of every stream."""
    return {stream: jax.random.fold_in(key, index) for stream, key in rngs.items()}


def refuse_one_image(x) -> None:
    """Raises for a batch of one image, which has no batch statistics to speak of."""
    if len(x) == 1:
        raise DropbnError(
            "A batch of one image has no batch statistics: give batches as large as those of training."
        )


def noises(model: nn.Module, variables: dict, x, **kwargs) -> list[str]:
    """Paths of the layers that draw noise in training, in the order of the trace; nothing is computed.

    Those with a rate of 0, and those constructed with `deterministic=True`, are none.
    """
    found = {}

    def see(run, args, kwargs, context):
        module, switch = context.module, registry.of(context.module, registry.NOISES)
        if switch and context.method_name == "__call__" and not registry.is_identity(module, switch):
            found[registry.name_of(module)] = module
        return run(*args, **kwargs)

    with nn.intercept_methods(see):
        mode = TRAIN._replace(update=False)
        jax.eval_shape(
            lambda variables, x: apply(model, variables, x, mode=mode, rngs=default_rngs(None), **kwargs),
            variables,
            x,
        )
    return list(found)


def sample(
    model: nn.Module,
    variables: dict,
    batches: Iterable,
    *,
    num_samples: int = 30,
    batch_norm: Literal["running", "batch"] = "running",
    inputs: Any = None,
    rngs: dict | None = None,
    **kwargs,
) -> Sample:
    """Monte Carlo dropout: predictions with the noise kept on, averaged (Gal & Ghahramani 2016).

    p_t = softmax(logits under the t-th draw of noise); mean and spread over t = 1..T, H[E p] and the mutual
    information H[E p] - E H[p] between the prediction and the noise.

    Args:
      model: any Linen module whose outputs are logits, (images, classes).
      variables: its variables; they are not changed.
      batches: gone through `num_samples` times; see `dropbn.diagnose.batches.Batches`.
      num_samples: T.
      batch_norm: BN's source. "running" is usual. Where dropout precedes BN these are statistics of the noise
        that is on here too, so that sampling has no variance shift; "batch" makes predictions depend on which
        images share a batch.
      inputs: which part of a batch the model gets.
      rngs: random keys by stream, by default key 0 for "dropout".
      **kwargs: further arguments of the model's `__call__`.

    Returns:
      A `dropbn.diagnose.uncertainty.Sample`; rich prints the most uncertain images.

    Raises:
      DropbnError: no noise in the model; outputs that are no logits or not finite; no batches; no samples;
        one image as a batch with `batch_norm="batch"`.

    >>> x = jax.random.normal(jax.random.key(0), (4, 8))
    >>> class Net(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x, train):
    ...         return nn.Dense(3)(nn.Dropout(0.5)(x, deterministic=not train))
    >>> found = sample(Net(), Net().init(jax.random.key(1), x, train=False), [x], num_samples=20)
    >>> found.mean.shape, bool(found.rows[0]["mutual_information"] > 0)
    ((4, 3), True)
    """
    if num_samples < 1:
        raise DropbnError(f"num_samples={num_samples}: at least one sample is drawn.")
    batches = Batches(batches, inputs)
    if not noises(model, variables, batches.inputs(batches.first), **kwargs):
        raise DropbnError("The model has no noise that is on in training: all samples would be the same.")
    predictor = Predictor(model, Mode(noise=True, batch_norm=batch_norm, update=False), kwargs)
    found = Draws()
    for index in range(num_samples):
        draw = predictor(variables, batches, fold_in(default_rngs(rngs), index))
        found.add(np.concatenate([outputs for _, outputs in draw]))
    return found.summary(f"Monte Carlo dropout, {num_samples} samples, BN by {batch_norm}")
