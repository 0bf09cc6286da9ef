"""Batch normalizations in the styles of public code that are not Flax's, and modules that look like them."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


def _normalized(module, x, mean, var, epsilon, names=("scale", "bias")):
    scale, bias = (module.param(name, nn.initializers.ones, x.shape[-1:]) for name in names)
    return (x - mean) * lax.rsqrt(var + epsilon) * scale + bias


class BatchRenorm(nn.Module):
    """Batch renormalization (Ioffe 2017), with limits and a counter beside the statistics."""

    use_running_average: bool | None = None
    axis: int = -1
    momentum: float = 0.95
    epsilon: float = 0.001
    warmup_steps: int = 100_000

    @nn.compact
    def __call__(self, x, use_running_average=None):
        tests = nn.merge_param("use_running_average", self.use_running_average, use_running_average)
        mean = self.variable("batch_stats", "mean", jnp.zeros, x.shape[-1:])
        var = self.variable("batch_stats", "var", jnp.ones, x.shape[-1:])
        r_max, d_max = (self.variable("batch_stats", name, lambda: 3) for name in ("r_max", "d_max"))
        steps = self.variable("batch_stats", "steps", lambda: 0)
        used = mean.value, var.value
        if not tests:
            axes = tuple(range(x.ndim - 1))
            batch_mean, batch_var = used = x.mean(axes), x.var(axes)
            if not self.is_initializing():
                std, running = jnp.sqrt(batch_var + self.epsilon), jnp.sqrt(var.value + self.epsilon)
                r = jnp.clip(lax.stop_gradient(std / running), 1 / r_max.value, r_max.value)
                d = lax.stop_gradient((batch_mean - mean.value) / running)
                d = jnp.clip(d, -d_max.value, d_max.value)
                warm = steps.value >= self.warmup_steps
                corrected = batch_mean - d * jnp.sqrt(batch_var) / r, batch_var / r**2
                used = [jnp.where(warm, *each) for each in zip(corrected, used, strict=True)]
                mean.value = self.momentum * mean.value + (1 - self.momentum) * batch_mean
                var.value = self.momentum * var.value + (1 - self.momentum) * batch_var
                steps.value += 1
        return _normalized(self, x, *used, self.epsilon)


class Padded(nn.Module):
    """Takes the padding and has its momentum in a config; training gives its statistics two more axes."""

    config: Any

    def setup(self):
        self.mean = self.variable("batch_stats", "mean", jnp.zeros, self.config["dim"])
        self.var = self.variable("batch_stats", "var", jnp.ones, self.config["dim"])
        self.gamma, self.beta = (
            self.param(name, nn.initializers.zeros, self.config["dim"]) for name in ("scale", "bias")
        )

    def __call__(self, inputs, input_paddings, train):
        padding, axes = jnp.expand_dims(input_paddings, -1), tuple(range(inputs.ndim - 1))
        momentum, epsilon = self.config["momentum"], self.config["epsilon"]
        mean, var = self.mean.value, self.var.value
        if train:
            mask = 1.0 - padding
            count = jnp.maximum(jnp.sum(jnp.ones_like(inputs) * mask, axes, keepdims=True), 1.0)
            mean = jnp.sum(inputs * mask, axes, keepdims=True) / count
            var = jnp.sum(jnp.square(inputs - mean) * mask, axes, keepdims=True) / count
            self.mean.value = momentum * self.mean.value + (1 - momentum) * mean
            self.var.value = momentum * self.var.value + (1 - momentum) * var
        y = (inputs - mean) * (1 + self.gamma) / jnp.sqrt(var + epsilon) + self.beta
        return y * (1.0 - padding)


class KeptAxes(nn.Module):
    """As a textbook has it: the flag is a field, statistics keep the axes over which they are taken."""

    num_features: int
    num_dims: int
    deterministic: bool = False

    @nn.compact
    def __call__(self, x):
        shape = (*(1,) * (self.num_dims - 1), self.num_features)
        mean = self.variable("batch_stats", "moving_mean", jnp.zeros, shape)
        var = self.variable("batch_stats", "moving_var", jnp.ones, shape)
        used = mean.value, var.value
        if not self.deterministic:
            axes = tuple(range(x.ndim - 1))
            used = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
            mean.value = 0.9 * mean.value + 0.1 * used[0]
            var.value = 0.9 * var.value + 0.1 * used[1]
        return _normalized(self, x, *used, 1e-5, ("gamma", "beta"))


class Unbiased(nn.Module):
    """Remembers the unbiased variance, as PyTorch does."""

    update_rate: float = 0.02

    @nn.compact
    def __call__(self, value, *, training):
        mean = self.variable("batch_stats", "running_mean", jnp.zeros, value.shape[-1:])
        var = self.variable("batch_stats", "running_variance", jnp.ones, value.shape[-1:])
        used = mean.value, var.value
        if training:
            used = value.mean(0), value.var(0)
            keep, number = 1 - self.update_rate, len(value)
            moved = used[1] * number / (number - 1)
            mean.value = keep * mean.value + self.update_rate * lax.stop_gradient(used[0])
            var.value = keep * var.value + self.update_rate * lax.stop_gradient(moved)
        return _normalized(self, value, *used, 1e-4)


class OneLeaf(nn.Module):
    """Keeps mean and variance as one array (2, channels); its flag has a name of its own."""

    @nn.compact
    def __call__(self, x, learning=False):
        kept = self.variable("batch_stats", "moments", lambda: jnp.stack([0 * x[0], 1 + 0 * x[0]]))
        used = kept.value
        if learning:
            used = jnp.stack([x.mean(0), x.var(0)])
            kept.value += 0.05 * (used - kept.value)
        return _normalized(self, x, *used, 1e-5)


class ChannelsFirst(nn.Module):
    """Channels on the second axis; mean and variance over all devices of an axis."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, is_training):
        shape = (1, x.shape[1], *(1,) * (x.ndim - 2))
        mean = self.variable("batch_stats", "batch_norm_running_mean", jnp.zeros, shape)
        var = self.variable("batch_stats", "batch_norm_running_var", jnp.ones, shape)
        used = mean.value, var.value
        if is_training:
            axes = (0, *range(2, x.ndim))
            moments = x.mean(axes, keepdims=True), jnp.square(x).mean(axes, keepdims=True)
            if self.axis_name and not self.is_initializing():
                moments = lax.pmean(moments, self.axis_name)
            used = moments[0], moments[1] - jnp.square(moments[0])
            mean.value = 0.8 * mean.value + 0.2 * used[0]
            var.value = 0.8 * var.value + 0.2 * used[1]
        return (x - used[0]) / jnp.sqrt(used[1] + 1e-5)


