"""The training state, and the steps as pure functions of it."""

from collections.abc import Callable

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from dropbn import keys, losses


@flax.struct.dataclass
class TrainState:
    """What a step changes and a checkpoint holds.

    Attributes:
      step: steps taken, int32.
      params: the model's parameters.
      batch_stats: running statistics of its BN layers.
      opt_state: the optimizer's state.
    """

    step: jax.Array
    params: dict
    batch_stats: dict
    opt_state: optax.OptState

    @property
    def variables(self) -> dict:
        return {"params": self.params, "batch_stats": self.batch_stats}


@flax.struct.dataclass
class Hyper:
    """What may differ between runs that share one compilation: traced scalars.

    Attributes:
      seed: of order, augmentation and noise.
      amount: rate or beta of the noise.
      learning_rate_scale: factor on the learning rate.
    """

    seed: jax.Array
    amount: jax.Array
    learning_rate_scale: jax.Array


def create_state(model: nn.Module, tx: optax.GradientTransformation, seed, image_shape) -> TrainState:
    """The state before the first step; `image_shape` is (height, width, channels)."""
    variables = model.init(keys.key(seed, "init"), jnp.zeros((1, *image_shape)))
    params = variables["params"]
    return TrainState(jnp.zeros((), jnp.int32), params, variables.get("batch_stats", {}), tx.init(params))


def train_step(
    state: TrainState,
    batch: dict,
    hyper: Hyper,
    *,
    build: Callable[[Hyper], nn.Module],
    tx: optax.GradientTransformation,
    task: Callable = losses.classify,
    axis_name: str | None = None,
) -> tuple[TrainState, dict]:
    """One step of SGD on the mean loss of a batch and what layers add to it in the collection "losses".

    Gradients and running statistics are averaged over `axis_name`. The noise's key is made of the seed,
    the step and the device's index, so masks differ between devices and steps and a resumed run draws
    the same ones.

    Args:
      state: the state before the step.
      batch: {"image": float32 (images, height, width, channels), "label": int32 (images,)}, this
        device's share.
      hyper: traced scalars.
      build: makes the module from `hyper`.
      tx: the optimizer.
      task: one of `losses.TASKS`.
      axis_name: device axis; None leaves out every collective.

    Returns:
      (state after the step, sums over the whole batch: {"loss", "correct", "count"}, and "penalty"
      where layers add one).
    """
    model = build(hyper)
    device = lax.axis_index(axis_name) if axis_name else 0
    noise_key = keys.key(hyper.seed, "noise", state.step, device)

    def mean_loss(params):
        outputs, updated = model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            batch["image"],
            deterministic=False,
            rngs={"dropout": noise_key},
            mutable=["batch_stats", "losses"],
        )
        sums = _sums(task(outputs, batch), jnp.ones(len(outputs), bool))
        penalty = sum(jax.tree.leaves(updated.get("losses", {})))
        if "losses" in updated:
            sums["penalty"] = penalty * sums["count"]
        return sums["loss"] / sums["count"] + penalty, (sums, updated.get("batch_stats", {}))

    gradients, (sums, batch_stats) = jax.grad(mean_loss, has_aux=True)(state.params)
    if axis_name:
        gradients, batch_stats = lax.pmean((gradients, batch_stats), axis_name)
        sums = lax.psum(sums, axis_name)
    updates, opt_state = tx.update(gradients, state.opt_state, state.params)
    updates = jax.tree.map(lambda update: hyper.learning_rate_scale * update, updates)
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, batch_stats, opt_state), sums


def eval_step(
    state: TrainState,
    batch: dict,
    *,
    model: nn.Module,
    task: Callable = losses.classify,
    axis_name: str | None = None,
) -> dict:
    """Sums over a masked batch in test mode: {"loss", "correct", "count"}."""
    outputs = model.apply(state.variables, batch["image"], deterministic=True)
    sums = _sums(task(outputs, batch), batch["mask"])
    return lax.psum(sums, axis_name) if axis_name else sums


def _sums(of_images, mask):
    sums = {name: jnp.sum(values, where=mask) for name, values in of_images.items()}
    return sums | {"count": jnp.sum(mask)}
