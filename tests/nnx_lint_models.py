"""NNX twins of the networks in lint_models.py: the same names of layers, so that variables fit both.

A layer is made when its network is called first, by `build` with an example.
"""

from contextvars import ContextVar

import jax
import jax.numpy as jnp
import lint_models
from flax import nnx
from lint_models import gap, reverse_gradient

from dropbn.nn.nnx.noise import GaussianDropout, Uout

_rngs: ContextVar[nnx.Rngs] = ContextVar("rngs")


def build(network, example, rngs):
    """A network whose layers are made for an example."""
    token = _rngs.set(rngs)
    network(example)
    _rngs.reset(token)
    return network


class Net(nnx.Module):
    def layer(self, name, kind, *args, **options):
        if not hasattr(self, name):
            setattr(self, name, kind(*args, **options, rngs=_rngs.get()))
        return getattr(self, name)

    def block(self, name, kind, *args):
        if not hasattr(self, name):
            setattr(self, name, kind(*args))
        return getattr(self, name)

    def param(self, name, init, shape):
        if not hasattr(self, name):
            setattr(self, name, nnx.Param(init(_rngs.get().params(), shape)))
        return getattr(self, name)[...]

    def run(self, order, x, rate=0.5):
        """As `lint_models.run`."""
        for name in order.split():
            kind = name.rstrip("0123456789")
            if kind in ("conv", "dense", "bn", "ln"):
                x = globals()[kind](self, x, name)
            elif kind == "depthwise":
                x = conv(self, x, name, features=x.shape[-1], feature_group_count=x.shape[-1])
            elif kind == "deconv":
                x = deconv(self, x, name, 2)
            elif kind == "fc":
                x = dense(self, x, name, 3)
            elif kind == "drop":
                x = drop(self, x, name, rate)
            elif kind == "spatial":
                x = drop(self, x, name, rate, broadcast_dims=(1, 2))
            elif kind in ("uout", "gauss"):
                x = self.layer(name, Uout if kind == "uout" else GaussianDropout, 0.5)(x)
            elif kind == "gn":
                x = self.layer(name, nnx.GroupNorm, x.shape[-1], num_groups=4)(x)
            elif kind == "in":
                x = self.layer(name, nnx.InstanceNorm, x.shape[-1])(x)
            elif kind in ("relu", "gelu"):
                x = getattr(nnx, kind)(x)
            elif kind == "lrelu":
                x = nnx.leaky_relu(x)
            elif kind in ("max", "avg"):
                x = getattr(nnx, f"{kind}_pool")(x, (2, 2), (2, 2))
            elif kind == "gap":
                x = gap(x)
            elif kind == "flatten":
                x = x.reshape(len(x), -1)
            else:
                raise ValueError(name)
        return x


def conv(net, x, name, size=3, features=8, **options):
    size = size if isinstance(size, tuple) else (size, size)
    return net.layer(name, nnx.Conv, x.shape[-1], features, size, **options)(x)


def deconv(net, x, name, size):
    made = net.layer(name, nnx.ConvTranspose, x.shape[-1], 8, (size, size), strides=(2, 2))
    return made(x)


def dense(net, x, name, features=8):
    return net.layer(name, nnx.Linear, x.shape[-1], features)(x)


def drop(net, x, name, rate=0.5, **options):
    return net.layer(name, nnx.Dropout, rate, **options)(x)


def bn(net, x, name):
    return net.layer(name, nnx.BatchNorm, x.shape[-1])(x)


def ln(net, x, name):
    return net.layer(name, nnx.LayerNorm, x.shape[-1])(x)


def fc(net, x):
    return dense(net, x, "fc", 3)


class Chain(Net):
    def __init__(self, order, rate=0.5):
        self.order, self.rate = order, rate

    def __call__(self, x):
        return self.run(self.order, x, self.rate)


class PreActBlock(Net):
    def __init__(self, places=(), projection=""):
        self.places, self.projection = places, projection

    def __call__(self, x):
        x = self.noise(0, x)
        h = bn(self, self.noise(1, x), "bn1")
        h = self.noise(3, nnx.relu(self.noise(2, h)))
        if self.projection:
            x = conv(self, h if self.projection == "activated" else x, "shortcut", 1)
        h = bn(self, self.noise(4, conv(self, h, "conv1")), "bn2")
        h = self.noise(6, nnx.relu(self.noise(5, h)))
        return x + self.noise(7, conv(self, h, "conv2"))

    def noise(self, place, x):
        return drop(self, x, f"p{place}") if place in self.places else x


