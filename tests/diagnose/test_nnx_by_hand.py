"""Noise that an NNX module draws by hand: all tools, against NumPy and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dropbn.diagnose import gap, lint, modes, shift, surgery
from dropbn.errors import DropbnError
from dropbn.nn.nnx import noise

BATCHES = [np.random.default_rng(seed).normal(0, 1.5, (400, 4, 2, 2)).astype(np.float32) for seed in range(2)]
X = BATCHES[0]
LABELS = [(x[:, 0, 0, 0] > 0).astype(int) for x in BATCHES]


class Hand(nnx.Module):
    """Dropout with a flag that eval() sets."""

    def __init__(self, rate, rngs):
        self.rate, self.rngs, self.deterministic = rate, rngs, False

    def __call__(self, x):
        if self.deterministic:
            return x
        return jnp.where(jax.random.bernoulli(self.rngs.noise(), 1 - self.rate, x.shape), x, 0)


class DropPath(nnx.Module):
    """Stochastic depth with a flag at the call."""

    def __init__(self, rate, rngs):
        self.rate, self.rngs = rate, rngs.noise.fork()

    def __call__(self, x, *, train):
        if not train:
            return x
        kept = jax.random.bernoulli(self.rngs(), 1 - self.rate, (len(x), *[1] * (x.ndim - 1)))
        return x / (1 - self.rate) * kept


class Net(nnx.Module):
    def __init__(self, rngs, rate=0.2):
        self.path, self.hand = DropPath(rate, rngs), Hand(0.5, rngs)
        self.first, self.second = (nnx.BatchNorm(16, momentum=0.0, rngs=rngs) for _ in range(2))

    def __call__(self, x, train=False):
        x = self.first(self.path(x.reshape(len(x), -1), train=train))
        return self.second(self.hand(x))[:, :2]


@pytest.fixture
def net():
    return Net(nnx.Rngs(0, noise=1))


def _ratios(model):
    rows = [row for row in lint.check(model, X).rows if row["norm"]]
    return {(row["noise"].partition(" ")[0], row["norm"]): row["ratio"] for row in rows}


# By (noise, batch normalization). Hand does not rescale: test mode gives 1 / keep of the variance back.
PATH, HAND = ("path", "first"), ("hand", "second")


def test_what_the_tools_say_of_it(net):
    assert _ratios(net) == {PATH: pytest.approx(0.8, rel=1e-5), HAND: pytest.approx(2)}
    first, second = shift.predict(net, BATCHES).rows
    x = np.float64(np.concatenate(BATCHES)).reshape(800, 16)
    assert first["real_var"] == pytest.approx(x.var(0).mean(), rel=1e-6)
    # 12,800 values; a row is dropped with its 16, so that the error is that of 800.
    assert first["ratio"] == pytest.approx(0.8, rel=0.05)
    # What the first BN remembers is 1.25 times the variance of its input in test mode: 0.8 against 1 / 2.
    assert second["ratio"] == pytest.approx(0.8 / 0.5, rel=0.05)


@pytest.fixture
def outputs(net):
    """Those in test mode, in NumPy, for statistics that are given to the model."""
    x = np.float64(np.concatenate(BATCHES)).reshape(800, 16)
    for norm, var in ((net.first, 2), (net.second, 0.7)):
        norm.var[...] = jnp.full(16, var)
        x = x / np.sqrt(var + 1e-5)
    return x[:, :2]


def test_it_is_off_in_test_mode(net, outputs):
    x = np.float64(np.concatenate(BATCHES)).reshape(800, 16)
    for row, var, given in zip(shift.measure(net, BATCHES).rows, (1, 2 + 1e-5), (2, 0.7), strict=True):
        assert row["real_var"] == pytest.approx((x / np.sqrt(var)).var(0).mean(), rel=1e-6)
        assert row["moving_var"] == pytest.approx(given, rel=1e-6)
    output, _ = modes.apply(net, X, mode=modes.Mode(False, "running", False))
    np.testing.assert_allclose(output, outputs[:400], 1e-5, 1e-6)


@pytest.mark.slow
def test_gap_switches_it(net, outputs):
    labelled = list(zip(BATCHES, LABELS, strict=True))
    found = gap.explain(net, labelled, labelled, num_samples=2)
    assert found.draws == () and found.unseen == ""
    row = next(row for row in found.rows if list(row.values())[:3] == ["off", "running", "train"])
    assert row["accuracy"] == pytest.approx(np.mean(outputs.argmax(1) == np.concatenate(LABELS)))


EDITS = {
    "swapped": (lambda net: surgery.swap_noise(net, to=noise.Uout(0.6)), (1 / 1.12, 1 / 1.12)),
    "matched": (lambda net: surgery.swap_noise(net, matched=noise.GaussianDropout), (0.8, 0.5)),
    "set": (lambda net: surgery.with_rates(net, {"hand": 0.2}), (0.8, 1.25)),
    "off": (surgery.without_noise, ()),
    "moved": (lambda net: surgery.move(net, {"hand": "second"}), (0.8,)),
    "to the last": (lambda net: surgery.move_to_last_bn(surgery.with_rates(net, {"path": 0.0}), X), (1,)),
}


_slow = [pytest.param(edit, marks=pytest.mark.slow) for edit in EDITS if edit != "off"]


@pytest.mark.parametrize("edit", ["off", *_slow])
def test_surgery_reaches_it(edit, net):
    (graph, _), (change, wanted) = nnx.split(net), EDITS[edit]
    changed = change(net)
    assert list(_ratios(changed).values()) == pytest.approx(wanted, rel=1e-5)
    assert nnx.split(net)[0] == graph
    run = nnx.jit(lambda model, x, train: model(x, train=train), static_argnames="train")
    changed.eval()
    net.eval()
    np.testing.assert_allclose(run(changed, X, False), run(net, X, False), 1e-5, 1e-6)
    changed.train()
    outputs = run(changed, X, True), run(changed, X, True)
    assert bool(jnp.any(outputs[0] != outputs[1])) == (edit != "off")


def test_what_no_edit_reaches_is_named(net):
    class Latent(nnx.Module):
        def __init__(self, rngs):
            self.rngs = rngs

        def __call__(self, x):
            return x + jax.random.normal(self.rngs.noise(), x.shape)

    class Wide(Hand):
        def __call__(self, x):
            return super().__call__(x.reshape(len(x), 17)).reshape(x.shape)

    net.latent, net.wide = Latent(nnx.Rngs(noise=1)), Wide(0.1, nnx.Rngs(noise=2))
    with pytest.warns(UserWarning) as warned:
        surgery.without_noise(net)
    draws, unknown = (str(each.message) for each in warned)
    assert draws.startswith("Random draws that belong to no noise of their own stay: latent test_nnx_by")
    assert unknown.startswith("These modules hold a random stream") and unknown.endswith(": wide.")
    with pytest.raises(DropbnError, match="'path' has no random stream of its own, or is called with more"):
        surgery.move(net, {"path": "first"})
