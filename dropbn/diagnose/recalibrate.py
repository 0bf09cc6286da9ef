"""New statistics for the batch normalizations of a trained model: the cure that leaves the weights alone.

In test mode a BN divides by the standard deviation that dropout had inflated in training. Statistics taken
again with dropout off are the right ones. The published recipes differ in what is on, what is averaged and
what is replaced:

===============  =======  ===========  ======================  ==================
recipe           noise    BN uses      average over batches    replaces
===============  =======  ===========  ======================  ==================
`dropout_off`    off      running      exact moments           mean and variance
`li2018`         off      running      moving average          mean and variance
`li2018_moving`  off      moving       moving average          mean and variance
`li2018_torch`   off      batch        moving average          mean and variance
`hendrycks2016`  off      batch        moving average          variance
`precise_bn`     choice   batch        exact moments           mean and variance
===============  =======  ===========  ======================  ==================

`closed_form` takes no data: it subtracts from the running variances what the noise had added to them.
"""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from dropbn.diagnose import modes, noise_flow, observation
from dropbn.diagnose.batches import Batches
from dropbn.diagnose.noise_flow import marks
from dropbn.errors import DropbnError, unknown
from dropbn.nn.kernels import moments
from dropbn.results import Result


class Recipe(NamedTuple):
    """How statistics are taken again.

    Attributes:
      batch_norm: what BN normalizes with meanwhile: the "running" statistics as they were before, those that
        the batches so far have moved ("moving"), or those of the "batch".
      moving: whether batches are averaged by the layer's momentum, from the old statistics on; otherwise
        their moments are merged exactly.
      replaces: which statistics are new.
    """

    batch_norm: str
    moving: bool
    replaces: tuple[str, ...] = ("mean", "var")


RECIPES: dict[str, Recipe | None] = {
    "dropout_off": Recipe("running", moving=False),
    "li2018": Recipe("running", moving=True),
    "li2018_moving": Recipe("moving", moving=True),
    "li2018_torch": Recipe("batch", moving=True),
    "hendrycks2016": Recipe("batch", moving=True, replaces=("var",)),
    "precise_bn": Recipe("batch", moving=False),
    "closed_form": None,
}
# Statistics are settled where a further pass moves none of them by more than this, in standard deviations
# (mean) and relatively (variance).
_SETTLED = 1e-5
# A layer is final after as many passes as layers; only one that is called twice may need more.
_MOST_PASSES = 100


@dataclasses.dataclass(frozen=True)
class Recalibration(Result):
    """New statistics, and what they change in every BN layer, in network order.

    Each row holds, variances being averages over the layer's channels:
      layer: path of the BN module, as in `dropbn.diagnose.shift.Shift`, but one row for all calls of a layer,
        which is marked "[2 calls]" where a forward pass calls it twice. Moving averages move at every call.
        Exact moments are those of the union of the calls' inputs.
      count: values per channel behind the new statistics; None for "li2018_moving".
      old_var, new_var: running variance before and after (biased, as Flax keeps it).
      ratio: new_var / old_var; of a recipe with dropout off, the shift that is repaired.
      mean_shift: RMS over channels of (new mean - old mean) / sqrt(old variance + epsilon).
      error: relative standard error of the layer's variance, estimated from the spread between batches;
        None of a single batch and for "li2018_moving".
    and of "closed_form", instead of `count`, `mean_shift` and `error`:
      how: the noise's way to the layer, or why the layer stays as it is.

    Attributes:
      batch_stats: the new statistics, to be put in the place of the old: `{**variables, "batch_stats": ...}`.
      num_images: how many images a pass took.
      num_passes: how often they were gone through.
    """

    batch_stats: dict = dataclasses.field(default_factory=dict, repr=False)
    num_images: int = 0
    num_passes: int = 0

    def plot(self, path=None, label: str = "new / old variance"):
        """max(ratio, 1 / ratio) of new to old variance against the BN layer's index."""
        from dropbn import plots

        return plots.shift({label: self.rows}, path)


