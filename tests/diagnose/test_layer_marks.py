"""What the traces say of each layer: its line, what it draws, and what its running state may be."""

import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from dropbn.diagnose import lint, registry
from dropbn.diagnose.linen import Model
from dropbn.nn import noise

X = jax.random.normal(jax.random.key(0), (4, 6, 6, 8))


class DropPath(nn.Module):
    """A layer of somebody else: one draw for each example, and an amount under a name of its own."""

    strength: float = 0.5
    shape: tuple = (4, 1, 1, 1)

    @nn.compact
    def __call__(self, x, train):
        if not train:
            return x
        keep = 1 - self.strength
        kept = jax.random.bernoulli(self.make_rng("dropout"), keep, self.shape)
        return jnp.where(kept, x / keep, 0)


class Idle(nn.Module):
    """A noise that draws nothing at strength 0, and yet returns another array than its input."""

    strength: float = 0.0

    @nn.compact
    def __call__(self, x, train):
        if train and self.strength:
            x = x * jax.random.bernoulli(self.make_rng("dropout"), self.strength, x.shape)
        return x * 1.0


class Masked(nn.Module):
    """A noise whose mask is drawn outside."""

    @nn.compact
    def __call__(self, x, train, mask=None):
        return x * mask if train else x


@pytest.fixture
def registered():
    """Types of somebody else's noises are registered for a test."""
    for kind in (DropPath, Idle, Masked):
        registry.NOISES[kind] = registry.Switch("train", test=False)
    yield
    for kind in (DropPath, Idle, Masked):
        del registry.NOISES[kind]


class Net(nn.Module):
    """A residual block with a noise right before the addition; `how` says what it is called within."""

    make: object
    how: str = ""

    @nn.compact
    def __call__(self, x, train=False):
        def body(module, x):
            layer = module.make()
            if isinstance(layer, (nn.Dropout, noise.Noise)):
                return layer(x, deterministic=not train)
            return layer(x, train)

        y = nn.Conv(8, (3, 3))(nn.BatchNorm(name="bn1")(x, use_running_average=not train))
        for lifted in filter(None, self.how.split()):
            body = getattr(nn, lifted)(body)
        x = x + body(self, y)
        return nn.BatchNorm(name="bn2")(x, use_running_average=not train)


def _layers(net):
    return Model.of(net).layers(jax.eval_shape(net.init, jax.random.key(0), X), X)


PER_EXAMPLE = {
    "dropout over all but the batch": lambda: nn.Dropout(0.5, broadcast_dims=(1, 2, 3), name="noise"),
    "one draw for the batch": lambda: nn.Dropout(0.5, broadcast_dims=(0, 1, 2, 3), name="noise"),
    "our dropout": lambda: noise.Dropout(0.5, broadcast_dims=(1, 2, 3), name="noise"),
    "a class of its own": lambda: DropPath(name="noise"),
}
PER_UNIT = {
    "dropout": lambda: nn.Dropout(0.5, name="noise"),
    "channels": lambda: nn.Dropout(0.5, broadcast_dims=(1, 2), name="noise"),
    "positions": lambda: DropPath(shape=(4, 6, 6, 1), name="noise"),
}


@pytest.mark.parametrize("name", PER_EXAMPLE | PER_UNIT)
@pytest.mark.parametrize("how", ["", "remat"])
def test_drop_path_is_what_draws_once_for_an_example(registered, name, how):
    """It is never told to move before the weights; element noise at the same place is."""
    net = Net((PER_EXAMPLE | PER_UNIT)[name], how)
    assert _layers(net).per_example == (frozenset({"noise"}) if name in PER_EXAMPLE else frozenset())
    codes = {row["code"] for row in lint.check(net, X).rows if row["noise"]}
    assert codes == ({"DBN103"} if name in PER_EXAMPLE else {"DBN103", "DBN202"})


def test_a_noise_that_draws_nothing_is_off(registered):
    for strength, on in ((0.0, False), (0.5, True)):
        use = _layers(Net(lambda s=strength: Idle(s, name="noise"))).noises["noise",]
        assert use.train is on, strength


def test_a_mask_from_outside_is_a_draw(registered):
    class Outside(nn.Module):
        scanned: bool

        @nn.compact
        def __call__(self, x, train=False):
            mask = jax.random.bernoulli(self.make_rng("dropout"), 0.5, x.shape) if train else None

            def body(module, x, _):
                return Masked(name="noise")(x, train, mask), None

            if self.scanned and not self.is_initializing():
                x = nn.scan(body, length=2)(self, x, None)[0]
            else:
                x = body(self, x, None)[0]
            return nn.BatchNorm(name="bn")(x, use_running_average=not train)

    for scanned in (False, True):
        assert _layers(Outside(scanned)).noises["noise",].train, scanned