class Accumulating(nn.Module):
    """Normalizes every five examples apart, and moves its statistics by accumulators that it then empties."""

    momentum: float = 0.9

    @nn.compact
    def __call__(self, x, train):
        kept = (*(1,) * (x.ndim - 1), x.shape[-1])
        total, squares, mean, var = (
            self.variable("batch_stats", name, make, kept)
            for name, make in zip(("sum", "squares", "mu", "nu"), 3 * [jnp.zeros] + [jnp.ones], strict=True)
        )
        steps = self.variable("batch_stats", "steps", jnp.zeros, (), int)
        if not train:
            return _normalized(self, x, mean.value, var.value, 1e-3, ("gain", "offset"))
        parts = x.reshape(len(x) // 5, 5, *x.shape[1:])
        axes = tuple(range(1, x.ndim))
        of_mean, of_square = (each.mean(axes, keepdims=True) for each in (parts, parts**2))
        if not self.is_initializing():
            sums = total.value + of_mean.mean(0), squares.value + of_square.mean(0)
            batch = sums[0] / (steps.value + 1), sums[1] / (steps.value + 1)
            mean.value += (1 - self.momentum) * (batch[0] - mean.value)
            var.value += (1 - self.momentum) * (batch[1] - batch[0] ** 2 - var.value)
            total.value, squares.value, steps.value = 0 * sums[0], 0 * sums[1], 0 * steps.value
        y = _normalized(self, parts, of_mean, of_square - of_mean**2, 1e-3, ("gain", "offset"))
        return y.reshape(x.shape)


class FrozenNorm(nn.Module):
    """Always uses its statistics, and has no flag."""

    @nn.compact
    def __call__(self, x):
        mean = self.variable("batch_stats", "mean", jnp.zeros, x.shape[-1:])
        var = self.variable("batch_stats", "var", jnp.ones, x.shape[-1:])
        return _normalized(self, x, mean.value, var.value, 1e-5)


class Ghost(nn.Module):
    """Takes its statistics from two halves of the batch."""

    @nn.compact
    def __call__(self, x, train):
        mean = self.variable("batch_stats", "mean", jnp.zeros, x.shape[-1:])
        var = self.variable("batch_stats", "var", jnp.ones, x.shape[-1:])
        if not train:
            return (x - mean.value) / jnp.sqrt(var.value + 1e-5)
        halves = x.reshape(2, -1, x.shape[-1])
        used = halves.mean(1, keepdims=True), halves.var(1, keepdims=True)
        mean.value = 0.9 * mean.value + 0.1 * used[0].mean((0, 1))
        var.value = 0.9 * var.value + 0.1 * used[1].mean((0, 1))
        return ((halves - used[0]) / jnp.sqrt(used[1] + 1e-5)).reshape(x.shape)


class ActNorm(nn.Module):
    """Shift and scale that initialization takes from the data."""

    @nn.compact
    def __call__(self, x, train):
        mean = self.variable("batch_stats", "mean", lambda: x.mean(0))
        scale = self.variable("batch_stats", "var", lambda: 1 / x.std(0))
        return (x - mean.value) * scale.value


class Averages(nn.Module):
    """Layer normalization, whose scale and bias are moving averages of parameters."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.LayerNorm(use_bias=False, use_scale=False)(x)
        found = []
        for name in ("mean", "var"):
            weight = self.param(f"raw_{name}", nn.initializers.normal(), x.shape[-1:])
            average = self.variable("batch_stats", name, jnp.ones, x.shape[-1:])
            found.append(weight if train else average.value)
            if train:
                average.value = 0.9 * average.value + 0.1 * weight
        return x * found[1] + found[0]


class Codebook(nn.Module):
    """The nearest of some codes, which follow the data as moving averages."""

    @nn.compact
    def __call__(self, x, train):
        codes = self.variable("batch_stats", "codes", lambda: jnp.arange(12.0).reshape(2, 6))
        sums = self.variable("batch_stats", "sums", jnp.ones, (2, 6))
        counts = self.variable("batch_stats", "counts", jnp.ones, 2)
        nearest = jnp.argmin(jnp.square(x[:, None] - codes.value).sum(-1), -1)
        if train:
            members = jax.nn.one_hot(nearest, 2)
            counts.value = 0.9 * counts.value + 0.1 * members.sum(0)
            sums.value = 0.9 * sums.value + 0.1 * members.T @ x
            codes.value = sums.value / counts.value[:, None]
        return codes.value[nearest]


class Whitening(nn.Module):
    """Normalizes by running statistics in training too, and moves them."""

    @nn.compact
    def __call__(self, x, train):
        mean = self.variable("batch_stats", "mean", jnp.zeros, x.shape[-1:])
        var = self.variable("batch_stats", "var", jnp.ones, x.shape[-1:])
        y = (x - mean.value) / jnp.sqrt(var.value + 1e-5)
        if self.is_mutable_collection("batch_stats") and not self.is_initializing():
            mean.value, var.value = 0.9 * mean.value + 0.1 * x.mean(0), 0.9 * var.value + 0.1 * x.var(0)
        return y


class Call(NamedTuple):
    """A call of a batch normalization, as the tests know it.

    Attributes:
      momentum, epsilon: of the layer.
      tests: whether it is in test mode.
      scale, bias: by which the normalized input is multiplied, and what is added.
      padding: (examples, positions), or None.
    """

    momentum: float
    epsilon: float
    tests: bool
    scale: Any
    bias: Any
    padding: Any = None

    @classmethod
    def of(cls, norm, args, kwargs):
        """The call of a module; None if it is no batch normalization of this file, and none of Flax's."""
        params = norm.variables.get("params", {})
        scale, bias = (params.get(a, params.get(b)) for a, b in (("scale", "gamma"), ("bias", "beta")))
        match norm:
            case nn.BatchNorm():
                given = args[1] if len(args) > 1 else kwargs.get("use_running_average")
                tests = nn.merge_param("use_running_average", norm.use_running_average, given)
                return cls(norm.momentum, norm.epsilon, tests, scale, bias)
            case BatchRenorm():
                return cls(norm.momentum, norm.epsilon, kwargs["use_running_average"], scale, bias)
            case Padded(config=config):
                padding, tests = args[1], not kwargs["train"]
                return cls(config["momentum"], config["epsilon"], tests, 1 + scale, bias, padding)
            case KeptAxes():
                return cls(0.9, 1e-5, norm.deterministic, scale, bias)
            case Unbiased():
                return cls(1 - norm.update_rate, 1e-4, not kwargs["training"], scale, bias)
            case OneLeaf():
                return cls(0.95, 1e-5, not kwargs["learning"], scale, bias)
            case FrozenNorm():
                return cls(0.99, 1e-5, True, scale, bias)


# The names of the leaves with means and with variances; in `OneLeaf`, one leaf has both.
LEAVES = {"mean": ("mean", "moving_mean", "running_mean"), "var": ("var", "moving_var", "running_variance")}


def statistic(stats, key):
    """The "mean" or "var" of a layer with these leaves, (channels,) or stacked by nn.scan."""
    if "moments" in stats:
        return stats["moments"][("mean", "var").index(key)]
    leaf = next(stats[name] for name in LEAVES[key] if name in stats)
    return leaf.reshape(leaf.shape[-1]) if leaf.ndim > 2 else leaf


def is_statistic(name):
    """Whether a leaf holds a statistic."""
    return name == "moments" or name in LEAVES["mean"] + LEAVES["var"]
