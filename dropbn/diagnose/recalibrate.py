"""New statistics for the batch normalizations of a trained model, whose weights stay as they are.

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
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from dropbn.diagnose import entry, noise_flow, norms, observation
from dropbn.diagnose.batches import Batches
from dropbn.diagnose.entry import ModelOrPair
from dropbn.diagnose.given import check_count
from dropbn.diagnose.model import Model
from dropbn.diagnose.noise_flow import marks
from dropbn.diagnose.recipes import RECIPES, Options, error
from dropbn.errors import DropbnError, unknown
from dropbn.results import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The names of the recipes.
RECIPE_NAMES = (*RECIPES, "closed_form")


@dataclasses.dataclass(frozen=True)
class Recalibration(Result):
    """New statistics, and what they change in every BN layer, in network order.

    Each row holds, variances being averages over the layer's channels:
      layer: path of the BN module, as in `dropbn.diagnose.shift.Shift`, but one row for all calls of a layer,
        which is marked "[2 calls]" where a forward pass calls it twice. Moving averages move at every call.
        Exact moments are those of the union of the calls' inputs.
      count: values per channel behind the new statistics; None for "li2018_moving".
      old_var, new_var: running variance before and after (biased, as Flax keeps it).
      ratio: new_var / old_var; for a recipe with dropout off, the shift that is repaired.
      mean_shift: RMS over channels of (new mean - old mean) / sqrt(old variance + epsilon).
      error: relative standard error of the layer's variance, estimated from the spread between batches;
        None for a single batch and for "li2018_moving".
    A row of "closed_form" has no `count`, `mean_shift` and `error`, but:
      how: the noise's way to the layer, or why the layer stays as it is.

    Attributes:
      batch_stats: the new statistics, to be put in the place of the old: `{**variables, "batch_stats": ...}`,
        or by `apply_to`.
      num_images: the images of a pass.
      num_passes: the number of passes over the batches.
    """

    batch_stats: dict = dataclasses.field(default_factory=dict, repr=False)
    num_images: int = 0
    num_passes: int = 0

    def apply_to(self, model: Any) -> Any:
        """Puts the new statistics into an NNX model, in place, or into a copy of variables.

        Args:
          model: the NNX model that was recalibrated, or variables.

        Returns:
          The model, or the new variables.

        Raises:
          DropbnError: statistics that do not fit the model, which stays as it is.
        """
        if entry.is_nnx(model):
            from dropbn.diagnose import nnx

            return nnx.put_statistics(model, self.batch_stats)
        if isinstance(model, Mapping):
            return {**model, "batch_stats": self.batch_stats}
        raise DropbnError(
            f"Statistics are put into an NNX model or into variables, not into a {type(model).__name__}."
        )

    def plot(self, path: str | os.PathLike | None = None, label: str = "new / old variance") -> "Figure":
        """max(ratio, 1 / ratio) of new to old variance against the BN layer's index."""
        from dropbn import plots

        return plots.shift({label: self.rows}, path)


