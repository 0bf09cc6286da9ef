"""Derivatives of first to third order of every layer of ours against those of plain JAX and Flax."""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from dropbn.nn import activations, layers, noise, norm, words
from dropbn.nn.kernels import convolution

KEY = jax.random.key(3)
IMAGES, CHANNELS = (8, 2, 3, 4), (4,)


class Pair(NamedTuple):
    """A layer as ours and as plain ones compute it, and the shapes of its arguments."""

    ours: Callable
    plain: Callable
    shapes: tuple[tuple[int, ...], ...] = (IMAGES,)


def _bn(layer, running, x, scale, bias):
    statistics = {"mean": jnp.full(4, 0.5), "var": jnp.full(4, 2.0)}
    variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": statistics}
    return layer.apply(variables, x, use_running_average=running, mutable=["batch_stats"])


def _bn_pair(running=False, **flags):
    ours, plain = norm.BatchNorm(**flags), nn.BatchNorm(momentum=0.9, use_fast_variance=False)
    return Pair(
        *(functools.partial(_bn, layer, running) for layer in (ours, plain)), (IMAGES, CHANNELS, CHANNELS)
    )


def _by_halves(x, scale, bias):
    (y, a), (z, b) = (_bn_pair().plain(half, scale, bias) for half in jnp.split(x, 2))
    return jnp.concatenate([y, z]), jax.tree.map(lambda a, b: (a + b) / 2, a, b)


def _noisy(kind, x, amount=0.0, **flags):
    return kind(nn.sigmoid(amount), **flags).apply({}, x, False, KEY)


def _kept(x, amount=0.0):
    """Dropout of JAX alone, at the rate sigmoid(amount), and its keep."""
    keep = 1 - nn.sigmoid(jnp.asarray(amount))
    return jnp.where(jax.random.bernoulli(KEY, keep, x.shape), x / keep, 0), keep


def _restored(x, amount):
    y, keep = _kept(x, amount)
    c, v = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return c + (y - c) * jnp.sqrt(v / (v + (1 / keep - 1) * (c**2 + v)))


def _gaussian(x, amount):
    rate = nn.sigmoid(amount)
    return x * (1 + jnp.sqrt(rate / (1 - rate)) * jax.random.normal(KEY, x.shape, jnp.float32))


def _uout(x, amount):
    return x * (1 + nn.sigmoid(amount) * (2 * jax.random.uniform(KEY, x.shape, jnp.float32) - 1))


def _excited(x, *arrays):
    names = itertools.product(("squeeze", "excite"), ("kernel", "bias"))
    params = {"squeeze": {}, "excite": {}}
    for (layer, name), array in zip(names, arrays, strict=True):
        params[layer][name] = array
    return layers.SqueezeExcite(2, nn.tanh, dtype=x.dtype).apply({"params": params}, x)


def _excited_plainly(x, w1, b1, w2, b2):
    return x * nn.sigmoid(nn.tanh(x.mean((1, 2), keepdims=True) @ w1 + b1) @ w2 + b2)


def _lrn(x):
    padded = jnp.pad(x**2, ((0, 0),) * 3 + ((2, 2),))
    return x * (1 + 1e-4 / 5 * sum(padded[..., i : i + x.shape[-1]] for i in range(5))) ** -0.75


def _penalty(x):
    m = nn.sigmoid(x).mean((0, 1, 2))
    return 2 * (0.1 * jnp.log(0.1 / m) + 0.9 * jnp.log(0.9 / (1 - m))).sum()


