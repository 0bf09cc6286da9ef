"""Models in the styles of public code that draw their noise by hand, and how each is called plainly."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from public_style_models import NUMBER, Case

_DRAWN = np.random.default_rng(0)
_IMAGES = [
    (_DRAWN.normal(0.5, 1, (NUMBER, 4, 4, 2)).astype(np.float32), _DRAWN.integers(0, 3, NUMBER))
    for _ in range(2)
]
_FLAT = [(x[:, 0].reshape(NUMBER, 8), y) for x, y in _IMAGES]


def norm(x, train, name=None):
    """BN and ReLU."""
    return nn.relu(nn.BatchNorm(momentum=0.9, name=name)(x, use_running_average=not train))


class DropPath(nn.Module):
    """Stochastic depth, as timm and its ports write it."""

    rate: float = 0.3

    @nn.compact
    def __call__(self, x, train):
        if not train:
            return x
        shape = (len(x),) + (1,) * (x.ndim - 1)
        kept = jnp.floor(1 - self.rate + jax.random.uniform(self.make_rng("dropout"), shape))
        return x / (1 - self.rate) * kept


class MBConv(nn.Module):
    """Inverted bottleneck with squeeze and excitation."""

    @nn.compact
    def __call__(self, x, train):
        y = nn.Conv(4, (1, 1), use_bias=False)(x)
        y = nn.swish(nn.BatchNorm(momentum=0.9)(y, use_running_average=not train))
        y = nn.Conv(4, (3, 3), feature_group_count=4, use_bias=False)(y)
        y = nn.swish(nn.BatchNorm(momentum=0.9)(y, use_running_average=not train))
        y = y * nn.sigmoid(nn.Dense(4)(nn.swish(nn.Dense(2)(y.mean((1, 2), keepdims=True)))))
        y = nn.Conv(x.shape[-1], (1, 1), use_bias=False)(y)
        y = nn.BatchNorm(momentum=0.9)(y, use_running_average=not train)
        return x + DropPath()(y, train)


class EfficientNet(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        for _ in range(2):
            x = MBConv()(x, train)
        x = norm(nn.Conv(4, (1, 1), use_bias=False)(x), train, "head")
        return nn.Dense(3)(x.mean((1, 2)))


class ConvNeXt(nn.Module):
    """Blocks of ConvNeXt with BN in place of LayerNorm, and a layer scale."""

    @nn.compact
    def __call__(self, x, train=False):
        for i in range(2):
            y = nn.Conv(2, (3, 3), feature_group_count=2)(x)
            y = nn.BatchNorm(momentum=0.9)(y, use_running_average=not train)
            y = nn.Dense(2)(nn.gelu(nn.Dense(8)(y)))
            x = x + DropPath(0.2)(self.param(f"gamma{i}", nn.initializers.constant(0.5), (2,)) * y, train)
        return nn.Dense(3)(norm(x, train, "last").mean((1, 2)))


class ShakeShake(nn.Module):
    """A random mean of two branches, another one backward, and their plain mean in test mode."""

    @nn.compact
    def __call__(self, a, b, train):
        if not train:
            return (a + b) / 2
        shape = (len(a), 1, 1, 1)
        forward, backward = (jax.random.uniform(self.make_rng("shake"), shape) for _ in range(2))
        a_backward, b_backward = a * backward, b * (1 - backward)
        y = a_backward + b_backward
        return y + jax.lax.stop_gradient(a * forward + b * (1 - forward) - y)


class ShakeShakeNet(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        def branch(x):
            x = norm(nn.Conv(4, (3, 3), use_bias=False)(nn.relu(x)), train)
            return nn.BatchNorm(momentum=0.9)(
                nn.Conv(2, (3, 3), use_bias=False)(x), use_running_average=not train
            )

        x = x + ShakeShake(name="shake")(branch(x), branch(x), train)
        return nn.Dense(3)(norm(x, train, "last").mean((1, 2)))


class ShakeDrop(nn.Module):
    """PyramidNet's shake-drop: b + alpha - b alpha for a drawn b and alpha in [-1, 1]."""

    keep: float = 0.7

    @nn.compact
    def __call__(self, x, train):
        if not train:
            return self.keep * x
        b = jax.random.bernoulli(self.make_rng("dropout"), self.keep).astype(x.dtype)
        alpha = jax.random.uniform(self.make_rng("dropout"), (len(x), 1, 1, 1), minval=-1, maxval=1)
        return x * (b + alpha - b * alpha)


class Pyramid(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        y = nn.Conv(3, (3, 3), use_bias=False)(norm(x, train, "first"))
        y = ShakeDrop(name="shake")(y, train)
        x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, 1))) + y
        return nn.Dense(3)(norm(x, train, "last").mean((1, 2)))


