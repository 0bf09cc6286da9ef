"""Small networks with dropout and batch normalization in right and wrong orders, labelled by hand.

The definition, for each noise and each batch normalization (BN) that it reaches first on some path (a BN ends
the path):

* error, "directly": through activations, elementwise products, reshapes, pooling and concatenation at most;
* error, "through weights": through a convolution or a dense layer;
* info, "into a skip": from inside a residual branch into an addition with a skip that is free of that noise.
  Noise on the trunk before it splits is on both sides of the addition, which relieves nothing, and no more
  does a parameter that is added (a bias, a position embedding);
* no finding: no BN behind it, or only other normalizations; rate 0; `deterministic=True` for good.

A noise that meets one BN on several paths has one finding, the worst of the three in the order above. A
module that is called several times (shared, or the body of `nn.scan`) is one noise or one BN by name, but
each of its draws is a noise of its own: what an earlier draw left on the trunk does not make a skip noisy.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dropbn.nn.noise import GaussianDropout, Uout


class Case(NamedTuple):
    name: str
    model: nn.Module
    shape: tuple[int, ...]  # of an input batch
    findings: set[tuple[str, str, str, str]]  # (severity, way, path of the noise, path of the BN)
    source: str  # where the order comes from


def direct(noise, norm):
    return ("error", "directly", noise, norm)


def weights(noise, norm):
    return ("error", "through weights", noise, norm)


def skip(noise, norm):
    return ("info", "into a skip", noise, norm)


IMAGE = (2, 8, 8, 3)
ROWS = (4, 6)


# Pieces. Every network calls its input `x` and takes `train`.


def conv(x, name, size=3, features=8):
    return nn.Conv(features, (size, size), name=name)(x)


def drop(x, name, train, rate=0.5):
    return nn.Dropout(rate, deterministic=not train, name=name)(x)


def bn(x, name, train):
    return nn.BatchNorm(use_running_average=not train, name=name)(x)


def gap(x):
    return x.mean((1, 2))


def run(order, x, train, rate=0.5):
    """Applies the layers that `order` names, one after the other: 'conv1 drop1 bn1 relu gap fc'."""
    for name in order.split():
        kind = name.rstrip("0123456789")
        if kind == "conv":
            x = nn.Conv(8, (3, 3), name=name)(x)
        elif kind == "depthwise":
            x = nn.Conv(x.shape[-1], (3, 3), feature_group_count=x.shape[-1], name=name)(x)
        elif kind == "deconv":
            x = nn.ConvTranspose(8, (2, 2), strides=(2, 2), name=name)(x)
        elif kind in ("dense", "fc"):
            x = nn.Dense(8 if kind == "dense" else 3, name=name)(x)
        elif kind == "drop":
            x = nn.Dropout(rate, name=name)(x, deterministic=not train)
        elif kind == "spatial":
            x = nn.Dropout(rate, broadcast_dims=(1, 2), name=name)(x, deterministic=not train)
        elif kind == "uout":
            x = Uout(0.5, name=name)(x, deterministic=not train)
        elif kind == "gauss":
            x = GaussianDropout(0.5, name=name)(x, deterministic=not train)
        elif kind == "bn":
            x = nn.BatchNorm(name=name)(x, use_running_average=not train)
        elif kind == "ln":
            x = nn.LayerNorm(name=name)(x)
        elif kind == "gn":
            x = nn.GroupNorm(num_groups=4, name=name)(x)
        elif kind == "in":
            x = nn.InstanceNorm(name=name)(x)
        elif kind == "relu":
            x = nn.relu(x)
        elif kind == "lrelu":
            x = nn.leaky_relu(x)
        elif kind == "gelu":
            x = nn.gelu(x)
        elif kind == "max":
            x = nn.max_pool(x, (2, 2), (2, 2))
        elif kind == "avg":
            x = nn.avg_pool(x, (2, 2), (2, 2))
        elif kind == "gap":
            x = gap(x)
        elif kind == "flatten":
            x = x.reshape(len(x), -1)
        else:
            raise ValueError(name)
    return x


class Chain(nn.Module):
    """Layers in a row."""

    order: str
    rate: float = 0.5

    @nn.compact
    def __call__(self, x, train=False):
        return run(self.order, x, train, self.rate)


# Residual networks.


class PreActBlock(nn.Module):
    """Kim et al.'s block, noise p0 to p7 at P0 to P7.

    The shortcut is the identity, or a 1x1 convolution of the block's input ("trunk") or of relu(bn1(x))
    ("activated").
    """

    places: tuple[int, ...] = ()
    projection: str = ""
    train: bool = False

    @nn.compact
    def __call__(self, x):
        x = self.noise(0, x)
        h = bn(self.noise(1, x), "bn1", self.train)
        h = self.noise(3, nn.relu(self.noise(2, h)))
        if self.projection:
            x = conv(h if self.projection == "activated" else x, "shortcut", 1)
        h = bn(self.noise(4, conv(h, "conv1")), "bn2", self.train)
        h = self.noise(6, nn.relu(self.noise(5, h)))
        return x + self.noise(7, conv(h, "conv2"))

    def noise(self, place, x):
        return drop(x, f"p{place}", self.train) if place in self.places else x


class PreActNet(nn.Module):
    places: tuple[int, ...] = ()
    projections: tuple[str, ...] = ("", "")
    lift: str = ""

    @nn.compact
    def __call__(self, x, train=False):
        block = {"": PreActBlock, "remat": nn.remat(PreActBlock), "jit": nn.jit(PreActBlock)}[self.lift]
        x = conv(x, "stem")
        for i, projection in enumerate(self.projections, 1):
            x = block(self.places, projection, train, name=f"b{i}")(x)
        return nn.Dense(3, name="fc")(gap(nn.relu(bn(x, "head_bn", train))))


class PreActBottleneckNet(nn.Module):
    """Li et al.'s Dropout-(a) and Dropout-(b) in PreResNet bottlenecks."""

    place: str

    @nn.compact
    def __call__(self, x, *, train=False):
        x = conv(x, "stem")
        for i in (1, 2):
            x = x + PreActBottleneck(self.place, train, name=f"b{i}")(x)
        return nn.Dense(3, name="fc")(gap(nn.relu(bn(x, "head_bn", train))))


class PreActBottleneck(nn.Module):
    """The branch alone."""

    place: str
    train: bool

    @nn.compact
    def __call__(self, x):
        h = conv(nn.relu(bn(x, "bn1", self.train)), "conv1", 1, 4)
        h = conv(nn.relu(bn(h, "bn2", self.train)), "conv2", 3, 4)
        if self.place == "a":
            h = drop(h, "drop", self.train)
        h = nn.relu(bn(h, "bn3", self.train))
        if self.place == "b":
            h = drop(h, "drop", self.train)
        return conv(h, "conv3", 1)


class ResNeXtBlock(nn.Module):
    place: str
    train: bool

    @nn.compact
    def __call__(self, x):
        h = nn.relu(bn(conv(x, "conv_reduce", 1), "bn_reduce", self.train))
        h = nn.Conv(8, (3, 3), feature_group_count=2, name="conv_conv")(h)
        h = nn.relu(bn(h, "bn", self.train))
        if self.place == "b":
            h = drop(h, "drop", self.train)
        h = conv(h, "conv_expand", 1)
        if self.place == "a":
            h = drop(h, "drop", self.train)
        h = bn(h, "bn_expand", self.train)
        return nn.relu(h + bn(conv(x, "shortcut", 1), "shortcut_bn", self.train))


class ResNeXt(nn.Module):
    place: str

    @nn.compact
    def __call__(self, x, train=False):
        for i in (1, 2):
            x = ResNeXtBlock(self.place, train, name=f"b{i}")(x)
        return nn.Dense(3, name="fc")(gap(x))