def _conv(convolve, x, w):
    return convolve(x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


PAIRS = {
    "bn": _bn_pair(),
    "bn by running statistics": _bn_pair(running=True),
    "bn by groups": _bn_pair(group_size=4)._replace(plain=_by_halves),
    "dropout": Pair(functools.partial(_noisy, noise.Dropout), lambda *given: _kept(*given)[0], (IMAGES, ())),
    "flax's dropout": Pair(
        lambda x: noise.Dropout(0.4).apply({}, x, False, KEY),
        lambda x: nn.Dropout(0.4).apply({}, x, False, KEY),
    ),
    "dropout, sqrt_keep": Pair(
        functools.partial(_noisy, noise.Dropout, restore="sqrt_keep"),
        lambda *given: jnp.multiply(*(lambda y, keep: (y, jnp.sqrt(keep)))(*_kept(*given))),
        (IMAGES, ()),
    ),
    "dropout, exact": Pair(
        functools.partial(_noisy, noise.Dropout, restore="exact"), _restored, (IMAGES, ())
    ),
    "gaussian": Pair(functools.partial(_noisy, noise.GaussianDropout), _gaussian, (IMAGES, ())),
    "uout": Pair(functools.partial(_noisy, noise.Uout), _uout, (IMAGES, ())),
    "rrelu": Pair(
        lambda x: activations.RReLU().apply({}, x, False, KEY),
        lambda x: jnp.where(x > 0, x, x / (3 + 5 * jax.random.uniform(KEY, x.shape, jnp.float32))),
    ),
    "prelu": Pair(
        lambda x, slope: activations.PReLU().apply({"params": {"slope": slope}}, x),
        lambda x, slope: jnp.maximum(x, 0) + slope * jnp.minimum(x, 0),
        (IMAGES, CHANNELS),
    ),
    "maxout": Pair(activations.maxout, lambda x: x.reshape(*x.shape[:-1], 2, 2).max(-1)),
    "se": Pair(_excited, _excited_plainly, (IMAGES, (4, 2), (2,), (2, 4), (4,))),
    "lrn": Pair(words.local_response_norm, _lrn),
    "sparse": Pair(lambda x: words.sparsity_penalty(nn.sigmoid(x), 0.1, 2), _penalty),
    "conv": Pair(
        functools.partial(_conv, convolution.conv_general_dilated),
        functools.partial(_conv, lax.conv_general_dilated),
        ((40, 4, 3, 2), (3, 3, 2, 3)),
    ),
}
# Those whose derivative we write ourselves.
OWN = ("bn", "bn by groups", "conv")


def _forward(function, along):
    return lambda *given: jax.jvp(function, given, along)[1]


def _reverse(function, along):
    def slope(*given):
        return _dot(jax.grad(function, tuple(range(len(given))))(*given), along)

    return slope


def _dot(a, b):
    return sum(map(jnp.vdot, jax.tree.leaves(a), jax.tree.leaves(b)))


def _slope(loss, along, way):
    """The derivative of a loss along a direction, once for each step of a way, the first step innermost."""
    return functools.reduce(lambda function, step: step(function, along), way, loss)


def _loss(function, layer, *given):
    """A weighted sum of a function of the layer's outputs. Of the identity, its own slope is a constant."""
    leaves = jax.tree.leaves(layer(*given))
    weights = [jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape) for leaf in leaves]
    return sum((function(leaf) * weight).sum() for leaf, weight in zip(leaves, weights, strict=True))


def _close(found, wanted, dtype, name=""):
    # The inverse of erf in a normal number, which is of float32, is rounded by programs in different ways.
    tolerance = {"float32": 2e-5, "float64": 1e-7 if name == "gaussian" else 1e-11}[dtype]
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * largest), found, wanted
    )


def _in(dtype, shapes):
    """Arguments and a direction."""
    rng = np.random.default_rng(0)
    return [tuple(jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes) for _ in range(2)]


SECOND = tuple(itertools.product((_forward, _reverse), repeat=2))
THIRD = (_forward, _reverse, _forward)


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "float64"])
@pytest.mark.parametrize("name", PAIRS)
def test_higher_derivatives_are_the_plain_ones(name, dtype):
    ours, plain, shapes = PAIRS[name]
    own = name in OWN
    seconds = SECOND if own else SECOND[-1:]
    thirds = (THIRD, (_reverse,) * 3) if own else (THIRD,)
    thirds = thirds if dtype == "float64" else ()

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def slopes(layer, ways, given, along):
        loss = functools.partial(_loss, jnp.sin, layer)
        return [_slope(loss, along, way)(*given) for way in ways]

    with jax.enable_x64(dtype == "float64"):
        both = _in(dtype, shapes)
        found = slopes(ours, seconds + thirds, *both)
        second, *third = slopes(plain, SECOND[1:2] + thirds[:1], *both)
        _close(found, [second] * len(seconds) + third * len(thirds), dtype, name)


@pytest.mark.parametrize("name", ["bn", "conv", pytest.param("bn by groups", marks=pytest.mark.slow)])
def test_slopes_that_are_zero_and_other_transformations(name):
    """Of one output in one argument, with a constant slope. What JAX knows to be zero, it leaves out."""
    ours, plain, shapes = PAIRS[name]

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def derivatives(layer, number, given, along):
        def loss(x):
            whole = *given[:number], x, *given[number + 1 :]
            return _loss(lambda y: y, lambda x: jax.tree.leaves(layer(*whole))[0], x)

        def penalty(loss, x):
            return jnp.square(jax.grad(loss)(x)).sum()

        def thrice(x):
            return lax.scan(lambda total, _: (total + loss(x), None), jnp.zeros(()), length=3)[0]

        x, direction = given[number], along[number]
        return {
            "forward over reverse": jax.jvp(jax.grad(loss), (x,), (direction,))[1],
            "reverse over forward": jax.grad(_forward(loss, (direction,)))(x),
            "linearized": jax.linearize(jax.grad(loss), x)[1](direction),
            "hessian": jax.hessian(lambda part: loss(x.at[0].set(part)))(x[0]),
            "penalties": [
                jax.grad(functools.partial(penalty, function))(x)
                for function in (loss, jax.checkpoint(loss), thrice)
            ],
        }

    with jax.enable_x64():
        both = _in("float64", shapes)
        for number in range(len(shapes)):
            found, wanted = (derivatives(layer, number, *both) for layer in (ours, plain))
            for what, values in found.items():
                _close(values, wanted[what], "float64")