class PreActNet(Net):
    def __init__(self, places=(), projections=("", ""), lift=""):
        self.places, self.projections, self.lift = places, projections, lift

    def __call__(self, x):
        x = conv(self, x, "stem")
        for i, projection in enumerate(self.projections, 1):
            is_made = hasattr(self, f"b{i}")
            block = self.block(f"b{i}", PreActBlock, self.places, projection)
            if self.lift and is_made:
                x = getattr(nnx, self.lift)(lambda block, x: block(x))(block, x)
            else:
                x = block(x)
        return fc(self, gap(nnx.relu(bn(self, x, "head_bn"))))


class PreActBottleneckNet(Net):
    def __init__(self, place):
        self.place = place

    def __call__(self, x):
        x = conv(self, x, "stem")
        for i in (1, 2):
            x = x + self.block(f"b{i}", PreActBottleneck, self.place)(x)
        return fc(self, gap(nnx.relu(bn(self, x, "head_bn"))))


class PreActBottleneck(Net):
    def __init__(self, place):
        self.place = place

    def __call__(self, x):
        h = conv(self, nnx.relu(bn(self, x, "bn1")), "conv1", 1, 4)
        h = conv(self, nnx.relu(bn(self, h, "bn2")), "conv2", 3, 4)
        if self.place == "a":
            h = drop(self, h, "drop")
        h = nnx.relu(bn(self, h, "bn3"))
        if self.place == "b":
            h = drop(self, h, "drop")
        return conv(self, h, "conv3", 1)


class ResNeXtBlock(Net):
    def __init__(self, place):
        self.place = place

    def __call__(self, x):
        h = nnx.relu(bn(self, conv(self, x, "conv_reduce", 1), "bn_reduce"))
        h = conv(self, h, "conv_conv", feature_group_count=2)
        h = nnx.relu(bn(self, h, "bn"))
        if self.place == "b":
            h = drop(self, h, "drop")
        h = conv(self, h, "conv_expand", 1)
        if self.place == "a":
            h = drop(self, h, "drop")
        h = bn(self, h, "bn_expand")
        return nnx.relu(h + bn(self, conv(self, x, "shortcut", 1), "shortcut_bn"))


class ResNeXt(Net):
    def __init__(self, place):
        self.place = place

    def __call__(self, x):
        for i in (1, 2):
            x = self.block(f"b{i}", ResNeXtBlock, self.place)(x)
        return fc(self, gap(x))


class BasicBlockV1(Net):
    def __init__(self, place, projection):
        self.place, self.projection = place, projection

    def __call__(self, x):
        x = self.noise("input", x)
        shortcut = x
        if self.projection:
            shortcut = bn(self, conv(self, x, "shortcut", 1), "shortcut_bn")
        shortcut = self.noise("shortcut", shortcut)
        h = nnx.relu(bn(self, conv(self, x, "conv1"), "bn1"))
        h = conv(self, self.noise("before_conv2", h), "conv2")
        h = bn(self, self.noise("before_bn2", h), "bn2")
        h = self.noise("end", h)
        return self.noise("after", nnx.relu(shortcut + h))

    def noise(self, place, x):
        return drop(self, x, "drop") if place == self.place else x


class ResNetV1(Net):
    def __init__(self, place, projections):
        self.place, self.projections = place, projections

    def __call__(self, x):
        x = nnx.relu(bn(self, conv(self, x, "stem"), "stem_bn"))
        for i, projection in enumerate(self.projections, 1):
            x = self.block(f"b{i}", BasicBlockV1, self.place, projection)(x)
        return fc(self, gap(x))


class WideBlock(Net):
    def __init__(self, place, projection):
        self.place, self.projection = place, projection

    def __call__(self, x):
        h = nnx.relu(bn(self, x, "bn1"))
        shortcut = conv(self, h, "shortcut", 1) if self.projection else x
        h = conv(self, h, "conv1")
        if self.place == "before_bn2":
            h = drop(self, h, "drop", 0.3)
        h = nnx.relu(bn(self, h, "bn2"))
        if self.place == "before_conv2":
            h = drop(self, h, "drop", 0.3)
        return shortcut + conv(self, h, "conv2")