def recalibrate(
    model: nn.Module,
    variables: dict,
    batches: Iterable,
    recipe: str = "dropout_off",
    *,
    noise: bool = False,
    passes: int | None = None,
    tolerance: float = 0.01,
    inputs: Any = None,
    rngs: dict | None = None,
    **kwargs,
) -> Recalibration:
    """Takes the statistics of every BN layer again, from data, by one of the published recipes.

    - "dropout_off": the population moments of every layer's input in test mode, exact for any split of the
      data into batches. A layer's input depends on the statistics of those before it, so passes are
      repeated until no statistics move any more: then every layer has the moments of inputs that are
      recalibrated themselves. Each pass makes one more layer final, and most nets need far fewer passes than
      layers. `passes=1` takes all layers at once, behind the old statistics.
    - "li2018": Li et al. (2018, section 4) before their Table 3: evaluation mode, moving averages of batch
      means and variances. They do not say whether the layers before use the old or the moving statistics
      during a pass; here they use the old, as in their measurement of the shift.
    - "li2018_moving": the other reading: `dropbn.diagnose.modes.LI_ADJUST`, batch after batch, each
      normalized with what those before it have moved. A BN that is frozen on purpose stays.
    - "li2018_torch": the likeliest code of Li et al., an inference: a PyTorch model in eval mode whose BN
      layers are in train mode, because PyTorch's BN cannot move its statistics while it normalizes with them.
      Dropout is off, BN uses the batch, and its mean and variance move. Studies call these statistics
      adjusted. docs/results/README.md has what each reading gave on a part of CIFAR-10; "li2018", the literal
      one, gave the reverse of Table 3.
    - "hendrycks2016": Hendrycks & Gimpel (2016): dropout off, otherwise train mode, moving average of the
      variance alone.
    - "precise_bn": Wu & Johnson (2021, section 3): train mode, var = E[mean_B^2 + var_B] - E[mean_B]^2 over
      batches B. With `noise=True` as their code leaves it, which estimates the variance of training, shift
      included; with noise off, the default here, without it.

    - "closed_form": see `dropbn.diagnose.noise_flow.variance_without_noise`. Running means stay, because
      noise leaves them alone. It corrects layers that noise reaches directly, or from a BN through an
      activation and one weight layer (and on into a skip); of the others it says why not. Each layer is
      corrected for its own noise, with the inputs of training. But a corrected layer puts out more: half of
      what BN had normalised was noise, which the next weights averaged out, and the signal in its place they
      do not. So layers further on come to see larger variances than they remember, the more the deeper the
      network, and this recipe may do harm where the others do not: compare before you keep it.

    Args:
      model: any Linen module; see `dropbn.diagnose.modes` for what can be reached.
      variables: its trained variables; they are not changed.
      batches: gone through once a pass ("closed_form" looks at the shape of the first alone); see
        `dropbn.diagnose.batches.Batches`. Shuffle
        them: the standard error takes batches for exchangeable.
      recipe: a key of `RECIPES`.
      noise: of "precise_bn": whether noise stays on.
      passes: how often the batches are gone through. By default until settled for "dropout_off", once for
        the others.
      tolerance: the pass ends as soon as every layer's variance is known with this relative standard error,
        after eight batches at the earliest. 0 takes all batches. Moving averages take all of them too.
      inputs: which part of a batch the model gets; see `dropbn.diagnose.batches.Batches`.
      rngs: random keys by stream, by default key 0 for "dropout".
      **kwargs: further arguments of the model's `__call__`.

    Returns:
      A `Recalibration` with the new `batch_stats`; rich prints it as a table.

    Raises:
      DropbnError: an unknown recipe, no batches, no BN in the model, noise for a recipe that has none, one
        image as a batch where BN uses the batch, an input that is not finite or does not vary.

    >>> import flax.linen as nn, jax
    >>> x = 3 + 2 * jax.random.normal(jax.random.key(0), (1000, 4))
    >>> model = nn.BatchNorm(use_running_average=True)
    >>> variables = model.init(jax.random.key(1), x)  # mean 0, variance 1
    >>> found = recalibrate(model, variables, [x])
    >>> bool(abs(found.batch_stats["mean"] - x.mean(0)).max() < 1e-5)
    True
    >>> round(found.rows[0]["new_var"], 1)
    4.0
    """
    if recipe not in RECIPES:
        raise unknown("recipe", recipe, RECIPES)
    if noise and recipe != "precise_bn":
        raise DropbnError(f"noise=True belongs to recipe='precise_bn'; {recipe!r} has the noise off.")
    if passes is not None and passes < 1:
        raise DropbnError(f"passes={passes}: the batches are gone through at least once.")
    if recipe == "closed_form":
        return _closed_form(model, variables, Batches(batches, inputs, once=True), rngs, kwargs)
    if recipe == "li2018_moving":
        batches = Batches(batches, inputs, once=passes in (None, 1))
        return _li2018_moving(model, variables, batches, passes or 1, rngs, kwargs)
    batches = Batches(batches, inputs, once=passes == 1)
    mode = modes.Mode(noise, RECIPES[recipe].batch_norm, update=False)
    observer = observation.Observer(model, variables, batches, mode, rngs, kwargs)
    until_settled = passes is None and recipe == "dropout_off"
    most = max(len(list(observer.each())) + 1, _MOST_PASSES) if until_settled else passes or 1
    new, taken = variables, None
    for number in range(1, most + 1):  # noqa: B007
        before, (statistics, spreads, taken) = new, _pass(observer, new, RECIPES[recipe], tolerance, taken)
        new = observation.with_statistics(new, statistics)
        if until_settled and _distance(observer, before, new) < _SETTLED:
            break
    return _found(recipe, observer, variables, new, observer.num_images, number, spreads)