class BasicBlockV1(nn.Module):
    """He et al. 2015: BN after every convolution, ReLU after the addition."""

    place: str
    projection: bool
    train: bool

    @nn.compact
    def __call__(self, x):
        x = self.noise("input", x)
        shortcut = x
        if self.projection:
            shortcut = bn(conv(x, "shortcut", 1), "shortcut_bn", self.train)
        shortcut = self.noise("shortcut", shortcut)
        h = nn.relu(bn(conv(x, "conv1"), "bn1", self.train))
        h = conv(self.noise("before_conv2", h), "conv2")
        h = bn(self.noise("before_bn2", h), "bn2", self.train)
        h = self.noise("end", h)
        return self.noise("after", nn.relu(shortcut + h))

    def noise(self, place, x):
        return drop(x, "drop", self.train) if place == self.place else x


class ResNetV1(nn.Module):
    place: str
    projections: tuple[bool, ...]

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(bn(conv(x, "stem"), "stem_bn", train))
        for i, projection in enumerate(self.projections, 1):
            x = BasicBlockV1(self.place, projection, train, name=f"b{i}")(x)
        return nn.Dense(3, name="fc")(gap(x))


class WideBlock(nn.Module):
    """A WRN block; a projecting shortcut starts behind the first ReLU."""

    place: str
    projection: bool
    train: bool

    @nn.compact
    def __call__(self, x):
        h = nn.relu(bn(x, "bn1", self.train))
        shortcut = conv(h, "shortcut", 1) if self.projection else x
        h = conv(h, "conv1")
        if self.place == "before_bn2":
            h = drop(h, "drop", self.train, 0.3)
        h = nn.relu(bn(h, "bn2", self.train))
        if self.place == "before_conv2":
            h = drop(h, "drop", self.train, 0.3)
        return shortcut + conv(h, "conv2")


class WideResNet(nn.Module):
    place: str
    projections: tuple[bool, ...] = (True, False)

    @nn.compact
    def __call__(self, x, train=False):
        x = conv(x, "stem")
        for i, projection in enumerate(self.projections, 1):
            x = WideBlock(self.place, projection, train, name=f"b{i}")(x)
        return nn.Dense(3, name="fc")(gap(nn.relu(bn(x, "bn", train))))


class Head(nn.Module):
    """Kim et al.'s head, noise at H1 to H6, behind a trunk with BN and without noise."""

    place: int

    @nn.compact
    def __call__(self, x, train=False):
        def noise(place, x):
            return drop(x, "drop", train) if place == self.place else x

        x = nn.relu(bn(conv(x, "conv"), "bn", train))
        x = noise(2, conv(noise(1, x), "head_conv", 1))
        x = noise(3, bn(x, "head_bn", train))
        x = noise(4, nn.relu(x))
        x = noise(5, gap(x))
        return noise(6, nn.Dense(3, name="fc")(x))


class InvertedResidual(nn.Module):
    """EfficientNet's block: stochastic depth is dropout with one draw per example."""

    train: bool

    @nn.compact
    def __call__(self, x):
        h = nn.swish(bn(conv(x, "expand", 1), "bn1", self.train))
        h = nn.Conv(8, (3, 3), feature_group_count=8, name="depthwise")(h)
        h = nn.swish(bn(h, "bn2", self.train))
        h = bn(conv(h, "project", 1), "bn3", self.train)
        h = h * self.param("layer_scale", nn.initializers.ones, (8,))
        h = nn.Dropout(0.2, broadcast_dims=(1, 2, 3), deterministic=not self.train, name="path")(h)
        return x + h