class WideResNet(Net):
    def __init__(self, place, projections=(True, False)):
        self.place, self.projections = place, projections

    def __call__(self, x):
        x = conv(self, x, "stem")
        for i, projection in enumerate(self.projections, 1):
            x = self.block(f"b{i}", WideBlock, self.place, projection)(x)
        return fc(self, gap(nnx.relu(bn(self, x, "bn"))))


class Head(Net):
    def __init__(self, place):
        self.place = place

    def __call__(self, x):
        def noise(place, x):
            return drop(self, x, "drop") if place == self.place else x

        x = nnx.relu(bn(self, conv(self, x, "conv"), "bn"))
        x = noise(2, conv(self, noise(1, x), "head_conv", 1))
        x = noise(3, bn(self, x, "head_bn"))
        x = noise(5, gap(noise(4, nnx.relu(x))))
        return noise(6, fc(self, x))


class InvertedResidual(Net):
    def __call__(self, x):
        h = nnx.swish(bn(self, conv(self, x, "expand", 1), "bn1"))
        h = conv(self, h, "depthwise", feature_group_count=8)
        h = nnx.swish(bn(self, h, "bn2"))
        h = bn(self, conv(self, h, "project", 1), "bn3")
        h = h * self.param("layer_scale", nnx.initializers.ones, (8,))
        return x + drop(self, h, "path", 0.2, broadcast_dims=(1, 2, 3))


class EfficientNet(Net):
    def __call__(self, x):
        x = nnx.swish(bn(self, conv(self, x, "stem"), "stem_bn"))
        for i in (1, 2):
            x = self.block(f"b{i}", InvertedResidual)(x)
        x = nnx.swish(bn(self, conv(self, x, "head", 1), "head_bn"))
        return fc(self, drop(self, gap(x), "drop"))


class StemNoise(Net):
    def __call__(self, x):
        x = drop(self, conv(self, x, "stem"), "drop")
        x = self.block("b1", PreActBlock)(x)
        x = self.block("b2", PreActBlock, (), "trunk")(x)
        return fc(self, gap(nnx.relu(bn(self, x, "head_bn"))))


class Nested(Net):
    def __init__(self, place):
        self.place = place

    def __call__(self, x):
        x = conv(self, x, "stem")
        h = nnx.relu(bn(self, x, "bn1"))
        if self.place == "before_inner":
            h = drop(self, h, "drop")
        inner = conv(self, nnx.relu(conv(self, h, "inner1")), "inner2")
        if self.place == "in_inner":
            inner = drop(self, inner, "drop")
        h = bn(self, h + inner, "bn2")
        x = x + conv(self, nnx.relu(h), "conv")
        return fc(self, gap(bn(self, x, "head_bn")))


class TwoBranches(Net):
    def __call__(self, x):
        x = conv(self, x, "stem")
        left = drop(self, conv(self, nnx.relu(bn(self, x, "left_bn")), "left"), "drop")
        right = conv(self, nnx.relu(bn(self, x, "right_bn")), "right")
        return fc(self, gap(nnx.relu(bn(self, x + left + right, "bn"))))


class Highway(Net):
    def __call__(self, x):
        x = dense(self, x, "stem")
        t = nnx.sigmoid(dense(self, x, "gate"))
        h = drop(self, nnx.relu(dense(self, x, "dense")), "drop")
        return fc(self, bn(self, t * h + (1 - t) * x, "bn"))


class WideAndDeep(Net):
    def __call__(self, x):
        deep = drop(self, nnx.relu(dense(self, x, "deep1")), "drop")
        x = dense(self, x, "wide") + dense(self, deep, "deep2")
        return fc(self, nnx.relu(bn(self, x, "bn")))


class DenseLayer(Net):
    def __init__(self, place):
        self.place = place

    def __call__(self, x):
        h = conv(self, nnx.relu(bn(self, x, "bn1")), "conv1", 1)
        h = self.noise("before_bn2", h)
        h = self.noise("before_conv2", nnx.relu(bn(self, h, "bn2")))
        h = self.noise("after_conv2", conv(self, h, "conv2", 3, 4))
        return jnp.concatenate([x, h], axis=-1)

    def noise(self, place, x):
        return drop(self, x, "drop", 0.2) if place == self.place else x


