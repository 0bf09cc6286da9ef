"""NNX twins of the models in linen_models.py: the same names of layers, so that variables fit both."""

import functools

import jax.numpy as jnp
from flax import nnx

FLAT = 48  # the size of an image of shape (4, 4, 3)


class CallFlags(nnx.Module):
    def __init__(self, rngs):
        self.Conv_0 = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.Dropout_0 = nnx.Dropout(0.5, rngs=rngs)
        self.BatchNorm_0 = nnx.BatchNorm(4, rngs=rngs)
        self.Dense_0 = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        x = self.BatchNorm_0(self.Dropout_0(self.Conv_0(x)))
        return self.Dense_0(nnx.relu(x).mean((1, 2)))


class ConstructorFlags(nnx.Module):
    """The flag is an argument of the call here."""

    def __init__(self, rngs):
        self.Dense_0 = nnx.Linear(FLAT, 6, rngs=rngs)
        self.Dropout_0 = nnx.Dropout(0.3, rngs=rngs)
        self.BatchNorm_0 = nnx.BatchNorm(6, momentum=0.8, rngs=rngs)
        self.Dense_1 = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x, *, train=False):
        x = self.Dropout_0(self.Dense_0(x.reshape(len(x), -1)), deterministic=not train)
        return self.Dense_1(nnx.relu(self.BatchNorm_0(x, use_running_average=not train)))


class DropoutBehindIf(nnx.Module):
    """A flag of the model's own, which train() and eval() do not know."""

    def __init__(self, rngs):
        self.training = False
        self.Dense_0 = nnx.Linear(FLAT, 6, rngs=rngs)
        self.Dropout_0 = nnx.Dropout(0.5, rngs=rngs)
        self.BatchNorm_0 = nnx.BatchNorm(6, rngs=rngs)
        self.Dense_1 = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        x = self.Dense_0(x.reshape(len(x), -1))
        if self.training:
            x = self.Dropout_0(x)
        return self.Dense_1(self.BatchNorm_0(x))


class SharedNorm(nnx.Module):
    def __init__(self, rngs):
        self.shared = nnx.BatchNorm(FLAT, rngs=rngs)
        self.twice = self.shared
        self.Dropout_0 = nnx.Dropout(0.5)  # without a stream of its own
        self.Dense_0 = nnx.Linear(FLAT, FLAT, rngs=rngs)
        self.Dense_1 = nnx.Linear(FLAT, 3, rngs=rngs)

    def __call__(self, x, rngs):
        x = self.shared(self.Dropout_0(x.reshape(len(x), -1), rngs=rngs))
        return self.Dense_1(self.twice(nnx.relu(self.Dense_0(x))))


class Body(nnx.Module):
    def __init__(self, rngs):
        self.first, self.second = (nnx.BatchNorm(FLAT, rngs=rngs) for _ in range(2))
        self.Dense_0, self.Dense_1 = (nnx.Linear(FLAT, FLAT, rngs=rngs) for _ in range(2))
        self.Dropout_0 = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        y = self.second(self.Dropout_0(self.Dense_0(nnx.relu(self.first(x)))))
        return x + self.Dense_1(y)


