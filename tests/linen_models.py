"""Models as Flax users write them, knowing nothing of dropbn, for the tests of modes and shift."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp


class CallFlags(nn.Module):
    """Convolutions, flags given at the call, a required `train`."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(4, (3, 3))(x)
        x = nn.Dropout(0.5)(x, deterministic=not train)
        x = nn.BatchNorm()(x, use_running_average=not train)
        x = nn.relu(x).mean((1, 2))
        return nn.Dense(3)(x)


class ConstructorFlags(nn.Module):
    """Flags given at construction, `train=False` by default."""

    @nn.compact
    def __call__(self, x, *, train=False):
        x = nn.Dense(6)(x.reshape(len(x), -1))
        x = nn.Dropout(0.3, deterministic=not train)(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.8)(x)
        return nn.Dense(3)(nn.relu(x))


class DropoutBehindIf(nn.Module):
    """Dropout is reached only in training."""

    @nn.compact
    def __call__(self, x, training=False):
        x = nn.Dense(6)(x.reshape(len(x), -1))
        if training:
            x = nn.Dropout(0.5, deterministic=False)(x)
        x = nn.BatchNorm(use_running_average=not training, axis=-1)(x)
        return nn.Dense(3)(x)


class SharedNorm(nn.Module):
    """One BN called twice, a `deterministic` flag."""

    @nn.compact
    def __call__(self, x, deterministic=True):
        norm = nn.BatchNorm(name="shared")
        x = nn.Dropout(0.5)(x.reshape(len(x), -1), deterministic=deterministic)
        x = norm(x, use_running_average=deterministic)
        x = nn.relu(nn.Dense(x.shape[-1])(x))
        return nn.Dense(3)(norm(x, use_running_average=deterministic))


class Body(nn.Module):
    train: bool

    @nn.compact
    def __call__(self, x, _=None):
        y = nn.BatchNorm(use_running_average=not self.train, name="first")(x)
        y = nn.Dropout(0.5, deterministic=not self.train)(nn.Dense(x.shape[-1])(nn.relu(y)))
        y = nn.BatchNorm(use_running_average=not self.train, name="second")(y)
        return x + nn.Dense(x.shape[-1])(y), None


class Scanned(nn.Module):
    """Three layers stacked by nn.scan."""

    @nn.compact
    def __call__(self, x, train=False):
        layers = nn.scan(
            Body,
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True, "dropout": True},
            length=3,
        )
        x, _ = layers(train, name="layers")(x.reshape(len(x), -1), None)
        return nn.Dense(3)(x)


class Rematted(nn.Module):
    """Blocks under nn.remat."""

    @nn.compact
    def __call__(self, x, is_training=False):
        x = x.reshape(len(x), -1)
        for _ in range(2):
            x, _ = nn.remat(Body)(is_training)(x)
        return nn.Dense(3)(x)


class HalfPrecision(nn.Module):
    """bfloat16 computation."""

    dtype: Any = jnp.bfloat16

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(4, (3, 3), dtype=self.dtype)(x)
        x = nn.Dropout(0.5)(x, deterministic=not train)
        x = nn.BatchNorm(dtype=self.dtype)(x, use_running_average=not train)
        return nn.Dense(3, dtype=self.dtype)(nn.relu(x).mean((1, 2)))


class Frozen(nn.Module):
    """A BN that is frozen on purpose, before one that is not."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=True, name="frozen")(x.reshape(len(x), -1))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.BatchNorm(name="live")(x, use_running_average=not train)


class Jitted(nn.Module):
    """A block under nn.jit, whose cache knows nothing of modes."""

    @nn.compact
    def __call__(self, x, train=False):
        x, _ = nn.jit(Body)(train)(x.reshape(len(x), -1))
        return nn.Dense(3)(x)


class TrainNorm(nn.BatchNorm):
    """A BN with a signature of its own."""

    @nn.compact
    def __call__(self, x, train):
        return super().__call__(x, use_running_average=not train)


class OwnSignature(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dropout(0.5)(x.reshape(len(x), -1), deterministic=not train)
        return nn.Dense(3)(TrainNorm()(x, train))


class Carried(nn.Module):
    """A recurrent net: nn.scan carries one BN's statistics from step to step."""

    @nn.compact
    def __call__(self, x, train=False):
        layers = nn.scan(
            Body,
            variable_broadcast="params",
            variable_carry="batch_stats",
            split_rngs={"params": False, "dropout": True},
            length=3,
        )
        x, _ = layers(train, name="layers")(x.reshape(len(x), -1), None)
        return nn.Dense(3)(x)


# (model, the flag it takes, the flag's value in training)
BREADTH = [
    (CallFlags(), "train", True),
    (ConstructorFlags(), "train", True),
    (DropoutBehindIf(), "training", True),
    (SharedNorm(), "deterministic", False),
    (Scanned(), "train", True),
    (Rematted(), "is_training", True),
    (HalfPrecision(), "train", True),
    (Jitted(), "train", True),
    (OwnSignature(), "train", True),
]