class DenseNet(Net):
    def __init__(self, place, transition=False):
        self.place, self.has_transition = place, transition

    def __call__(self, x):
        x = conv(self, x, "stem")
        for i in (1, 2, 3):
            if i == 3 and self.has_transition:
                x = conv(self, nnx.relu(bn(self, x, "transition_bn")), "transition", 1)
                x = nnx.avg_pool(x, (2, 2), (2, 2))
            x = self.block(f"l{i}", DenseLayer, self.place)(x)
        return fc(self, gap(nnx.relu(bn(self, x, "bn"))))


class Inception(Net):
    def __init__(self, mix):
        self.mixes = mix

    def __call__(self, x):
        a = nnx.relu(bn(self, conv(self, x, "a", 1), "a_bn"))
        b = drop(self, conv(self, x, "b1", 1), "b_drop")
        b = nnx.relu(bn(self, conv(self, b, "b2"), "b_bn"))
        c = drop(self, conv(self, nnx.max_pool(x, (3, 3), padding="SAME"), "c", 1), "c_drop")
        x = jnp.concatenate([a, b, c], axis=-1)
        if self.mixes:
            x = conv(self, x, "mix", 1)
        return fc(self, gap(nnx.relu(bn(self, x, "bn"))))


class SqueezeExcite(Net):
    def __init__(self, place, residual=False):
        self.place, self.residual = place, residual

    def __call__(self, x):
        def noise(place, x):
            return drop(self, x, "drop") if place == self.place else x

        x = conv(self, x, "stem")
        h = noise("input", conv(self, nnx.relu(bn(self, x, "bn1")), "conv"))
        gate = noise("squeezed", nnx.relu(dense(self, gap(h), "squeeze", 4)))
        gate = nnx.sigmoid(noise("gate", dense(self, gate, "excite")))
        h = h * gate[:, None, None, :]
        h = x + h if self.residual else h
        return fc(self, gap(nnx.relu(bn(self, h, "bn2"))))


class UNet(Net):
    def __init__(self, place, add=False):
        self.place, self.add = place, add

    def __call__(self, x):
        high = nnx.relu(bn(self, conv(self, x, "enc"), "enc_bn"))
        if self.place == "encoder":
            high = drop(self, high, "drop")
        low = nnx.max_pool(high, (2, 2), (2, 2))
        low = nnx.relu(bn(self, conv(self, low, "middle"), "middle_bn"))
        if self.place == "bottom":
            low = drop(self, low, "drop")
        up = deconv(self, low, "up", 2)
        x = high + up if self.add else jnp.concatenate([high, up], axis=-1)
        return conv(self, nnx.relu(bn(self, conv(self, x, "dec"), "dec_bn")), "out", 1, 3)


class Pix2PixUp(Net):
    def __call__(self, x):
        down1 = conv(self, x, "down1")
        down2 = conv(self, nnx.leaky_relu(down1), "down2", 4, strides=(2, 2))
        down2 = bn(self, down2, "down2_bn")
        down3 = conv(self, nnx.leaky_relu(down2), "down3", 4, strides=(2, 2))
        up = drop(self, bn(self, deconv(self, nnx.relu(down3), "up3", 4), "up3_bn"), "drop")
        up = jnp.concatenate([down2, up], axis=-1)
        up = jnp.concatenate([down1, bn(self, deconv(self, nnx.relu(up), "up2", 4), "up2_bn")], axis=-1)
        return nnx.tanh(conv(self, nnx.relu(up), "out", 3, 3))


class TwoWays(Net):
    def __init__(self, join):
        self.join = join

    def __call__(self, x):
        x = conv(self, x, "stem")
        h = drop(self, nnx.relu(x), "drop")
        if self.join == "concat":
            h = jnp.concatenate([conv(self, h, "conv"), h], axis=-1)
        elif self.join == "add":
            h = h + conv(self, h, "conv")
        elif self.join == "relieved":
            h = jnp.concatenate([x + conv(self, h, "conv"), h], axis=-1)
        return fc(self, gap(nnx.relu(bn(self, h, "bn"))))


class Siamese(Net):
    def __call__(self, x):
        a, b = (
            drop(self, nnx.relu(dense(self, half, "encoder")), "drop") for half in jnp.split(x, 2, axis=-1)
        )
        return fc(self, nnx.relu(bn(self, a + b, "bn")))


