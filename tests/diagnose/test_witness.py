"""The second witness: what training does that no tool has seen, and silence where there is nothing."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dropbn.diagnose import gap, witness
from dropbn.diagnose.linen import Model

X = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
DRAWS = np.random.default_rng(1)


def _callback(module, x, train):
    def mask(x):
        return (2 * DRAWS.integers(0, 2, x.shape)).astype(np.float32)

    return x * jax.pure_callback(mask, jax.ShapeDtypeStruct(x.shape, x.dtype), x) if train else x


def _keyed_by_data(module, x, train):
    key = jax.random.key(jnp.abs(1000 * x.sum()).astype(jnp.uint32))
    return x * jax.random.bernoulli(key, 0.5, x.shape) / 0.5 if train else x


def _doubled(module, x, train):
    return 2 * x if train else x


def _slightly(module, x, train):
    return 1.001 * x if train else x


class Odd(nn.Module):
    does: object

    @nn.compact
    def __call__(self, x, train):
        return self.does(self, x, train)


class Net(nn.Module):
    """BN and dropout, and a layer that does something in training that no tool sees."""

    does: object
    dtype: type = jnp.float32
    depth: int = 1

    @nn.compact
    def __call__(self, x, train=False):
        for _ in range(self.depth):
            x = nn.relu(nn.Dense(8, dtype=self.dtype)(x))
            x = nn.Dropout(0.3)(x, deterministic=not train)
            x = nn.BatchNorm(dtype=self.dtype)(x, use_running_average=not train)
        x = Odd(self.does, name="odd")(x, train)
        return nn.Dense(3)(x)


def _unseen(net, x=X):
    variables = jax.jit(net.init)(jax.random.key(0), x)
    stats = jax.tree.map(lambda leaf: 0.1 + 0.5 * leaf, variables["batch_stats"])
    variables, model = {**variables, "batch_stats": stats}, Model.of(net)
    return witness.unseen(model, variables, x, model.layers(variables, x))


def test_a_noise_that_no_key_decides_is_witnessed():
    """x * m with m = 0 or 2: two draws differ by sqrt(2) E[x^2]^0.5."""
    sentence = _unseen(Net(_callback))
    assert sentence.startswith(
        "With every known noise off, two runs of training give outputs that differ by "
    )
    assert sentence.endswith(": a noise was not seen, in 'odd'.")


@pytest.mark.parametrize("does", [_keyed_by_data, _doubled])
def test_what_two_keys_do_not_show_test_mode_does(does):
    sentence = _unseen(Net(does))
    assert "gives outputs that differ from those of test mode by" in sentence
    assert sentence.endswith("was not seen, in 'odd'.")


def test_the_difference_is_what_it_says():
    """Doubling a linear layer's input, before a Dense layer of bias 0, doubles the outputs: 100 %."""

    class Linear(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return nn.Dense(3)(nn.BatchNorm()(_doubled(self, x, train), use_running_average=not train))

    assert "of test mode by 100% of their spread" in _unseen(Linear(), X - X.mean(0))
    assert "before 'BatchNorm_0'" in _unseen(Linear(), X - X.mean(0))


@pytest.mark.parametrize(
    "net",
    [
        Net(lambda module, x, train: x),
        Net(_slightly),  # 0.1 % explains no gap.
        Net(lambda module, x, train: x, depth=8),
        Net(lambda module, x, train: x, dtype=jnp.bfloat16, depth=8),
        Net(lambda module, x, train: nn.Dropout(0.5, deterministic=False)(x)),  # Known, and on in test mode.
        Net(lambda m, x, train: x + jax.random.normal(m.make_rng("dropout"), x.shape) if train else x),
    ],
    ids=["clean", "slight", "deep", "bfloat16", "always on", "known draw"],
)
def test_nothing_is_said_of_rounding_or_of_what_is_known(net):
    assert _unseen(net) == ""


def test_gap_says_what_the_witness_found_and_not_that_there_is_no_noise():
    class Quiet(nn.Module):
        does: object

        @nn.compact
        def __call__(self, x, train=False):
            x = nn.BatchNorm(name="bn")(Odd(self.does, name="odd")(x, train), use_running_average=not train)
            return nn.Dense(2)(x)

    variables = jax.jit(Quiet(_doubled).init)(jax.random.key(0), X)
    variables["batch_stats"]["bn"] = {"mean": jnp.zeros(8), "var": jnp.full(8, 4.0)}
    batches = [(X, (X[:, 0] > 0).astype(int))]
    advice = gap.explain(Quiet(_callback), variables, batches, batches).advice
    assert "No noise was found" not in advice
    assert "a noise was not seen, in 'odd'. No share separates what it does." in advice