class DropBlock(nn.Module):
    """Drops square blocks and rescales by the share of what is left."""

    rate: float = 0.2
    size: int = 2

    @nn.compact
    def __call__(self, x, train):
        if not train or self.rate == 0:
            return x
        centres = jax.random.bernoulli(self.make_rng("dropout"), self.rate / self.size**2, x.shape)
        dropped = nn.max_pool(centres.astype(x.dtype), (self.size, self.size), padding="SAME")
        kept = 1 - dropped
        return x * kept * kept.size / kept.sum()


class DropBlockNet(nn.Module):
    """A ResNet's block with DropBlock after each convolution and on the skip."""

    @nn.compact
    def __call__(self, x, train=False):
        y = DropBlock(name="drop1")(nn.Conv(4, (3, 3), use_bias=False)(x), train)
        y = norm(y, train, "norm1")
        y = DropBlock(name="drop2")(nn.Conv(2, (3, 3), use_bias=False)(y), train)
        y = nn.BatchNorm(momentum=0.9, name="norm2")(y, use_running_average=not train)
        return nn.Dense(3)(nn.relu(y + x).mean((1, 2)))


class Attention(nn.Module):
    """Attention with its own dropout between BNs, as in transformers for time series."""

    @nn.compact
    def __call__(self, x, train=False):
        x = x.reshape(len(x), 8, -1)
        x = nn.Dense(4)(x)
        y = nn.MultiHeadDotProductAttention(2, dropout_rate=0.3, name="attention")(x, deterministic=not train)
        x = nn.BatchNorm(momentum=0.9, name="norm")(y, use_running_average=not train)
        return nn.Dense(3)(norm(nn.Dense(4)(x), train, "last").mean(1))


class VariationalEncoder(nn.Module):
    """The reparametrization trick in training, the mean in test mode."""

    @nn.compact
    def __call__(self, x, train=False):
        mean, log_variance = jnp.split(nn.Dense(8)(norm(nn.Dense(6)(x), train, "encoder")), 2, -1)
        code = mean
        if train:
            code = mean + jnp.exp(0.5 * log_variance) * jax.random.normal(self.make_rng("code"), mean.shape)
        return nn.Dense(3)(norm(nn.Dense(6)(code), train, "decoder"))


class Gates(nn.Module):
    """Stochastic gates for the choice of features: a clipped Gaussian about learned means."""

    @nn.compact
    def __call__(self, x, train):
        means = self.param("means", nn.initializers.constant(0.4), x.shape[-1:])
        if train:
            means = means + 0.5 * jax.random.normal(self.make_rng("dropout"), x.shape)
        return x * jnp.clip(means, 0, 1)