class TwoTowers(Net):
    def __call__(self, x):
        a, b = jnp.split(x, 2, axis=-1)
        a = drop(self, nnx.relu(dense(self, a, "a1")), "drop")
        x = dense(self, a, "a2") + dense(self, b, "b")
        return fc(self, nnx.relu(bn(self, x, "bn")))


class Auxiliary(Net):
    def __call__(self, x):
        x = nnx.relu(bn(self, conv(self, x, "conv1"), "bn1"))
        aux = dense(self, drop(self, gap(x), "drop"), "aux", 3)
        x = nnx.relu(bn(self, conv(self, x, "conv2"), "bn2"))
        return fc(self, gap(x)), aux


class LayerNormTransformer(Net):
    def __call__(self, x):
        x = drop(self, dense(self, x, "embed"), "embed_drop", 0.1)
        h = ln(self, x, "ln1")
        options = {"in_features": 8, "dropout_rate": 0.1, "decode": False, "deterministic": False}
        h = self.layer("attention", nnx.MultiHeadAttention, 2, **options)(h)
        x = x + drop(self, h, "drop1", 0.1)
        h = nnx.gelu(dense(self, ln(self, x, "ln2"), "mlp1", 16))
        h = dense(self, drop(self, h, "drop2", 0.1), "mlp2")
        x = x + drop(self, h, "drop3", 0.1)
        return fc(self, ln(self, x, "ln").mean(1))


class BatchNormEncoderLayer(Net):
    def __call__(self, x):
        h = self.layer("attention", nnx.MultiHeadAttention, 2, in_features=8, decode=False)(x)
        x = bn(self, x + drop(self, h, "drop1", 0.1), "norm1")
        h = drop(self, nnx.gelu(dense(self, x, "linear1", 16)), "drop", 0.1)
        h = dense(self, h, "linear2")
        return bn(self, x + drop(self, h, "drop2", 0.1), "norm2")


class BatchNormTransformer(Net):
    def __call__(self, x):
        x = dense(self, x, "project")
        x = x + self.param("positions", nnx.initializers.normal(0.02), (x.shape[1], 8))
        x = drop(self, x, "pos_drop", 0.1)
        for i in (1, 2):
            x = self.block(f"l{i}", BatchNormEncoderLayer)(x)
        return dense(self, drop(self, nnx.gelu(x), "out_drop", 0.1), "out", 3)


class ConformerBlock(Net):
    def __call__(self, x):
        h = nnx.swish(dense(self, ln(self, x, "ff_ln"), "ff1", 16))
        h = dense(self, drop(self, h, "ff_drop1", 0.1), "ff2")
        x = x + 0.5 * drop(self, h, "ff_drop2", 0.1)
        h = nnx.glu(dense(self, ln(self, x, "conv_ln"), "pointwise1", 16))
        h = conv(self, h, "depthwise", (3,), feature_group_count=8)
        h = dense(self, nnx.swish(bn(self, h, "bn")), "pointwise2")
        return x + drop(self, h, "conv_drop", 0.1)


class Conformer(Net):
    def __call__(self, x):
        x = dense(self, x, "project")
        for i in (1, 2):
            x = self.block(f"b{i}", ConformerBlock)(x)
        return fc(self, ln(self, x, "ln"))


class Attention(Net):
    def __call__(self, x):
        x = drop(self, nnx.relu(dense(self, x, "embed")), "drop")
        x = self.layer("attention", nnx.MultiHeadAttention, 2, in_features=8, decode=False)(x)
        return fc(self, bn(self, x, "bn"))


class StackLayer(Net):
    def __init__(self, trunk, branch, residual):
        self.trunk, self.branch, self.residual = trunk, branch, residual

    def __call__(self, x):
        x = self.run(self.trunk, x)
        y = self.run(self.branch, x)
        return x + y if self.residual else y


def _stacked(x, *fields):
    """Three layers, stacked."""

    @nnx.split_rngs(splits=3)
    @nnx.vmap(in_axes=(0, None), out_axes=0)
    def made(rngs, x):
        return build(StackLayer(*fields), x, rngs)

    return made(_rngs.get(), x)