class Scanned(nnx.Module):
    def __init__(self, rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def stacked(rngs):
            return Body(rngs)

        self.layers = stacked(rngs)
        self.Dense_0 = nnx.Linear(FLAT, 3, rngs=rngs)

    def __call__(self, x):
        run = nnx.scan(lambda x, layer: layer(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return self.Dense_0(run(x.reshape(len(x), -1), self.layers))


class Rematted(nnx.Module):
    def __init__(self, rngs):
        self.CheckpointBody_0, self.CheckpointBody_1 = (Body(rngs) for _ in range(2))
        self.Dense_0 = nnx.Linear(FLAT, 3, rngs=rngs)

    def __call__(self, x):
        x = x.reshape(len(x), -1)
        for body in (self.CheckpointBody_0, self.CheckpointBody_1):
            x = nnx.remat(lambda body, x: body(x))(body, x)
        return self.Dense_0(x)


class HalfPrecision(nnx.Module):
    def __init__(self, rngs):
        half = {"dtype": jnp.bfloat16, "rngs": rngs}
        self.Conv_0 = nnx.Conv(3, 4, (3, 3), **half)
        self.Dropout_0 = nnx.Dropout(0.5, rngs=rngs)
        self.BatchNorm_0 = nnx.BatchNorm(4, **half)
        self.Dense_0 = nnx.Linear(4, 3, **half)

    def __call__(self, x):
        x = self.BatchNorm_0(self.Dropout_0(self.Conv_0(x)))
        return self.Dense_0(nnx.relu(x).mean((1, 2)))


class Frozen(nnx.Module):
    def __init__(self, rngs):
        self.frozen, self.live = (nnx.BatchNorm(FLAT, rngs=rngs) for _ in range(2))
        self.Dropout_0 = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        x = self.frozen(x.reshape(len(x), -1), use_running_average=True)
        return self.live(self.Dropout_0(x))


class Jitted(nnx.Module):
    def __init__(self, rngs):
        self.JitBody_0 = Body(rngs)
        self.Dense_0 = nnx.Linear(FLAT, 3, rngs=rngs)

    def __call__(self, x):
        return self.Dense_0(_jitted(self.JitBody_0, x.reshape(len(x), -1)))


# One function for all models, so that its cache could mix up modes.
_jitted = nnx.jit(lambda body, x: body(x))


class TrainNorm(nnx.BatchNorm):
    """A BN with a signature of its own."""

    def __call__(self, x):
        return super().__call__(x)


class OwnSignature(nnx.Module):
    def __init__(self, rngs):
        self.Dropout_0 = nnx.Dropout(0.5, rngs=rngs)
        self.TrainNorm_0 = TrainNorm(FLAT, rngs=rngs)
        self.Dense_0 = nnx.Linear(FLAT, 3, rngs=rngs)

    def __call__(self, x):
        return self.Dense_0(self.TrainNorm_0(self.Dropout_0(x.reshape(len(x), -1))))


class Carried(nnx.Module):
    def __init__(self, rngs):
        self.layers = Body(rngs)
        self.Dense_0 = nnx.Linear(FLAT, 3, rngs=rngs)

    def __call__(self, x):
        def step(carry):
            x, body = carry
            return body(x), body

        run = nnx.scan(step, in_axes=nnx.Carry, out_axes=nnx.Carry, length=3)
        return self.Dense_0(run((x.reshape(len(x), -1), self.layers))[0])


class Mnist(nnx.Module):
    """As in Flax's MNIST example: dropout of rate 0.025 before BN."""

    def __init__(self, rngs):
        self.conv1 = nnx.Conv(3, 6, (3, 3), rngs=rngs)
        self.batch_norm1 = nnx.BatchNorm(6, rngs=rngs)
        self.dropout1 = nnx.Dropout(0.025)
        self.conv2 = nnx.Conv(6, 8, (3, 3), rngs=rngs)
        self.batch_norm2 = nnx.BatchNorm(8, rngs=rngs)
        self.avg_pool = functools.partial(nnx.avg_pool, window_shape=(2, 2), strides=(2, 2))
        self.linear1 = nnx.Linear(8, 8, rngs=rngs)
        self.dropout2 = nnx.Dropout(0.025)
        self.linear2 = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x, rngs=None):
        x = self.avg_pool(nnx.relu(self.batch_norm1(self.dropout1(self.conv1(x), rngs=rngs))))
        x = self.avg_pool(nnx.relu(self.batch_norm2(self.conv2(x))))
        x = nnx.relu(self.dropout2(self.linear1(x.reshape(len(x), -1)), rngs=rngs))
        return self.linear2(x)
