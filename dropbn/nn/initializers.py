"""Initial weights: the schemes that the papers' studies use."""

import functools
from collections.abc import Callable

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from dropbn.errors import DropbnError, unknown
from dropbn.nn.activations import ACTIVATIONS

# N(0, 2 / (kernel^2 features)), for convolutions in the papers' code (bearpaw/pytorch-classification). All
# features count, even if the convolution has groups.
he_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# N(0, 2 / inputs), He et al. 2015, eq. 10.
he_fan_in = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
orthogonal = nn.initializers.orthogonal()

# U(-1/sqrt(n), 1/sqrt(n)) for n features, as in timm's EfficientNet.
uniform_fan_out = nn.initializers.variance_scaling(1 / 3, "fan_out", "uniform")

NAMES = ("he_fan_out", "timm", "he_fan_in", "orthogonal", "lsuv", "hendrycks")


def timm(groups: int) -> Callable:
    """N(0, 2 / (kernel^2 features / groups)): `he_fan_out` with the features of one group.

    An input channel feeds only the features of its own group. For a depthwise convolution (groups = features)
    the variance is 2 / kernel^2.

    Source: huggingface/pytorch-image-models, timm/models/_efficientnet_builder.py, `_init_weight_goog`.
    """
    return nn.initializers.variance_scaling(2.0 * groups, "fan_out", "normal")


def uniform_fan_in(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """U(-1/sqrt(n), 1/sqrt(n)) for n inputs of a (n, features) kernel: PyTorch's default for Linear."""
    return uniform(shape[0] ** -0.5)(key, shape, dtype)


def uniform(bound: float) -> Callable:
    """U(-bound, bound)."""
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


def create(
    name: str, activation: str = "relu", keep: float = 1.0
) -> tuple[Callable[[int], Callable], Callable]:
    """The initializers of convolution and dense kernels.

    Args:
      name: "he_fan_out" (dense: `uniform_fan_in`), "timm" (`timm`, as in its EfficientNet and MobileNet;
        dense: `uniform_fan_out`), "he_fan_in", "orthogonal" (Saxe et al. 2014), "lsuv" (orthogonal, to be
        scaled by `lsuv`), or "hendrycks" (`hendrycks`; convolutions leave out the backward term, as the paper
        allows).
      activation: the network's activation; for "hendrycks".
      keep: 1 - rate of the network's dropout; for "hendrycks".

    Returns:
      (groups of a convolution -> the initializer of its kernel, the initializer of dense kernels).

    Raises:
      DropbnError: the name is unknown, or "hendrycks" gets a keep of 0 or an activation that is not a
        function of one number.
    """
    if name not in NAMES:
        raise unknown("init", name, NAMES)
    if name == "hendrycks" and keep <= 0:
        raise DropbnError("init='hendrycks' divides by 1 - rate: give a rate below 1.")
    if name == "timm":
        return timm, uniform_fan_out
    if name == "hendrycks":
        forward, backward = second_moments(activation)
        conv, dense = hendrycks(forward, 0.0, keep), hendrycks(forward, backward, keep)
    elif name == "he_fan_out":
        conv, dense = he_fan_out, uniform_fan_in
    else:
        conv = dense = he_fan_in if name == "he_fan_in" else orthogonal
    return lambda groups: conv, dense


def hendrycks(forward: float, backward: float, keep: float) -> Callable:
    """W / sqrt(forward / keep + keep * backward), with the columns of W drawn on the unit sphere.

    This keeps the variances of activations and of gradients near 1 under dropout (Hendrycks & Gimpel 2016,
    arXiv:1607.02488).

    Args:
      forward: E[f(z)^2] of the activation before the layer.
      backward: E[f'(z)^2] of the activation after it.
      keep: 1 - rate of the dropout.
    """

    def init(key, shape, dtype=jnp.float32):
        weights = jax.random.normal(key, shape, dtype)
        norms = jnp.sqrt(jnp.square(weights).sum(tuple(range(len(shape) - 1)), keepdims=True))
        return weights / norms / (forward / keep + keep * backward) ** 0.5

    return init


@functools.cache
def second_moments(activation: str) -> tuple[float, float]:
    """(E[f(z)^2], E[f'(z)^2]) of an activation f for z ~ N(0, 1), by the trapezoidal rule."""
    function = ACTIVATIONS.get(activation)
    if function is None or isinstance(function, type) or activation == "maxout":
        raise DropbnError(
            f"init='hendrycks' needs an activation of one number, such as relu; got {activation!r}."
        )
    z = np.linspace(-12, 12, 24_000)  # An even number puts no node at 0, where some f have a kink.
    density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    with jax.ensure_compile_time_eval():  # A traced step may create a model.
        values, slopes = jax.vmap(jax.value_and_grad(function))(jnp.asarray(z, jnp.float32))
    forward, backward = (
        float(np.trapezoid(np.square(y, dtype=np.float64) * density, z)) for y in (values, slopes)
    )
    return forward, backward


def lsuv(model: nn.Module, variables: dict, images: jax.Array | np.ndarray) -> dict:
    """Scales every conv and dense kernel so that its output on a batch has variance 1.

    This is layer-sequential unit variance (Mishkin & Matas 2016, algorithm 1), for a model with orthogonal
    kernels. Because a layer's output is linear in its kernel, one pass finds all the factors. Noise is off,
    and BN uses batch statistics. Biases stay as they are and do not count.

    Args:
      model: called as `model(images, deterministic=True, use_running_average=False)`.
      variables: the model's variables; they are not changed.
      images: a batch of inputs.

    Returns:
      The variables with the scaled kernels.

    Raises:
      DropbnError: a layer whose output does not vary on the batch.
    """

    @jax.jit
    def find(variables):
        factors = {}

        def scale(run, args, kwargs, context):
            output = run(*args, **kwargs)
            module = context.module
            if not isinstance(module, (nn.Conv, nn.Dense)) or context.method_name != "__call__":
                return output
            bias = module.get_variable("params", "bias", 0)
            unbiased = output.astype(jnp.float32) - bias
            factors["/".join(module.path)] = factor = 1 / jnp.std(unbiased)
            return (unbiased * factor + bias).astype(output.dtype)

        with nn.intercept_methods(scale):
            model.apply(variables, images, True, use_running_average=False, mutable=["batch_stats"])
        return factors

    params = flax.traverse_util.flatten_dict(variables["params"], sep="/")
    for path, factor in find(variables).items():
        if not np.isfinite(factor):
            raise DropbnError(f"init='lsuv': the output of '{path}' does not vary on the first batch.")
        params[f"{path}/kernel"] *= factor
    return {**variables, "params": flax.traverse_util.unflatten_dict(params, sep="/")}