class Stack(Net):
    def __init__(self, branch, residual=False, trunk=""):
        self.fields = trunk, branch, residual

    def __call__(self, x):
        x = dense(self, x, "stem")
        layers = self.block("layers", _stacked, x, *self.fields)
        x = nnx.scan(lambda x, layer: layer(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, layers)
        return fc(self, bn(self, x, "head_bn"))


class Ensemble(Net):
    def __init__(self, order):
        self.order = order

    def __call__(self, x):
        members = self.block("members", _stacked, x, "", self.order, False)
        return nnx.vmap(lambda member, x: member(x), in_axes=(0, None))(members, x).mean(0)


class BehindIf(Net):
    def __init__(self):
        self.training = True

    def __call__(self, x):
        x = dense(self, x, "dense1")
        if self.training:
            x = drop(self, x, "drop")
        return fc(self, nnx.relu(bn(self, x, "bn")))


class Fixed(Net):
    """The switch is fixed at the call: train() and eval() would set one of the construction."""

    def __init__(self, deterministic):
        self.fixed = deterministic

    def __call__(self, x):
        drop = self.layer("drop", nnx.Dropout, 0.5)
        x = drop(dense(self, x, "dense"), deterministic=self.fixed)
        return fc(self, nnx.relu(bn(self, x, "bn")))


class SetupStyle(Net):
    def __call__(self, x):
        x = drop(self, dense(self, x, "hidden"), "drop")
        return dense(self, nnx.relu(bn(self, x, "bn")), "out", 3)


class SharedNorm(Net):
    def __init__(self, place):
        self.place = place

    def __call__(self, x):
        x = dense(self, x, "dense1")
        if self.place == "before":
            x = drop(self, x, "drop")
        x = nnx.relu(bn(self, x, "bn"))
        if self.place == "between":
            x = drop(self, x, "drop")
        return fc(self, bn(self, dense(self, x, "dense2"), "bn"))


class SharedDropout(Net):
    def __call__(self, x):
        x = drop(self, nnx.relu(dense(self, x, "dense1")), "drop")
        x = nnx.relu(bn(self, dense(self, x, "dense2"), "bn"))
        return fc(self, drop(self, x, "drop"))


class BoolNorm(nnx.BatchNorm):
    def __call__(self, x, train):
        return super().__call__(x, use_running_average=not train)


class Subclass(Net):
    def __call__(self, x, train=False):
        x = drop(self, dense(self, x, "dense"), "drop")
        return fc(self, nnx.relu(self.layer("bn", BoolNorm, 8)(x, train)))


class Axes(Net):
    def __init__(self, einsum):
        self.einsum = einsum

    def __call__(self, x):
        x = drop(self, nnx.relu(bn(self, conv(self, x, "conv"), "bn1")), "drop")
        if self.einsum:
            kernel = self.param("kernel", nnx.initializers.lecun_normal(), (8, 4, 2))
            x = jnp.einsum("bhwc,cnd->bhwnd", x, kernel).reshape(*x.shape[:3], 8)
        else:
            x = self.layer("general", nnx.LinearGeneral, x.shape[-2:], 8, axis=(-2, -1))(x)
        return fc(self, nnx.relu(bn(self, x, "bn2")))


class Positions(Net):
    def __call__(self, x):
        x = drop(self, dense(self, x, "dense"), "drop")
        x = x + self.param("positions", nnx.initializers.normal(0.02), (8,))
        return fc(self, nnx.relu(bn(self, x, "bn")))


class Control(Net):
    def __init__(self, kind):
        self.kind = kind

    def __call__(self, x):
        x = dense(self, x, "dense")
        y = drop(self, x, "drop")
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
            y = dense(self, reverse_gradient(y), "domain")
        elif self.kind == "stop_gradient":
            y = jax.lax.stop_gradient(y)
        return fc(self, nnx.relu(bn(self, y, "bn")))


def twin(case, rngs):
    """The NNX network of a `lint_models.Case`: its class has the same name and fields."""
    linen = case.model
    fields = {
        name: getattr(linen, name) for name in linen.__dataclass_fields__ if name not in ("parent", "name")
    }
    return build(globals()[type(linen).__name__](**fields), jnp.ones(case.shape), rngs)


# One case of each class of networks.
FAMILIES = {type(case.model).__name__: case for case in reversed(lint_models.CASES)}
