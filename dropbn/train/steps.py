"""The training state, and the steps as pure functions of it."""

import functools
from collections.abc import Callable

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from dropbn import keys
from dropbn.train import losses


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
    mean_loss = functools.partial(
        _mean_loss, state=state, batch=batch, hyper=hyper, build=build, task=task, axis_name=axis_name
    )
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


def nonfinite(
    state: TrainState,
    batch: dict,
    hyper: Hyper,
    *,
    build: Callable[[Hyper], nn.Module],
    task: Callable = losses.classify,
    axis_name: str | None = None,
) -> dict[str, dict[str, jax.Array]]:
    """What of a step is not finite on any device.

    Takes what `train_step` takes.

    Returns:
      {"output": {"00017 block1/conv1": flag}, "gradient": {"block1/conv1/kernel": flag}}: outputs of
      modules, numbered in the order in which they are computed, and gradients of parameters; a flag is 1
      where some value is not finite, else 0.
    """

    def watched(params):
        outputs = {}

        def watch(next_call, arguments, keywords, context):
            found = next_call(*arguments, **keywords)
            if context.method_name == "__call__":
                outputs[f"{len(outputs):05} {'/'.join(context.module.path)}"] = _any_nonfinite(found)
            return found

        with nn.intercept_methods(watch):
            loss, _ = _mean_loss(params, state, batch, hyper, build, task, axis_name)
        return loss, outputs

    gradients, outputs = jax.grad(watched, has_aux=True)(state.params)
    leaves = jax.tree.leaves_with_path(gradients)
    of_parameters = {
        jax.tree_util.keystr(path, simple=True, separator="/"): _any_nonfinite(leaf) for path, leaf in leaves
    }
    found = {"output": outputs, "gradient": of_parameters}
    return lax.pmax(found, axis_name) if axis_name else found


def _mean_loss(params, state, batch, hyper, build, task, axis_name):
    """This device's mean loss with penalties, and (sums, new batch_stats)."""
    device = lax.axis_index(axis_name) if axis_name else 0
    outputs, updated = build(hyper).apply(
        {"params": params, "batch_stats": state.batch_stats},
        batch["image"],
        deterministic=False,
        rngs={"dropout": keys.key(hyper.seed, "noise", state.step, device)},
        mutable=["batch_stats", "losses"],
    )
    sums = _sums(task(outputs, batch), jnp.ones(len(outputs), bool))
    penalty = sum(jax.tree.leaves(updated.get("losses", {})))
    if "losses" in updated:
        sums["penalty"] = penalty * sums["count"]
    return sums["loss"] / sums["count"] + penalty, (sums, updated.get("batch_stats", {}))


def _any_nonfinite(tree):
    return jnp.any(jnp.stack([~jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)])).astype(jnp.int32)


def _sums(of_images, mask):
    sums = {name: jnp.sum(values, where=mask) for name, values in of_images.items()}
    return sums | {"count": jnp.sum(mask)}