class Gated(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = Gates(name="gates")(x, train)
        return nn.Dense(3)(norm(nn.Dense(6)(x), train, "norm"))


class Layer(nn.Module):
    """The body of a scan, with drop path in its residual branch."""

    train: bool

    @nn.compact
    def __call__(self, x, _):
        y = norm(nn.Dense(6)(x), self.train, "norm")
        return x + DropPath(name="path")(nn.Dense(8)(y), self.train), None


class ScannedPaths(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        own = {"params": 0, "batch_stats": 0, "intermediates": 0}
        split = {"params": True, "dropout": True}
        layers = nn.scan(nn.remat(Layer), variable_axes=own, split_rngs=split, length=2)
        x, _ = layers(train, name="layers")(x, None)
        return nn.Dense(3)(norm(x, train, "last"))


class AlphaDropout(nn.Module):
    """Sets to SELU's negative saturation, and keeps mean and variance of a standard normal."""

    rate: float = 0.2

    @nn.compact
    def __call__(self, x, train):
        if not train:
            return x
        low, keep = -1.0507009873554805 * 1.6732632423543772, 1 - self.rate
        scale = (keep + keep * (1 - keep) * low**2) ** -0.5
        kept = jax.random.bernoulli(self.make_rng("dropout"), keep, x.shape)
        return scale * jnp.where(kept, x, low) - scale * (1 - keep) * low


class SelfNormalizing(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = AlphaDropout(name="alpha")(nn.selu(nn.Dense(6)(x)), train)
        x = nn.selu(nn.BatchNorm(momentum=0.9, name="norm")(nn.Dense(6)(x), use_running_average=not train))
        return nn.Dense(3)(x)


class RReLU(nn.Module):
    """A leaky ReLU whose negative slope is drawn, and its mean in test mode."""

    @nn.compact
    def __call__(self, x, train):
        slope = 11 / 48
        if train:
            slope = jax.random.uniform(self.make_rng("dropout"), x.shape, minval=1 / 8, maxval=1 / 3)
        return jnp.where(x >= 0, x, slope * x)


class Leaky(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = RReLU(name="leaky")(nn.Dense(6)(x), train)
        return nn.Dense(3)(norm(nn.Dense(6)(x), train, "norm"))


class Denoising(nn.Module):
    """Gaussian noise on the input, in the model's own body."""

    @nn.compact
    def __call__(self, x, train=False):
        if train:
            x = x + 0.4 * jax.random.normal(self.make_rng("dropout"), x.shape)
        return nn.Dense(3)(norm(nn.Dense(6)(x), train, "norm"))


class SpecAugment(nn.Module):
    """Masks one band of frequencies and one span of time in each spectrogram."""

    @nn.compact
    def __call__(self, x, train):
        if not train:
            return x
        for axis in (1, 2):
            number, key = x.shape[axis], self.make_rng("dropout")
            start = jax.random.randint(key, (len(x), 1), 0, number)
            place = jnp.arange(number)[None]
            kept = (place < start) | (place >= start + 2)
            x = x * jnp.expand_dims(kept, (3 - axis, 3)[: x.ndim - 2])
        return x


class Speech(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = SpecAugment(name="augment")(x, train)
        x = norm(nn.Conv(4, (3, 3), use_bias=False)(x), train, "norm")
        return nn.Dense(3)(x.mean((1, 2)))


class PaddedAugment(nn.Module):
    """Masks a band of each spectrogram, and hands its padding on."""

    @nn.compact
    def __call__(self, x, padding):
        return SpecAugment(name="bands")(x, True), padding


class PaddedSpeech(nn.Module):
    """Calls what it augments with in training alone."""

    @nn.compact
    def __call__(self, x, padding=None, train=False):
        padding = jnp.zeros(x.shape[:2]) if padding is None else padding
        if train:
            x, padding = PaddedAugment(name="augment")(x, padding)
        x = norm(nn.Conv(4, (3, 3), use_bias=False)(x), train, "norm")
        return nn.Dense(3)(jnp.mean(x * (1 - padding)[:, :, None, None], (1, 2)))


def _keys(stream):
    """What a tool takes by default: key 0 is that of "dropout"."""
    return {"keys": {stream: jax.random.key(1)}}


def _found(code, *pairs, **more):
    return {"findings": {code: set(pairs)}, **more}


CASES = {
    # The skip of a block carries the drop path of the block before to the next BNs on either branch.
    "efficientnet": Case(
        EfficientNet(),
        _IMAGES,
        **_found(
            "DBN103",
            ("MBConv_0/DropPath_0", "MBConv_1/BatchNorm_0"),
            ("MBConv_0/DropPath_0", "head"),
            ("MBConv_1/DropPath_0", "head"),
        ),
    ),
    "convnext": Case(
        ConvNeXt(),
        _IMAGES,
        **_found("DBN103", ("DropPath_0", "BatchNorm_1"), ("DropPath_0", "last"), ("DropPath_1", "last")),
    ),
    "shake-shake": Case(ShakeShakeNet(), _IMAGES, **_found("DBN103", ("shake", "last"), **_keys("shake"))),
    # Two draws in one noise; its place, right before the addition, is that of drop path.
    "shake-drop": Case(Pyramid(), _IMAGES, **_found("DBN103", ("shake; shake", "last"))),
    "dropblock": Case(DropBlockNet(), _IMAGES, **_found("DBN101", ("drop1", "norm1"), ("drop2", "norm2"))),
    # It drops attention weights, before they weigh the values.
    "attention": Case(Attention(), _IMAGES, **_found("DBN102", ("attention", "norm"))),
    # The mean is a skip for what is added to it.
    "reparametrized": Case(VariationalEncoder(), _FLAT, **_found("DBN103", ("", "decoder"), **_keys("code"))),
    "gates": Case(Gated(), _FLAT, **_found("DBN102", ("gates", "norm"))),
    "scanned paths": Case(
        ScannedPaths(),
        _FLAT,
        **_found("DBN103", ("layers/path", "layers/norm"), ("layers/path", "last")),
    ),
    "alpha dropout": Case(SelfNormalizing(), _FLAT, **_found("DBN102", ("alpha", "norm"))),
    "rrelu": Case(Leaky(), _FLAT, **_found("DBN102", ("leaky", "norm"))),
    "input noise": Case(Denoising(), _FLAT, **_found("DBN102", ("", "norm"))),
    "padded specaugment": Case(PaddedSpeech(), _IMAGES, **_found("DBN102", ("augment/bands", "norm"))),
    "specaugment": Case(Speech(), _IMAGES, **_found("DBN102", ("augment", "norm"))),
}