def test_the_line_of_a_layer_is_the_users():
    layers = _layers(Net(PER_EXAMPLE["our dropout"]))
    source, first = inspect.getsourcelines(Net)
    line = {
        name: next(first + i for i, text in enumerate(source) if within in text)
        for name, within in (("bn1", 'name="bn1"'), ("noise", "return layer(x, deterministic"))
    }
    for name, number in line.items():
        assert layers.marked[name].line == f"test_layer_marks.py:{number}"
    row = next(row for row in lint.check(Net(PER_UNIT["dropout"]), X).rows if row["code"] == "DBN103")
    assert row["layers"].keys() == {"noise", "bn2"} and row["line"] == row["layers"]["noise"]
    assert row["line"] == f"test_layer_marks.py:{line['noise']}"


class Copied(nn.Module):
    """Batch normalization with other names, which is not a registered type; or something else that moves."""

    kind: str

    @nn.compact
    def __call__(self, x, train):
        size = x.shape[-1]
        if self.kind == "kept axes":
            shape, now = (1, 1, 1, size), (x.mean((0, 1, 2), keepdims=True), x.var((0, 1, 2), keepdims=True))
        elif self.kind == "batch normalization":
            shape, now = (size,), (x.mean((0, 1, 2)), x.var((0, 1, 2)))
        elif self.kind == "one leaf":
            shape, now = (size,), (x.mean((0, 1, 2)),)
        elif self.kind == "codebook":
            shape, now = (5,), (jnp.full(5, x.mean()), jnp.full(5, x.var()))
        else:  # Power iteration on a square matrix: neither vector sees the input.
            kernel = self.param("kernel", nn.initializers.normal(), (size, size))
            shape, now = (size,), (kernel.sum(0), kernel.sum(1))
        leaves = [self.variable("batch_stats", f"r{i}", jnp.ones, shape) for i in range(len(now))]
        if train and not self.is_initializing():
            for leaf, value in zip(leaves, now, strict=True):
                leaf.value = 0.9 * leaf.value + 0.1 * value
        else:
            now = [leaf.value for leaf in leaves]
        return x + sum(leaf.sum() for leaf in now)


class Stateful(nn.Module):
    kind: str
    rate: float = 0.0
    last: bool = False

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dropout(self.rate)(x, deterministic=not train)
        x = nn.GroupNorm(4)(x)
        x = Copied(self.kind, name="copied")(x, train)
        return x if self.last else nn.BatchNorm(name="bn")(x, use_running_average=not train)


@pytest.mark.parametrize("kind", ["batch normalization", "kept axes", "one leaf", "codebook", "spectral"])
def test_state_that_may_be_a_batch_normalization_counts(kind):
    may_be = kind in ("batch normalization", "kept axes")
    layers, report = _layers(Stateful(kind)), lint.check(Stateful(kind), X)
    assert layers.states == {"copied": ["bn"]} and layers.unseen_states == (
        {"copied": ["bn"]} if may_be else {}
    )
    [row] = report.rows
    assert row["code"] == ("DBN403" if may_be else "DBN402") and row["norm"] == "copied"
    assert row["line"].startswith("test_layer_marks.py:")
    assert [row["norm"] for row in report.unseen()] == ["copied"] * may_be
    assert report.unseen(["cop*"]) == []
    if may_be:
        with pytest.raises(AssertionError, match="not understood may shift batch normalizations:\ncopied"):
            lint.assert_no_shift(Stateful(kind), X)
        lint.assert_no_shift(Stateful(kind), X, accept_unseen=["copied"])


def test_state_that_nothing_shifts_and_that_shifts_nothing_does_not_count():
    """Behind it comes no batch normalization; a noise before it may shift it all the same."""
    for rate, codes in ((0.0, {"DBN402"}), (0.5, {"DBN403", "DBN101"} - {"DBN101"})):
        report = lint.check(Stateful("batch normalization", rate, last=True), X)
        assert {row["code"] for row in report.rows} == codes


@pytest.mark.parametrize("file", ["/home/somebody/jax/net.py", "/home/somebody/dropbn/net.py"])
def test_a_users_folder_may_be_called_as_a_library(file):
    source = (
        "import flax.linen as nn\n"
        "class Net(nn.Module):\n"
        "    @nn.compact\n"
        "    def __call__(self, x, train=False):\n"
        "        x = nn.Dropout(0.5)(x, deterministic=not train)\n"
        "        return nn.BatchNorm()(x, use_running_average=not train)\n"
    )
    names = {"__name__": __name__}
    exec(compile(source, file, "exec"), names)
    [row] = lint.check(names["Net"](), X).errors()
    assert row["layers"] == {"Dropout_0": "net.py:5", "BatchNorm_0": "net.py:6"}