def _li2018_moving(model, variables, batches, passes, rngs, kwargs):
    rngs, new = modes.default_rngs(rngs), variables
    observer = observation.Observer(model, variables, batches, modes.LI_ADJUST, rngs, kwargs)
    adjust = _adjusting(model, modes.LI_ADJUST, kwargs)
    for _ in range(passes):
        num_images = 0
        for index, x in enumerate(map(batches.inputs, batches)):
            new = {**variables, "batch_stats": jax.block_until_ready(adjust(new, x, rngs, index))}
            num_images += len(x)
    return _found("li2018_moving", observer, variables, new, num_images, passes)


@modes.kept
def _adjusting(model, mode, kwargs):
    @jax.jit
    def adjust(variables, x, rngs, index):
        keys = modes.fold_in(rngs, index)
        return modes.apply(model, variables, x, mode=mode, rngs=keys, **kwargs)[1]

    return adjust


def _found(recipe, observer, before, after, num_images, passes, spreads=None):
    rows = []
    for name, path, index in observer.each():
        old_new = ([part[index] for part in observation.statistics(given, path)] for given in (before, after))
        batches = zip(*spreads[path], strict=True) if spreads else ()
        spread = [np.stack(values)[:, *index] for values in batches]
        layer = observer.layers[path]
        name += f"[{layer.calls} calls]" * (layer.calls > 1)
        rows.append(_row(name, *old_new, layer.epsilon, *spread))
    title = f"Statistics by {recipe}: {num_images:,} images, {passes} pass{'es' * (passes > 1)}"
    return Recalibration(rows, title, after["batch_stats"], num_images, passes)