class EfficientNet(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.swish(bn(conv(x, "stem"), "stem_bn", train))
        for i in (1, 2):
            x = InvertedResidual(train, name=f"b{i}")(x)
        x = nn.swish(bn(conv(x, "head", 1), "head_bn", train))
        return nn.Dense(3, name="fc")(drop(gap(x), "drop", train))


class StemNoise(nn.Module):
    """Noise once, on the trunk before all blocks."""

    @nn.compact
    def __call__(self, x, train=False):
        x = drop(conv(x, "stem"), "drop", train)
        x = PreActBlock(train=train, name="b1")(x)
        x = PreActBlock(projection="trunk", train=train, name="b2")(x)
        return nn.Dense(3, name="fc")(gap(nn.relu(bn(x, "head_bn", train))))


class Nested(nn.Module):
    """A residual block inside a residual branch."""

    place: str

    @nn.compact
    def __call__(self, x, train=False):
        x = conv(x, "stem")
        h = nn.relu(bn(x, "bn1", train))
        if self.place == "before_inner":
            h = drop(h, "drop", train)
        inner = conv(nn.relu(conv(h, "inner1")), "inner2")
        if self.place == "in_inner":
            inner = drop(inner, "drop", train)
        h = bn(h + inner, "bn2", train)
        x = x + conv(nn.relu(h), "conv")
        return nn.Dense(3, name="fc")(gap(bn(x, "head_bn", train)))


class TwoBranches(nn.Module):
    """A skip and two branches, noise in one of them (ShakeShake's shape)."""

    @nn.compact
    def __call__(self, x, train=False):
        x = conv(x, "stem")
        left = drop(conv(nn.relu(bn(x, "left_bn", train)), "left"), "drop", train)
        right = conv(nn.relu(bn(x, "right_bn", train)), "right")
        return nn.Dense(3, name="fc")(gap(nn.relu(bn(x + left + right, "bn", train))))


class Highway(nn.Module):
    """t h + (1 - t) x with noise in h alone."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(8, name="stem")(x)
        t = nn.sigmoid(nn.Dense(8, name="gate")(x))
        h = drop(nn.relu(nn.Dense(8, name="dense")(x)), "drop", train)
        return nn.Dense(3, name="fc")(bn(t * h + (1 - t) * x, "bn", train))


class WideAndDeep(nn.Module):
    """A linear part beside a deep one, of the same input: a shortcut with a projection."""

    @nn.compact
    def __call__(self, x, train=False):
        deep = drop(nn.relu(nn.Dense(8, name="deep1")(x)), "drop", train)
        x = nn.Dense(8, name="wide")(x) + nn.Dense(8, name="deep2")(deep)
        return nn.Dense(3, name="fc")(nn.relu(bn(x, "bn", train)))


# Concatenation and other joints.


class DenseLayer(nn.Module):
    place: str
    train: bool

    @nn.compact
    def __call__(self, x):
        h = conv(nn.relu(bn(x, "bn1", self.train)), "conv1", 1)
        h = self.noise("before_bn2", h)
        h = self.noise("before_conv2", nn.relu(bn(h, "bn2", self.train)))
        h = self.noise("after_conv2", conv(h, "conv2", 3, 4))
        return jnp.concatenate([x, h], axis=-1)

    def noise(self, place, x):
        return drop(x, "drop", self.train, 0.2) if place == self.place else x


class DenseNet(nn.Module):
    place: str
    transition: bool = False

    @nn.compact
    def __call__(self, x, train=False):
        x = conv(x, "stem")
        for i in (1, 2, 3):
            if i == 3 and self.transition:
                x = conv(nn.relu(bn(x, "transition_bn", train)), "transition", 1)
                x = nn.avg_pool(x, (2, 2), (2, 2))
            x = DenseLayer(self.place, train, name=f"l{i}")(x)
        return nn.Dense(3, name="fc")(gap(nn.relu(bn(x, "bn", train))))


class Inception(nn.Module):
    """Three parallel branches, noise in two, concatenated, then BN or convolution and BN."""

    mix: bool

    @nn.compact
    def __call__(self, x, train=False):
        a = nn.relu(bn(conv(x, "a", 1), "a_bn", train))
        b = drop(conv(x, "b1", 1), "b_drop", train)
        b = nn.relu(bn(conv(b, "b2"), "b_bn", train))
        c = drop(conv(nn.max_pool(x, (3, 3), padding="SAME"), "c", 1), "c_drop", train)
        x = jnp.concatenate([a, b, c], axis=-1)
        if self.mix:
            x = conv(x, "mix", 1)
        return nn.Dense(3, name="fc")(gap(nn.relu(bn(x, "bn", train))))


class SqueezeExcite(nn.Module):
    place: str
    residual: bool = False

    @nn.compact
    def __call__(self, x, train=False):
        def noise(place, x):
            return drop(x, "drop", train) if place == self.place else x

        x = conv(x, "stem")
        h = noise("input", conv(nn.relu(bn(x, "bn1", train)), "conv"))
        gate = noise("squeezed", nn.relu(nn.Dense(4, name="squeeze")(gap(h))))
        gate = nn.sigmoid(noise("gate", nn.Dense(8, name="excite")(gate)))
        h = h * gate[:, None, None, :]
        h = x + h if self.residual else h
        return nn.Dense(3, name="fc")(gap(nn.relu(bn(h, "bn2", train))))


class UNet(nn.Module):
    """One level; the skip is concatenated (U-Net) or added (LinkNet)."""

    place: str
    add: bool = False

    @nn.compact
    def __call__(self, x, train=False):
        high = nn.relu(bn(conv(x, "enc"), "enc_bn", train))
        if self.place == "encoder":
            high = drop(high, "drop", train)
        low = nn.max_pool(high, (2, 2), (2, 2))
        low = nn.relu(bn(conv(low, "middle"), "middle_bn", train))
        if self.place == "bottom":
            low = drop(low, "drop", train)
        up = nn.ConvTranspose(8, (2, 2), strides=(2, 2), name="up")(low)
        x = high + up if self.add else jnp.concatenate([high, up], axis=-1)
        x = nn.relu(bn(conv(x, "dec"), "dec_bn", train))
        return nn.Conv(3, (1, 1), name="out")(x)


class Pix2PixUp(nn.Module):
    """deconv-BN-dropout, concatenated with the encoder's features, then ReLU-deconv-BN."""

    @nn.compact
    def __call__(self, x, train=False):
        down1 = conv(x, "down1")
        down2 = nn.Conv(8, (4, 4), strides=(2, 2), name="down2")(nn.leaky_relu(down1))
        down2 = bn(down2, "down2_bn", train)
        down3 = nn.Conv(8, (4, 4), strides=(2, 2), name="down3")(nn.leaky_relu(down2))
        up = nn.ConvTranspose(8, (4, 4), strides=(2, 2), name="up3")(nn.relu(down3))
        up = drop(bn(up, "up3_bn", train), "drop", train)
        up = jnp.concatenate([down2, up], axis=-1)
        up = nn.ConvTranspose(8, (4, 4), strides=(2, 2), name="up2")(nn.relu(up))
        up = jnp.concatenate([down1, bn(up, "up2_bn", train)], axis=-1)
        return nn.tanh(nn.Conv(3, (3, 3), name="out")(nn.relu(up)))


class TwoWays(nn.Module):
    """One noise, one BN, two paths between them."""

    join: str

    @nn.compact
    def __call__(self, x, train=False):
        x = conv(x, "stem")
        h = drop(nn.relu(x), "drop", train)
        if self.join == "concat":
            h = jnp.concatenate([conv(h, "conv"), h], axis=-1)
        elif self.join == "add":
            h = h + conv(h, "conv")
        elif self.join == "relieved":
            h = jnp.concatenate([x + conv(h, "conv"), h], axis=-1)
        return nn.Dense(3, name="fc")(gap(nn.relu(bn(h, "bn", train))))


class Siamese(nn.Module):
    """One encoder with noise sees both halves of the input; the codes are added."""

    @nn.compact
    def __call__(self, x, train=False):
        dense, noise = nn.Dense(8, name="encoder"), nn.Dropout(0.5, name="drop")
        a, b = (noise(nn.relu(dense(half)), not train) for half in jnp.split(x, 2, axis=-1))
        return nn.Dense(3, name="fc")(nn.relu(bn(a + b, "bn", train)))


class TwoTowers(nn.Module):
    """Towers of their own for both halves of the input, noise in the first, added."""

    @nn.compact
    def __call__(self, x, train=False):
        a, b = jnp.split(x, 2, axis=-1)
        a = drop(nn.relu(nn.Dense(8, name="a1")(a)), "drop", train)
        x = nn.Dense(8, name="a2")(a) + nn.Dense(8, name="b")(b)
        return nn.Dense(3, name="fc")(nn.relu(bn(x, "bn", train)))


class Auxiliary(nn.Module):
    """GoogLeNet's shape: noise in an auxiliary head only."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(bn(conv(x, "conv1"), "bn1", train))
        aux = nn.Dense(3, name="aux")(drop(gap(x), "drop", train))
        x = nn.relu(bn(conv(x, "conv2"), "bn2", train))
        return nn.Dense(3, name="fc")(gap(x)), aux


# Transformers.


class LayerNormTransformer(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = drop(nn.Dense(8, name="embed")(x), "embed_drop", train, 0.1)
        h = nn.LayerNorm(name="ln1")(x)
        h = nn.MultiHeadDotProductAttention(2, dropout_rate=0.1, deterministic=not train, name="attention")(h)
        x = x + drop(h, "drop1", train, 0.1)
        h = nn.gelu(nn.Dense(16, name="mlp1")(nn.LayerNorm(name="ln2")(x)))
        h = nn.Dense(8, name="mlp2")(drop(h, "drop2", train, 0.1))
        x = x + drop(h, "drop3", train, 0.1)
        return nn.Dense(3, name="fc")(nn.LayerNorm(name="ln")(x).mean(1))


class BatchNormEncoderLayer(nn.Module):
    train: bool

    @nn.compact
    def __call__(self, x):
        h = nn.MultiHeadDotProductAttention(2, name="attention")(x)
        x = bn(x + drop(h, "drop1", self.train, 0.1), "norm1", self.train)
        h = drop(nn.gelu(nn.Dense(16, name="linear1")(x)), "drop", self.train, 0.1)
        h = nn.Dense(8, name="linear2")(h)
        return bn(x + drop(h, "drop2", self.train, 0.1), "norm2", self.train)


class BatchNormTransformer(nn.Module):
    """A time series transformer with BN behind each addition."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(8, name="project")(x)
        x = x + self.param("positions", nn.initializers.normal(0.02), (x.shape[1], 8))
        x = drop(x, "pos_drop", train, 0.1)
        for i in (1, 2):
            x = BatchNormEncoderLayer(train, name=f"l{i}")(x)
        return nn.Dense(3, name="out")(drop(nn.gelu(x), "out_drop", train, 0.1))


class ConformerBlock(nn.Module):
    """A half-step feed-forward module and the convolution module, which has the only BN."""

    train: bool

    @nn.compact
    def __call__(self, x):
        h = nn.swish(nn.Dense(16, name="ff1")(nn.LayerNorm(name="ff_ln")(x)))
        h = nn.Dense(8, name="ff2")(drop(h, "ff_drop1", self.train, 0.1))
        x = x + 0.5 * drop(h, "ff_drop2", self.train, 0.1)
        h = nn.glu(nn.Dense(16, name="pointwise1")(nn.LayerNorm(name="conv_ln")(x)))
        h = nn.Conv(8, (3,), feature_group_count=8, name="depthwise")(h)
        h = nn.Dense(8, name="pointwise2")(nn.swish(bn(h, "bn", self.train)))
        return x + drop(h, "conv_drop", self.train, 0.1)


class Conformer(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(8, name="project")(x)
        for i in (1, 2):
            x = ConformerBlock(train, name=f"b{i}")(x)
        return nn.Dense(3, name="fc")(nn.LayerNorm(name="ln")(x))


class Attention(nn.Module):
    """Noise, attention without a skip, BN."""

    @nn.compact
    def __call__(self, x, train=False):
        x = drop(nn.relu(nn.Dense(8, name="embed")(x)), "drop", train)
        x = nn.MultiHeadDotProductAttention(2, name="attention")(x)
        return nn.Dense(3, name="fc")(bn(x, "bn", train))


# Ways of writing and transforming modules.


class StackLayer(nn.Module):
    trunk: str
    branch: str
    residual: bool
    train: bool

    @nn.compact
    def __call__(self, x, _):
        x = run(self.trunk, x, self.train)
        y = run(self.branch, x, self.train)
        return x + y if self.residual else y, None


class Stack(nn.Module):
    """Three layers by nn.scan, then BN."""

    branch: str
    residual: bool = False
    trunk: str = ""

    @nn.compact
    def __call__(self, x, train=False):
        layers = nn.scan(
            StackLayer,
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True, "dropout": True},
            length=3,
        )
        x = nn.Dense(8, name="stem")(x)
        x, _ = layers(self.trunk, self.branch, self.residual, train, name="layers")(x, None)
        return nn.Dense(3, name="fc")(bn(x, "head_bn", train))


class Ensemble(nn.Module):
    """Three members by nn.vmap."""

    order: str

    @nn.compact
    def __call__(self, x, train=False):
        members = nn.vmap(
            StackLayer,
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=None,
            axis_size=3,
        )
        x, _ = members("", self.order, False, train, name="members")(x, None)
        return x.mean(0)


class BehindIf(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(8, name="dense1")(x)
        if train:
            x = nn.Dropout(0.5, deterministic=False, name="drop")(x)
        return nn.Dense(3, name="fc")(nn.relu(bn(x, "bn", train)))


class Fixed(nn.Module):
    """Dropout whose switch is fixed at construction, before a BN."""

    deterministic: bool

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(8, name="dense")(x)
        x = nn.Dropout(0.5, deterministic=self.deterministic, name="drop")(x)
        return nn.Dense(3, name="fc")(nn.relu(bn(x, "bn", train)))


class SetupStyle(nn.Module):
    """Submodules made in `setup`, the flag passed down by keyword."""

    def setup(self):
        self.hidden = nn.Dense(8)
        self.drop = nn.Dropout(0.5)
        self.bn = nn.BatchNorm()
        self.out = nn.Dense(3)

    def __call__(self, x, *, train):
        x = self.drop(self.hidden(x), deterministic=not train)
        return self.out(nn.relu(self.bn(x, use_running_average=not train)))


class SharedNorm(nn.Module):
    """One BN called twice."""

    place: str

    @nn.compact
    def __call__(self, x, train=False):
        norm = nn.BatchNorm(use_running_average=not train, name="bn")
        x = nn.Dense(8, name="dense1")(x)
        if self.place == "before":
            x = drop(x, "drop", train)
        x = nn.relu(norm(x))
        if self.place == "between":
            x = drop(x, "drop", train)
        return nn.Dense(3, name="fc")(norm(nn.Dense(8, name="dense2")(x)))


class SharedDropout(nn.Module):
    """One dropout called twice, the second time behind the last BN."""

    @nn.compact
    def __call__(self, x, train=False):
        noise = nn.Dropout(0.5, deterministic=not train, name="drop")
        x = noise(nn.relu(nn.Dense(8, name="dense1")(x)))
        x = nn.relu(bn(nn.Dense(8, name="dense2")(x), "bn", train))
        return nn.Dense(3, name="fc")(noise(x))


class BoolNorm(nn.BatchNorm):
    """A BN with a signature of its own."""

    @nn.compact
    def __call__(self, x, train):
        return super().__call__(x, use_running_average=not train)


class Subclass(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = drop(nn.Dense(8, name="dense")(x), "drop", train)
        return nn.Dense(3, name="fc")(nn.relu(BoolNorm(name="bn")(x, train)))


class Axes(nn.Module):
    """Dropout, then weights that are no Dense: DenseGeneral over two axes, or an einsum with a parameter."""

    einsum: bool

    @nn.compact
    def __call__(self, x, train=False):
        x = drop(nn.relu(bn(conv(x, "conv"), "bn1", train)), "drop", train)
        if self.einsum:
            kernel = self.param("kernel", nn.initializers.lecun_normal(), (8, 4, 2))
            x = jnp.einsum("bhwc,cnd->bhwnd", x, kernel).reshape(*x.shape[:3], 8)
        else:
            x = nn.DenseGeneral(8, axis=(-2, -1), name="general")(x)
        return nn.Dense(3, name="fc")(nn.relu(bn(x, "bn2", train)))


class Positions(nn.Module):
    """A parameter added between noise and BN."""

    @nn.compact
    def __call__(self, x, train=False):
        x = drop(nn.Dense(8, name="dense")(x), "drop", train)
        x = x + self.param("positions", nn.initializers.normal(0.02), (8,))
        return nn.Dense(3, name="fc")(nn.relu(bn(x, "bn", train)))


@jax.custom_vjp
def reverse_gradient(x):
    return x


reverse_gradient.defvjp(lambda x: (x, None), lambda _, g: (-g,))


class Control(nn.Module):
    """Control flow and custom derivatives between noise and BN."""

    kind: str

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(8, name="dense")(x)
        y = drop(x, "drop", train)
        if self.kind == "cond":
            y = jax.lax.cond(y.mean() > 0, jnp.tanh, lambda v: 2 * v, y)
        elif self.kind == "cond_one_branch":
            y = jax.lax.cond(x.mean() > 0, lambda noisy, clean: noisy, lambda noisy, clean: clean, y, x)
        elif self.kind == "where":
            y = jnp.where(y > 0, y, 0.1 * y)
        elif self.kind == "while":
            _, y = jax.lax.while_loop(lambda s: s[0] < 2, lambda s: (s[0] + 1, jnp.tanh(s[1])), (0, y))
        elif self.kind == "fori":
            y = jax.lax.fori_loop(0, 2, lambda _, v: jnp.sin(v), y)
        elif self.kind == "custom_vjp":
            y = nn.Dense(8, name="domain")(reverse_gradient(y))
        elif self.kind == "stop_gradient":
            y = jax.lax.stop_gradient(y)
        return nn.Dense(3, name="fc")(nn.relu(bn(y, "bn", train)))


KIM = {
    # On the trunk: the block's own BN1, and along the skips every later BN, for both sides of each addition
    # carry the noise.
    0: {
        direct("b1/p0", "b1/bn1"),
        direct("b1/p0", "b2/bn1"),
        direct("b1/p0", "head_bn"),
        direct("b2/p0", "b2/bn1"),
        direct("b2/p0", "head_bn"),
    },
    1: {direct("b1/p1", "b1/bn1"), direct("b2/p1", "b2/bn1")},
    2: {weights("b1/p2", "b1/bn2"), weights("b2/p2", "b2/bn2")},
    3: {weights("b1/p3", "b1/bn2"), weights("b2/p3", "b2/bn2")},
    4: {direct("b1/p4", "b1/bn2"), direct("b2/p4", "b2/bn2")},
    # Behind the block's last BN: into the addition, then to the next block's BN1 and past it along the trunk.
    5: {skip("b1/p5", "b2/bn1"), skip("b1/p5", "head_bn"), skip("b2/p5", "head_bn")},
    6: {skip("b1/p6", "b2/bn1"), skip("b1/p6", "head_bn"), skip("b2/p6", "head_bn")},
    7: {skip("b1/p7", "b2/bn1"), skip("b1/p7", "head_bn"), skip("b2/p7", "head_bn")},
}
# The trunk goes through each block's 1x1 convolution; nothing else differs.
KIM_PROJECTED = {
    **KIM,
    0: {
        direct("b1/p0", "b1/bn1"),
        weights("b1/p0", "b2/bn1"),
        weights("b1/p0", "head_bn"),
        direct("b2/p0", "b2/bn1"),
        weights("b2/p0", "head_bn"),
    },
}


def kim():
    for place in range(8):
        where = f"Kim P{place}"
        yield Case(f"kim_p{place}_identity", PreActNet((place,)), IMAGE, KIM[place], where)
        projected = PreActNet((place,), ("trunk", "trunk"))
        yield Case(
            f"kim_p{place}_projection", projected, IMAGE, KIM_PROJECTED[place], f"{where}, 1x1 shortcuts"
        )
    for place in range(1, 7):
        # H3 and later have no BN behind them.
        findings = {1: {weights("drop", "head_bn")}, 2: {direct("drop", "head_bn")}}.get(place, set())
        yield Case(f"kim_h{place}", Head(place), IMAGE, findings, f"Kim H{place}")


RESIDUAL = [
    Case(
        "preact_two_noises",
        PreActNet((4, 6)),
        IMAGE,
        KIM[4] | KIM[6],  # P4's path ends at BN2, so that P6's is the only one that goes on
        "made up: Kim P4 and P6 at once",
    ),
    Case(
        "preact_p0_activated_shortcut",
        PreActNet((0,), ("activated", "activated")),
        IMAGE,
        # Both the branch and the shortcut start behind BN1, which is all that the noise meets.
        {direct("b1/p0", "b1/bn1"), direct("b2/p0", "b2/bn1")},
        "Kim P0 with the shortcuts of pre-activation ResNets that project",
    ),
    Case(
        "preact_p6_activated_shortcut",
        PreActNet((6,), ("", "activated")),
        IMAGE,
        # b2 has no path around its BN1, so b1's noise does not come to the head.
        {skip("b1/p6", "b2/bn1"), skip("b2/p6", "head_bn")},
        "Kim P6 with the shortcuts of pre-activation ResNets that project",
    ),
    Case("preact_without_noise", PreActNet(), IMAGE, set(), "made up: no noise"),
    Case(
        "stem_noise",
        StemNoise(),
        IMAGE,
        # Past b2 the trunk has gone through its 1x1 convolution.
        {direct("drop", "b1/bn1"), direct("drop", "b2/bn1"), weights("drop", "head_bn")},
        "made up: P0 of the first block only",
    ),
    Case(
        "preresnet_bottleneck_a",
        PreActBottleneckNet("a"),
        IMAGE,
        {direct("b1/drop", "b1/bn3"), direct("b2/drop", "b2/bn3")},
        "Li Dropout-(a), PreResNet (papers.md 1.3)",
    ),
    Case(
        "preresnet_bottleneck_b",
        PreActBottleneckNet("b"),
        IMAGE,
        {skip("b1/drop", "b2/bn1"), skip("b1/drop", "head_bn"), skip("b2/drop", "head_bn")},
        "Li Dropout-(b), PreResNet (papers.md 1.3)",
    ),
    Case(
        "resnext_a",
        ResNeXt("a"),
        IMAGE,
        {direct("b1/drop", "b1/bn_expand"), direct("b2/drop", "b2/bn_expand")},
        "Li Dropout-(a), ResNeXt (papers.md 1.3)",
    ),
    Case(
        "resnext_b",
        ResNeXt("b"),
        IMAGE,
        # BN follows the last convolution, so (b), harmless in PreResNet, is an error here.
        {weights("b1/drop", "b1/bn_expand"), weights("b2/drop", "b2/bn_expand")},
        "Li Dropout-(b), ResNeXt (papers.md 1.3)",
    ),
    Case(
        "resnet_v1_end",
        ResNetV1("end", (False, False, False)),
        IMAGE,
        # b3's noise has no BN behind it; b1's goes around b2 by its identity.
        {skip("b1/drop", "b2/bn1"), skip("b1/drop", "b3/bn1"), skip("b2/drop", "b3/bn1")},
        "ResNetV1, dropout at the branch's end",
    ),
    Case(
        "resnet_v1_end_projection",
        ResNetV1("end", (False, True)),
        IMAGE,
        {skip("b1/drop", "b2/bn1"), skip("b1/drop", "b2/shortcut_bn")},
        "ResNetV1, dropout at the branch's end, the next shortcut with BN",
    ),
    Case(
        "resnet_v1_before_conv2",
        ResNetV1("before_conv2", (False, True)),
        IMAGE,
        {weights("b1/drop", "b1/bn2"), weights("b2/drop", "b2/bn2")},
        "ResNetV1, conv-BN-ReLU-dropout-conv-BN in the block",
    ),
    Case(
        "resnet_v1_before_bn2",
        ResNetV1("before_bn2", (False, True)),
        IMAGE,
        {direct("b1/drop", "b1/bn2"), direct("b2/drop", "b2/bn2")},
        "ResNetV1, conv-dropout-BN in the block",
    ),
    Case(
        "resnet_v1_after_block",
        ResNetV1("after", (False, False, False)),
        IMAGE,
        # On the trunk: b2's branch and skip both carry b1's noise.
        {weights("b1/drop", "b2/bn1"), weights("b1/drop", "b3/bn1"), weights("b2/drop", "b3/bn1")},
        "MC dropout in ResNetV1, dropout after each block",
    ),
    Case(
        "resnet_v1_input",
        ResNetV1("input", (True, False)),
        IMAGE,
        # Two BNs by two paths: b1's branch and its shortcut.
        {weights("b1/drop", "b1/bn1"), weights("b1/drop", "b1/shortcut_bn"), weights("b2/drop", "b2/bn1")},
        "made up: P0 of a ResNetV1 whose shortcut has a BN",
    ),
    Case(
        "resnet_v1_dropout_shortcut",
        ResNetV1("shortcut", (False, False)),
        IMAGE,
        # Noise on the skip, a clean branch: the definition's relief is for noise in the branch.
        {weights("b1/drop", "b2/bn1")},
        "He et al. 2016 (Identity Mappings), 'dropout shortcut' (ambiguous: the branch is the clean side)",
    ),
    Case(
        "wrn_torch",
        WideResNet("before_conv2"),
        IMAGE,
        {skip("b1/drop", "b2/bn1"), skip("b1/drop", "bn"), skip("b2/drop", "bn")},
        "WRN, the original (codebases.md 0.1); Li Dropout-(b)",
    ),
    Case(
        "wrn_torch_two_groups",
        WideResNet("before_conv2", (True, True)),
        IMAGE,
        {skip("b1/drop", "b2/bn1"), skip("b2/drop", "bn")},  # b2's shortcut starts behind its BN1
        "WRN, the original, the second block projecting too",
    ),
    Case(
        "wrn_init2winit",
        WideResNet("before_bn2"),
        IMAGE,
        {direct("b1/drop", "b1/bn2"), direct("b2/drop", "b2/bn2")},
        "WRN of init2winit and uncertainty-baselines (codebases.md 0.1); Li Dropout-(a)",
    ),
    Case(
        "efficientnet",
        EfficientNet(),
        IMAGE,
        # Only stochastic depth meets a BN; the dropout is in the head.
        {
            skip("b1/path", "b2/bn1"),
            skip("b1/path", "head_bn"),
            skip("b2/path", "head_bn"),
        },
        "EfficientNet's stochastic depth by broadcast_dims, ConvNeXt's layer scale",
    ),
    Case(
        "nested_before_inner",
        Nested("before_inner"),
        IMAGE,
        {direct("drop", "bn2")},  # on both sides of the inner addition, and BN2 ends it before the outer one
        "made up: P0 of a block inside a branch",
    ),
    Case(
        "nested_in_inner",
        Nested("in_inner"),
        IMAGE,
        {skip("drop", "bn2")},
        "made up: P7 of a block inside a branch",
    ),
    Case("two_branches", TwoBranches(), IMAGE, {skip("drop", "bn")}, "made up: P7 with a second branch"),
    Case("highway", Highway(), ROWS, {skip("drop", "bn")}, "highway layer; the gate weighs a clean skip"),
    Case("wide_and_deep", WideAndDeep(), ROWS, {skip("drop", "bn")}, "wide and deep: P6 with a projection"),
]

CHAINS = [
    Case(
        "mlp_dense_drop_bn",
        Chain("dense1 drop1 bn1 relu dense2 drop2 bn2 relu fc"),
        ROWS,
        {direct("drop1", "bn1"), direct("drop2", "bn2")},
        "MLP, dense-dropout-BN",
    ),
    Case(
        "mlp_bn_relu_drop",
        Chain("dense1 bn1 relu drop1 dense2 bn2 relu drop2 fc"),
        ROWS,
        {weights("drop1", "bn2")},
        "MLP, dense-BN-ReLU-dropout",
    ),
    Case(
        "mlp_relu_drop_dense_bn",
        Chain("dense1 relu drop1 dense2 bn1 relu fc"),
        ROWS,
        {weights("drop1", "bn1")},
        "MLP, dense-ReLU-dropout-dense-BN",
    ),
    Case(
        "mlp_relu_drop_bn",
        Chain("dense1 relu drop1 bn1 dense2 relu drop2 bn2 fc"),
        ROWS,
        {direct("drop1", "bn1"), direct("drop2", "bn2")},
        "MLP, dense-ReLU-dropout-BN",
    ),
    Case(
        "input_dropout",
        Chain("drop1 dense1 bn1 relu dense2 bn2 relu fc"),
        ROWS,
        {weights("drop1", "bn1")},
        "made up: dropout on the input",
    ),
    Case(
        "two_noises_one_bn",
        Chain("drop1 dense1 drop2 bn1 relu fc"),
        ROWS,
        {weights("drop1", "bn1"), direct("drop2", "bn1")},
        "made up",
    ),
    Case(
        "pointnet_head",
        Chain("dense1 bn1 relu dense2 drop1 bn2 relu fc"),
        ROWS,
        {direct("drop1", "bn2")},
        "fxia22/pointnet.pytorch: relu(bn2(dropout(fc2(x))))",
    ),
    Case(
        "drop_activation_bn",
        Chain("conv1 drop1 relu bn1 gap fc"),
        IMAGE,
        {direct("drop1", "bn1")},
        "NeuraLint's rule: dropout-activation-BN",
    ),
    Case(
        "conv_drop_bn",
        Chain("conv1 drop1 bn1 lrelu conv2 drop2 bn2 lrelu gap fc"),
        IMAGE,
        {direct("drop1", "bn1"), direct("drop2", "bn2")},
        "nnU-Net's conv-dropout-norm with its norm set to BN",
    ),
    Case(
        "nnunet",
        Chain("conv1 drop1 in1 lrelu conv2 drop2 in2 lrelu gap fc"),
        IMAGE,
        set(),
        "nnU-Net, conv-dropout-InstanceNorm",
    ),
    Case(
        "groupnorm_net",
        Chain("conv1 gn1 relu drop1 conv2 gn2 relu drop2 gap fc"),
        IMAGE,
        set(),
        "made up: GroupNorm only",
    ),
    Case("layernorm_mlp", Chain("dense1 drop1 ln1 gelu dense2 drop2 ln2 fc"), ROWS, set(), "made up"),
    Case(
        "bn_stem_groupnorm_body",
        Chain("conv1 bn1 relu drop1 conv2 drop2 gn1 relu drop3 gap fc"),
        IMAGE,
        set(),  # the only BN is in front
        "made up",
    ),
    Case(
        "groupnorm_then_bn",
        Chain("drop1 conv1 gn1 relu conv2 bn1 gap fc"),
        IMAGE,
        {weights("drop1", "bn1")},  # a GroupNorm does not end the path
        "made up",
    ),
    Case(
        "layernorm_then_bn",
        Chain("dense1 drop1 ln1 gelu bn1 fc"),
        ROWS,
        {direct("drop1", "bn1")},  # the same with no weights between
        "made up",
    ),
    Case(
        "vgg_keras",
        Chain("conv1 relu bn1 drop1 conv2 relu bn2 max drop2 flatten dense1 relu bn3 drop3 fc"),
        IMAGE,
        {weights("drop1", "bn2"), weights("drop2", "bn3")},
        "geifmany/cifar-vgg",
    ),
    Case(
        "vgg_conv_bn_relu_drop",
        Chain("conv1 bn1 relu drop1 conv2 bn2 relu drop2 conv3 bn3 relu gap fc"),
        IMAGE,
        {weights("drop1", "bn2"), weights("drop2", "bn3")},
        "VGG with conv-BN-ReLU-dropout",
    ),
    Case(
        "caffenet",
        Chain("conv1 bn1 relu max flatten dense1 bn2 relu drop1 dense2 bn3 relu drop2 fc"),
        IMAGE,
        {weights("drop1", "bn3")},
        "caffenet-benchmark, BN before ReLU (papers.md 3.3)",
    ),
    Case(
        "bayesian_segnet",
        Chain("conv1 bn1 relu max drop1 conv2 bn2 relu drop2 deconv1 bn3 relu conv3"),
        IMAGE,
        {weights("drop1", "bn2"), weights("drop2", "bn3")},
        "Bayesian SegNet: dropout behind pooling, and in the decoder",
    ),
    Case(
        "keras_gan_discriminator",
        Chain("conv1 lrelu drop1 conv2 lrelu drop2 bn1 conv3 lrelu drop3 bn2 conv4 lrelu drop4 flatten fc"),
        IMAGE,
        {weights("drop1", "bn1"), direct("drop2", "bn1"), direct("drop3", "bn2")},
        "eriklindernoren/Keras-GAN, DCGAN's discriminator",
    ),
    Case(
        "ic_layer",
        Chain("conv1 relu bn1 drop1 conv2 relu bn2 drop2 conv3 relu gap fc"),
        IMAGE,
        {weights("drop1", "bn2")},
        "Chen et al. 2019, the IC layer: ReLU-BN-dropout-conv (papers.md 4.4)",
    ),
    Case(
        "drop_max_bn",
        Chain("conv1 relu drop1 max bn1 conv2 relu gap fc"),
        IMAGE,
        {direct("drop1", "bn1")},
        "made up: dropout before max pooling before BN",
    ),
    Case(
        "drop_avg_conv_bn",
        Chain("conv1 bn1 relu drop1 avg conv2 bn2 relu gap fc"),
        IMAGE,
        {weights("drop1", "bn2")},
        "made up: average pooling and weights between",
    ),
    Case(
        "drop_avg_flatten_bn",
        Chain("conv1 drop1 avg flatten bn1 relu fc"),
        IMAGE,
        {direct("drop1", "bn1")},
        "made up: reshaped before the BN",
    ),
    Case(
        "gap_drop_dense_bn",
        Chain("conv1 bn1 relu gap drop1 dense1 bn2 relu fc"),
        IMAGE,
        {weights("drop1", "bn2")},
        "made up: H5 with a hidden layer",
    ),
    Case(
        "drop_gap_dense_bn",
        Chain("conv1 bn1 relu drop1 gap dense1 bn2 relu fc"),
        IMAGE,
        {weights("drop1", "bn2")},
        "made up: H4 with a hidden layer",
    ),
    Case(
        "bnneck",
        Chain("conv1 bn1 relu gap drop1 bn2 fc"),
        IMAGE,
        {direct("drop1", "bn2")},
        "made up: person re-identification's BNNeck with dropout before it",
    ),
    Case(
        "gap_drop_dense",
        Chain("conv1 bn1 relu conv2 bn2 relu gap drop1 fc"),
        IMAGE,
        set(),
        "the usual head: Kim H5",
    ),
    Case(
        "mc_dropout_head",
        Chain("conv1 bn1 relu flatten drop1 dense1 relu drop2 dense2 relu drop3 fc"),
        IMAGE,
        set(),
        "MC dropout in the head only",
    ),
    Case(
        "drop_behind_last_bn",
        Chain("dense1 bn1 relu dense2 bn2 relu drop1 fc"),
        ROWS,
        set(),
        "MLP, one dropout behind the last BN",
    ),
    Case("no_bn", Chain("conv1 relu drop1 conv2 relu max drop2 flatten fc"), IMAGE, set(), "AlexNet's shape"),
    Case("no_dropout", Chain("conv1 bn1 relu conv2 bn2 relu gap fc"), IMAGE, set(), "made up"),
    Case("rate_zero", Chain("conv1 drop1 bn1 relu gap fc", rate=0.0), IMAGE, set(), "made up: rate 0"),
    Case(
        "depthwise",
        Chain("conv1 bn1 relu drop1 depthwise1 bn2 relu conv2 bn3 relu gap fc"),
        IMAGE,
        {weights("drop1", "bn2")},
        "MobileNet with dropout before a depthwise convolution",
    ),
    Case(
        "separable_without_inner_bn",
        Chain("conv1 relu drop1 depthwise1 conv2 bn1 relu gap fc"),
        IMAGE,
        {weights("drop1", "bn1")},
        "made up: a separable convolution with one BN",
    ),
    Case(
        "spatial_drop_bn",
        Chain("conv1 spatial1 bn1 relu conv2 bn2 relu spatial2 gap fc"),
        IMAGE,
        {direct("spatial1", "bn1")},
        "made up: SpatialDropout before BN",
    ),
    Case("uout_bn", Chain("conv1 uout1 bn1 relu gap fc"), IMAGE, {direct("uout1", "bn1")}, "Uout before BN"),
    Case(
        "uout_conv_bn",
        Chain("conv1 bn1 relu uout1 conv2 bn2 relu uout2 gap fc"),
        IMAGE,
        {weights("uout1", "bn2")},
        "made up: Uout in a VGG",
    ),
    Case(
        "gaussian_bn",
        Chain("dense1 gauss1 relu bn1 dense2 relu gauss2 fc"),
        ROWS,
        {direct("gauss1", "bn1")},
        "made up: Gaussian dropout before BN",
    ),
    Case(
        "gaussian_and_dropout",
        Chain("dense1 bn1 relu gauss1 dense2 drop1 bn2 fc"),
        ROWS,
        {weights("gauss1", "bn2"), direct("drop1", "bn2")},
        "made up: two kinds of noise before one BN",
    ),
    Case(
        "denoising_autoencoder",
        Chain("drop1 conv1 bn1 relu max conv2 relu drop2 deconv1 bn2 relu conv3"),
        IMAGE,
        {weights("drop1", "bn1"), weights("drop2", "bn2")},
        "denoising autoencoder, transposed convolution behind the code's dropout",
    ),
    Case(
        "autoencoder_clean",
        Chain("conv1 bn1 relu max conv2 bn2 relu deconv1 bn3 relu drop1 conv3"),
        IMAGE,
        set(),
        "made up: dropout before the last convolution only",
    ),
]

JOINTS = [
    Case(
        "densenet_after_conv",
        DenseNet("after_conv2"),
        IMAGE,
        # A concatenated feature stays in the trunk: every later BN sees it, unmixed.
        {
            direct("l1/drop", "l2/bn1"),
            direct("l1/drop", "l3/bn1"),
            direct("l1/drop", "bn"),
            direct("l2/drop", "l3/bn1"),
            direct("l2/drop", "bn"),
            direct("l3/drop", "bn"),
        },
        "DenseNet's own dropout, behind the 3x3 convolution",
    ),
    Case(
        "densenet_transition",
        DenseNet("after_conv2", transition=True),
        IMAGE,
        # The transition's BN ends the paths of the layers before it.
        {
            direct("l1/drop", "l2/bn1"),
            direct("l1/drop", "transition_bn"),
            direct("l2/drop", "transition_bn"),
            direct("l3/drop", "bn"),
        },
        "DenseNet's own dropout, with a transition",
    ),
    Case(
        "densenet_a",
        DenseNet("before_bn2"),
        IMAGE,
        {direct("l1/drop", "l1/bn2"), direct("l2/drop", "l2/bn2"), direct("l3/drop", "l3/bn2")},
        "Li Dropout-(a), DenseNet-BC (papers.md 1.3)",
    ),
    Case(
        "densenet_b",
        DenseNet("before_conv2"),
        IMAGE,
        {
            weights("l1/drop", "l2/bn1"),
            weights("l1/drop", "l3/bn1"),
            weights("l1/drop", "bn"),
            weights("l2/drop", "l3/bn1"),
            weights("l2/drop", "bn"),
            weights("l3/drop", "bn"),
        },
        "Li Dropout-(b), DenseNet-BC (papers.md 1.3)",
    ),
    Case(
        "inception_concat_bn",
        Inception(mix=False),
        IMAGE,
        {weights("b_drop", "b_bn"), direct("c_drop", "bn")},
        "made up: Inception, BN on the concatenation",
    ),
    Case(
        "inception_concat_conv_bn",
        Inception(mix=True),
        IMAGE,
        {weights("b_drop", "b_bn"), weights("c_drop", "bn")},
        "made up: Inception, 1x1 convolution and BN on the concatenation",
    ),
    Case(
        "se_noise_on_x",
        SqueezeExcite("input"),
        IMAGE,
        {direct("drop", "bn2")},  # also through the gate's weights, but the direct path is the worse
        "made up: squeeze-excite of a noisy x",
    ),
    Case(
        "se_noise_in_squeeze",
        SqueezeExcite("squeezed"),
        IMAGE,
        {weights("drop", "bn2")},
        "made up: dropout between the gate's dense layers",
    ),
    Case(
        "se_noise_on_gate",
        SqueezeExcite("gate"),
        IMAGE,
        {direct("drop", "bn2")},  # sigmoid and an elementwise product
        "made up: dropout on the gate",
    ),
    Case(
        "se_residual",
        SqueezeExcite("input", residual=True),
        IMAGE,
        {skip("drop", "bn2")},
        "SE-ResNet with P7's dropout before the gate",
    ),
    Case(
        "unet_bottom",
        UNet("bottom"),
        IMAGE,
        {weights("drop", "dec_bn")},  # concatenated, not added
        "U-Net: dropout at the end of the contracting path",
    ),
    Case(
        "unet_encoder",
        UNet("encoder"),
        IMAGE,
        {weights("drop", "middle_bn"), weights("drop", "dec_bn")},
        "made up: U-Net, dropout on what the skip carries",
    ),
    Case(
        "linknet_bottom",
        UNet("bottom", add=True),
        IMAGE,
        {skip("drop", "dec_bn")},  # the long skip is free of it
        "LinkNet's added skips, U-Net's dropout",
    ),
    Case(
        "linknet_encoder",
        UNet("encoder", add=True),
        IMAGE,
        # On the skip itself and, past the middle BN, on the other side too: no relief.
        {weights("drop", "middle_bn"), weights("drop", "dec_bn")},
        "made up: LinkNet, dropout on what the skip carries",
    ),
    Case(
        "pix2pix",
        Pix2PixUp(),
        IMAGE,
        {weights("drop", "up2_bn")},
        "pix2pix's generator: deconv-BN-dropout, concat, ReLU-deconv-BN",
    ),
    Case(
        "two_ways_concat",
        TwoWays("concat"),
        IMAGE,
        {direct("drop", "bn")},
        "made up: one BN by two paths, through weights and directly",
    ),
    Case(
        "two_ways_add",
        TwoWays("add"),
        IMAGE,
        {direct("drop", "bn")},  # both sides are noisy
        "made up: one BN by two paths, added",
    ),
    Case(
        "two_ways_relieved",
        TwoWays("relieved"),
        IMAGE,
        {direct("drop", "bn")},  # one path has a skip's relief, the other has none
        "made up: one BN by two paths, one into a skip",
    ),
    Case(
        "siamese",
        Siamese(),
        ROWS,
        {direct("drop", "bn")},  # both summands are noisy, and neither is a skip around the other
        "made up: siamese, a shared encoder's codes added",
    ),
    Case(
        "two_towers",
        TwoTowers(),
        ROWS,
        {weights("drop", "bn")},
        "made up: two towers added (ambiguous: the clean tower is no skip around the noise)",
    ),
    Case("auxiliary_head", Auxiliary(), IMAGE, set(), "GoogLeNet's auxiliary head"),
]

SEQUENCE = (2, 5, 8)
TRANSFORMERS = [
    Case("layernorm_transformer", LayerNormTransformer(), SEQUENCE, set(), "pre-LN transformer"),
    Case(
        "batchnorm_transformer",
        BatchNormTransformer(),
        SEQUENCE,
        {
            direct("pos_drop", "l1/norm1"),  # on the trunk: on both sides of the first addition
            skip("l1/drop1", "l1/norm1"),
            skip("l1/drop", "l1/norm2"),
            skip("l1/drop2", "l1/norm2"),  # norm2 ends it: nothing goes around a post-norm
            skip("l2/drop1", "l2/norm1"),
            skip("l2/drop", "l2/norm2"),
            skip("l2/drop2", "l2/norm2"),
        },
        "gzerveas/mvts_transformer",
    ),
    Case(
        "conformer",
        Conformer(),
        SEQUENCE,
        {
            skip("b1/ff_drop1", "b1/bn"),
            skip("b1/ff_drop2", "b1/bn"),
            skip("b1/ff_drop1", "b2/bn"),  # around b1's convolution module
            skip("b1/ff_drop2", "b2/bn"),
            skip("b1/conv_drop", "b2/bn"),
            skip("b2/ff_drop1", "b2/bn"),
            skip("b2/ff_drop2", "b2/bn"),
        },
        "sooftware/conformer: LayerNorms, and one BN in the convolution module",
    ),
    Case("attention_bn", Attention(), SEQUENCE, {weights("drop", "bn")}, "made up: attention without a skip"),
]

WRITING = [
    *(
        Case(f"{lift}_p4", PreActNet((4,), lift=lift), IMAGE, KIM[4], f"Kim P4, blocks under nn.{lift}")
        for lift in ("remat", "jit")
    ),
    *(
        Case(f"{lift}_p6", PreActNet((6,), lift=lift), IMAGE, KIM[6], f"Kim P6, blocks under nn.{lift}")
        for lift in ("remat", "jit")
    ),
    Case(
        "scan_drop_bn",
        Stack("dense drop bn relu"),
        ROWS,
        {direct("layers/drop", "layers/bn")},  # which ends it: neither the next layer nor the head sees it
        "made up: nn.scan, dropout before BN in the body",
    ),
    Case(
        "scan_carry_direct",
        Stack("bn relu dense drop"),
        ROWS,
        {direct("layers/drop", "layers/bn"), direct("layers/drop", "head_bn")},
        "made up: nn.scan, one layer's noise reaches the next layer's BN",
    ),
    Case(
        "scan_carry_weights",
        Stack("dense bn relu drop"),
        ROWS,
        {weights("layers/drop", "layers/bn"), direct("layers/drop", "head_bn")},
        "made up: nn.scan, through the next layer's weights; to the head without weights",
    ),
    Case(
        "scan_residual",
        Stack("bn relu drop dense", residual=True),
        ROWS,
        # As P6 unrolled: a layer's skip is free of the layer's own draw.
        {skip("layers/drop", "layers/bn"), skip("layers/drop", "head_bn")},
        "Kim P6 under nn.scan",
    ),
    Case(
        "scan_residual_p1",
        Stack("drop bn relu dense", residual=True),
        ROWS,
        {direct("layers/drop", "layers/bn")},
        "Kim P1 under nn.scan",
    ),
    Case(
        "scan_trunk",
        Stack("bn relu dense", residual=True, trunk="drop"),
        ROWS,
        {direct("layers/drop", "layers/bn"), direct("layers/drop", "head_bn")},
        "Kim P0 under nn.scan",
    ),
    Case(
        "vmap_ensemble",
        Ensemble("dense1 bn1 relu drop1 dense2 drop2 bn2 relu fc"),
        ROWS,
        {weights("members/drop1", "members/bn2"), direct("members/drop2", "members/bn2")},
        "made up: an ensemble by nn.vmap",
    ),
    Case("behind_if", BehindIf(), ROWS, {direct("drop", "bn")}, "made up: dropout behind `if train`"),
    Case("frozen", Fixed(deterministic=True), ROWS, set(), "made up: deterministic=True for good"),
    Case(
        "always_on", Fixed(deterministic=False), ROWS, set(), "MC dropout, always on: no shift in test mode"
    ),
    Case("setup_style", SetupStyle(), ROWS, {direct("drop", "bn")}, "made up: written with setup()"),
    Case(
        "shared_bn_before",
        SharedNorm("before"),
        ROWS,
        {direct("drop", "bn")},  # the first call ends it
        "made up: a shared BN called twice",
    ),
    Case(
        "shared_bn_between",
        SharedNorm("between"),
        ROWS,
        {weights("drop", "bn")},  # the second call of the same BN
        "made up: noise between a shared BN's two calls",
    ),
    Case("shared_dropout", SharedDropout(), ROWS, {weights("drop", "bn")}, "made up: a shared dropout"),
    Case("bn_subclass", Subclass(), ROWS, {direct("drop", "bn")}, "made up: a BN with its own signature"),
    Case("dense_general", Axes(einsum=False), IMAGE, {weights("drop", "bn2")}, "made up: DenseGeneral"),
    Case("einsum", Axes(einsum=True), IMAGE, {weights("drop", "bn2")}, "made up: einsum with a parameter"),
    Case("added_parameter", Positions(), ROWS, {direct("drop", "bn")}, "made up: an added parameter"),
    *(
        Case(f"control_{kind}", Control(kind), ROWS, {direct("drop", "bn")}, f"made up: {kind} between")
        for kind in ("cond", "cond_one_branch", "where", "while", "fori", "stop_gradient")
    ),
    Case(
        "domain_adversarial",
        Control("custom_vjp"),
        ROWS,
        {weights("drop", "bn")},
        "DANN: gradient reversal (custom_vjp) and weights between",
    ),
]

CASES = [*kim(), *RESIDUAL, *CHAINS, *JOINTS, *TRANSFORMERS, *WRITING]

# The BNs that a forward pass calls several times, by case; nn.scan and nn.vmap make each of theirs anew.
SHARED = {"shared_bn_before": {"bn"}, "shared_bn_between": {"bn"}}