@entry.holds_state
def recalibrate(
    model: ModelOrPair,
    variables: dict,
    batches: Iterable,
    recipe: str = "dropout_off",
    *,
    noise: bool = False,
    passes: int | None = None,
    tolerance: float = 0.01,
    **call: Any,
) -> Recalibration:
    """Takes new statistics of every BN layer by one of the published recipes.

    A BN that training freezes keeps its statistics, to which the weights behind it are trained.

    - "dropout_off": the population moments of every layer's input in test mode, exact for any split of the
      data into batches. A layer's input depends on the statistics of those before it, so passes are
      repeated until no statistics move any more. Each pass makes at least one more layer final, and most
      networks need far fewer passes than layers. `passes=1` takes the statistics of all layers in one pass,
      in which the network still uses the old ones.
    - "li2018": Li et al. (2018, section 4) before their Table 3: evaluation mode, moving averages of batch
      means and variances. They do not say whether the layers before use the old or the moving statistics
      during a pass; here they use the old, as in their measurement of the shift.
    - "li2018_moving": the other reading: `dropbn.diagnose.modes.LI_ADJUST`, batch after batch. Each batch is
      normalized with the statistics that the batches before it have moved.
    - "li2018_torch": the likeliest code of Li et al., an inference: a PyTorch model in eval mode whose BN
      layers are in train mode, because PyTorch's BN cannot move its statistics while it normalizes with them.
      Dropout is off, BN uses the batch, and its mean and variance move. Studies call these statistics
      adjusted. docs/results/README.md has what each reading gave on a part of CIFAR-10; "li2018", the literal
      one, gave the reverse of Table 3.
    - "hendrycks2016": Hendrycks & Gimpel (2016): dropout off, otherwise train mode, moving average of the
      variance alone.
    - "precise_bn": Wu & Johnson (2021, section 3): train mode, var = E[mean_B^2 + var_B] - E[mean_B]^2 over
      batches B. `noise=True`, as in their code, estimates the variance of training with the shift; with the
      noise off, the default here, there is no shift.
    - "closed_form": see `dropbn.diagnose.noise_flow.variance_without_noise`. Running means stay, because
      noise does not change them. It corrects layers that noise reaches directly, or from a BN through an
      activation and one weight layer (and on into a skip). For the other layers it says why they are not
      corrected. Each layer is corrected for its own noise only, but a corrected layer puts out more signal.
      The next weights add up this signal, whereas they averaged out the noise in its place. So later layers
      see larger variances than they remember, and the effect grows with depth. This recipe may do harm where
      the others do not: compare before you keep it.

    Args:
      model: any module of Linen or NNX, or a pair of Linen modules (for training, for test);
        see `dropbn.diagnose.modes` for what can be reached.
      variables: its trained variables; they are not changed. An NNX model holds them: leave them out.
      batches: iterated once in each pass ("closed_form" uses only the shape of the first); see
        `dropbn.diagnose.batches.Batches`. Shuffle them, because the standard error assumes that batches are
        exchangeable.
      recipe: its name.
      noise: whether noise stays on, for "precise_bn".
      passes: the number of passes over the batches. By default "dropout_off" repeats them until the
        statistics have converged, and the others take one.
      tolerance: a pass ends as soon as every layer's variance is known with this relative standard error,
        after eight batches at the earliest. 0 takes all batches. Moving averages always take all of them.
      **call: how the model is called; see `dropbn.diagnose.call.Call`.

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
    called, variables = entry.model_of(model, variables, call)
    once = passes == 1 or recipe == "closed_form" or (recipe == "li2018_moving" and passes is None)
    data = Batches(batches, called.call.inputs, once=once)
    return take(called, variables, data, recipe, noise, passes, tolerance)


def take(
    model: Model,
    variables: dict,
    batches: Batches,
    recipe: str = "dropout_off",
    noise: bool = False,
    passes: int | None = None,
    tolerance: float = 0.01,
) -> Recalibration:
    """As `recalibrate`, given a prepared model and batches."""
    if recipe not in RECIPE_NAMES:
        raise unknown("recipe", recipe, RECIPE_NAMES)
    if noise and recipe != "precise_bn":
        raise DropbnError(f"noise=True belongs to recipe='precise_bn'; {recipe!r} has the noise off.")
    if passes is not None:
        check_count("passes", passes)
    if recipe == "closed_form":
        return _closed_form(model, variables, batches)
    layers = model.layers(variables, batches.inputs(batches.first))
    if layers.norms and not layers.has_norm and not model.has_one_mode(layers):
        raise DropbnError(
            "Training freezes every batch normalization of the model: there is nothing to take again."
        )
    taken = RECIPES[recipe](model, variables, batches, Options(noise, passes, tolerance))
    return _found(recipe, variables, taken)


def _found(recipe, before, taken):
    rows, passes = [], taken.num_passes
    for name, path, index in taken.observer.each():
        if path not in taken.observer.moving:
            continue
        old, new = (
            [part[index] for part in norms.statistics(taken.observer.known, given, path)]
            for given in (before, taken.variables)
        )
        batches = zip(*taken.spreads[path], strict=True) if taken.spreads else ()
        spread = [np.stack(values)[:, *index] for values in batches]
        layer = taken.observer.layers[path]
        name += f"[{layer.calls} calls]" * (layer.calls > 1)
        rows.append(_row(name, old, new, layer.norm.epsilon, *spread))
    title = f"Statistics by {recipe}: {taken.num_images:,} images, {passes} pass{'es' * (passes > 1)}"
    return Recalibration(rows, title, taken.variables["batch_stats"], taken.num_images, passes)


def _closed_form(model, variables, batches):
    args, kwargs = model.arguments(batches.inputs(batches.first))
    marked = marks.trace(model, args, kwargs, variables)
    flows = noise_flow.follow(marked)
    behind = {norm for norms in flows.behind.values() for norm in norms}
    if not marked.norms:
        raise DropbnError("The model has no batch normalization that dropbn.diagnose.registry knows.")
    if not marked.noises and not marked.layers.draws:
        raise DropbnError(
            "No noise was found that training alone has, so there is nothing to correct. A draw whose key is "
            "not one of the call's is not seen."
        )
    rows, new = [], {}
    for name, norm in marked.norms.items():
        path = tuple(name.split("/")) if name != "." else ()
        mean, old = norms.statistics(marked.layers.known, variables, path)
        norms.refuse_broken(name, mean, old)
        observation.refuse_untrained(name, mean, old)
        carried = [
            (flows.noises[noise], way) for (noise, layer), way in flows.reached.items() if layer == name
        ]
        variance, how = noise_flow.variance_without_noise(norm, carried)
        unseen = [where for where, norms in marked.layers.draws.items() if name in norms]
        unseen = [where for where in unseen if where not in flows.understood]
        if unseen:
            variance, how = None, f"a draw of no registered noise reaches it: {unseen[0]}"
        elif not carried and name in behind:
            variance, how = None, "no noise reaches it, but layers before it are corrected"
        if variance is None:
            variance, how = old, f"not corrected: {how}"
        new[path] = mean, variance
        ratio = float(np.mean(variance) / np.mean(old))
        rows.append({"layer": name, "old_var": float(np.mean(old)), "new_var": float(np.mean(variance))})
        rows[-1] |= {"ratio": ratio, "how": how}
    corrected = norms.with_statistics(marked.layers.known, variables, new)["batch_stats"]
    return Recalibration(rows, "Statistics by closed_form, without data", corrected)


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
        "error": float(error(counts, variances)) if len(counts) > 1 else None,
    }