def _closed_form(model, variables, batches, rngs, kwargs):
    x = batches.inputs(batches.first)
    marked = marks.trace(model, x, variables=variables, rngs=rngs, **kwargs)
    flows = noise_flow.follow(marked)
    behind = {norm for norms in flows.behind.values() for norm in norms}
    if not marked.norms:
        raise DropbnError("The model has no batch normalization that dropbn.diagnose.modes can reach.")
    if not marked.noises:
        raise DropbnError("The model has no noise that is on in training: there is nothing to correct.")
    rows, new = [], {}
    for name, norm in marked.norms.items():
        path = tuple(name.split("/")) if name != "." else ()
        mean, old = observation.statistics(variables, path)
        observation.refuse_untrained(name, mean, old)
        carried = [
            (marked.noises[noise], way) for (noise, layer), way in flows.reached.items() if layer == name
        ]
        variance, how = noise_flow.variance_without_noise(norm, carried)
        if not carried and name in behind:
            variance, how = None, "no noise reaches it, but layers before it are corrected"
        if variance is None:
            variance, how = old, f"not corrected: {how}"
        new[path] = mean, variance
        ratio = float(np.mean(variance) / np.mean(old))
        rows.append({"layer": name, "old_var": float(np.mean(old)), "new_var": float(np.mean(variance))})
        rows[-1] |= {"ratio": ratio, "how": how}
    corrected = observation.with_statistics(variables, new)["batch_stats"]
    return Recalibration(rows, "Statistics by closed_form, without data", corrected)


def _pass(observer, variables, recipe, tolerance, most):
    """One pass over the batches, `most` of them.

    Returns:
      ({path: (mean, variance)}, {path: [(count, variance around the mean so far) of each batch]}, batches).
    """
    averages = {path: observation.statistics(variables, path) for path in observer.layers}
    totals, spreads = {}, {path: [] for path in observer.layers}
    for number, found in enumerate(observer(variables), 1):
        for path, calls in found.items():
            new = functools.reduce(moments.merge, calls)
            total = totals[path] = moments.merge(totals[path], new) if number > 1 else new
            around = np.mean(new.variance + np.square(new.mean - total.mean), -1)
            spreads[path].append((new.count, around))
            if recipe.moving:
                keep = observer.layers[path].momentum
                for call in calls:
                    averages[path] = tuple(
                        keep * old + (1 - keep) * now
                        for old, now in zip(averages[path], (call.mean, call.variance), strict=True)
                    )
            else:
                averages[path] = total.mean, total.variance
        known = not recipe.moving and number % 8 == 0 and most is None
        if number == most or (
            known and all(_error(*zip(*s, strict=True)) < tolerance for s in spreads.values())
        ):
            break
    if "mean" not in recipe.replaces:
        old = {path: observation.statistics(variables, path)[0] for path in observer.layers}
        averages = {path: (old[path], variance) for path, (_, variance) in averages.items()}
    return averages, spreads, number


def _error(counts, variances):
    """Relative standard error of a variance known from the variances of batches; the largest of a stack."""
    counts, variances = np.stack(counts), np.stack(variances)
    number, total = len(counts), counts.sum(0)
    mean = (counts * variances).sum(0) / total
    squares = np.square(counts * (variances - mean)).sum(0) * number / (number - 1)
    return np.max(np.sqrt(squares) / total / mean)


def _distance(observer, before, after):
    """How far a pass has moved statistics: the mean in standard deviations, the variance relatively."""
    largest = 0.0
    for path, layer in observer.layers.items():
        (old_mean, old_var), (mean, var) = (observation.statistics(given, path) for given in (before, after))
        scale = old_var + layer.epsilon
        largest = max(
            largest, np.max(np.abs(mean - old_mean) / np.sqrt(scale)), np.max(np.abs(var - old_var) / scale)
        )
    return largest


def _row(name, old, new, epsilon, counts=(), variances=()):
    (old_mean, old_var), (new_mean, new_var) = old, new
    if not np.all(np.isfinite([new_mean, new_var])):
        raise DropbnError(f"The input of '{name}' is not finite: look for NaN in the batches or weights.")
    if not (np.any(new_var) and np.any(old_var)):
        raise DropbnError(
            f"The input of '{name}' does not vary: give more than one image, or look for a dead layer."
        )
    return {
        "layer": name,
        "count": int(np.sum(counts)) or None,
        "old_var": float(np.mean(old_var)),
        "new_var": float(np.mean(new_var)),
        "ratio": float(np.mean(new_var) / np.mean(old_var)),
        "mean_shift": float(np.sqrt(np.mean(np.square(new_mean - old_mean) / (old_var + epsilon)))),
        "error": float(_error(counts, variances)) if len(counts) > 1 else None,
    }
