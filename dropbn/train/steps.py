"""The training state, and the steps as pure functions of it."""

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
      step: number of steps taken, int32.
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
    """Traced scalars: what may differ between runs that share one compilation.

    Attributes:
      seed: determines order, augmentation and noise.
      amount: rate or beta of the noise.
      learning_rate_scale: factor on the learning rate.
    """

    seed: int | jax.Array
    amount: float | jax.Array
    learning_rate_scale: float | jax.Array


def create_state(
    model: nn.Module, tx: optax.GradientTransformation, seed: int | jax.Array, image_shape: tuple[int, ...]
) -> TrainState:
    """The state before the first step; `image_shape` is (height, width, channels)."""
    variables = model.init(keys.key(seed, "init"), jnp.zeros((1, *image_shape)))
    params = variables["params"]
    return TrainState(jnp.zeros((), jnp.int32), params, variables.get("batch_stats", {}), tx.init(params))


def loss_fn(
    params: dict,
    state: TrainState,
    batch: dict,
    hyper: Hyper,
    *,
    build: Callable[[Hyper], nn.Module],
    task: Callable = losses.classify,
    axis_name: str | None = None,
) -> tuple[jax.Array, tuple[dict, dict]]:
    """The mean loss of this device's images, and what layers add to it in the collection "losses".

    Takes `params` and what `train_step` takes.

    Returns:
      (loss, (sums over the images, new batch_stats)).
    """
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
    """One step of SGD on `loss_fn`.

    Gradients and running statistics are averaged over `axis_name`. The noise's key is made of the seed,
    the step and the device's index, so masks differ between devices and steps, and a resumed run draws
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
    gradients, (sums, batch_stats) = jax.grad(loss_fn, has_aux=True)(
        state.params, state, batch, hyper, build=build, task=task, axis_name=axis_name
    )
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
    """Which outputs and gradients of a step are not finite on some device.

    Takes what `train_step` takes.

    Returns:
      {"output": {"00017 block1/conv1": flag}, "gradient": {"block1/conv1/kernel": flag}}: outputs of
      modules, numbered in the order in which they are computed, and gradients of parameters; a flag is 1
      where some value is not finite, else 0.
    """

    def watched(params):
        outputs: dict[str, jax.Array] = {}

        def watch(next_call, arguments, keywords, context):
            found = next_call(*arguments, **keywords)
            if context.method_name == "__call__":
                outputs[f"{len(outputs):05} {'/'.join(context.module.path)}"] = _any_nonfinite(found)
            return found

        with nn.intercept_methods(watch):
            loss, _ = loss_fn(params, state, batch, hyper, build=build, task=task, axis_name=axis_name)
        return loss, outputs

    gradients, outputs = jax.grad(watched, has_aux=True)(state.params)
    flags = {
        jax.tree_util.keystr(path, simple=True, separator="/"): _any_nonfinite(leaf)
        for path, leaf in jax.tree.leaves_with_path(gradients)
    }
    found = {"output": outputs, "gradient": flags}
    return lax.pmax(found, axis_name) if axis_name else found


def _any_nonfinite(tree):
    return jnp.any(jnp.stack([~jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)])).astype(jnp.int32)


def _sums(values, mask):
    """Sums of each image's {"loss", "correct"} where the mask is True, and their count."""
    sums = {name: jnp.sum(of_images, where=mask) for name, of_images in values.items()}
    return sums | {"count": jnp.sum(mask)}
