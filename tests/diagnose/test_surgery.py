"""Surgery on models that know nothing of dropbn: what changes, and that nothing else does."""

import functools
import inspect
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linen_models import BREADTH, ConstructorFlags, DropoutBehindIf, TrainNorm

from dropbn.diagnose import modes, registry
from dropbn.diagnose.surgery import move, swap_noise, with_rates, without_noise
from dropbn.errors import DropbnError
from dropbn.nn import noise
from dropbn.nn.activations import RReLU

X = 1 + jax.random.normal(jax.random.key(0), (12, 4, 4, 2))
FLAT = 1 + jax.random.normal(jax.random.key(3), (4000, 8))
RNGS = {"dropout": jax.random.key(5)}
OFF = modes.Mode(noise=False, batch_norm="batch", update=True)

# A move of the noise of each model, some of them backwards, to a layer that is called earlier.
MOVES = {
    "CallFlags": ("Dropout_0", "Conv_0"),
    "ConstructorFlags": ("Dropout_0", "BatchNorm_0"),
    "DropoutBehindIf": ("Dropout_0", "Dense_0"),
    "SharedNorm": ("Dropout_0", "shared"),
    "Scanned": ("layers/Dropout_0", "layers/first"),
    "Rematted": ("CheckpointBody_1/Dropout_0", "CheckpointBody_0/second"),
    "HalfPrecision": ("Dropout_0", "BatchNorm_0"),
    "Jitted": ("JitBody_0/Dropout_0", "JitBody_0/first"),
    "OwnSignature": ("Dropout_0", "TrainNorm_0"),
}
QUICK = "ConstructorFlags", "DropoutBehindIf", "Scanned", "Jitted"  # The others run by -m slow.
breadth = pytest.mark.parametrize(
    ("model", "flag", "on"),
    [
        pytest.param(*case, marks=[pytest.mark.slow] * (type(case[0]).__name__ not in QUICK))
        for case in BREADTH
    ],
    ids=lambda v: type(v).__name__,
)
OPERATIONS = {
    "swap": lambda model: swap_noise(model, to=noise.Uout(0.3)),
    "without": without_noise,
    "move": lambda model: move(model, dict([MOVES[type(inspect.unwrap(model)).__name__]])),
    "all": lambda model: swap_noise(
        OPERATIONS["move"](with_rates(model, {"*": 0.1})), matched=noise.GaussianDropout
    ),
}


class Net(nn.Module):
    """Two noises directly before BNs, of which one sees the constant 2."""

    rates: tuple = (0.5, 0.2)
    make: type = nn.Dropout

    @nn.compact
    def __call__(self, x, train=False):
        x = self.make(self.rates[0], name="early")(x, deterministic=not train)
        x = nn.BatchNorm(name="first")(x, use_running_average=not train)
        x = self.make(self.rates[1], name="late")(0 * x + 2, deterministic=not train)
        return nn.BatchNorm(name="second")(x, use_running_average=not train)


class Same(nn.Module):
    def __call__(self, x):
        return x


class Sequence(nn.Module):
    """By name: a letter is a layer that does nothing, a word is a noise that is on."""

    names: str
    make: type

    @nn.compact
    def __call__(self, x):
        for name in self.names.split():
            noisy = len(name) > 1
            x = self.make(0.5, deterministic=False, name=name)(x) if noisy else Same(name=name)(x)
        return x


class Double(noise.Noise):
    """A "noise" without randomness, m = 2: where it stands can be computed exactly."""

    rate: float = 0.5
    broadcast_dims: tuple = ()
    deterministic: bool | None = None
    rng_collection: str = "dropout"
    amount = 0.5

    def apply_noise(self, inputs, rng, shape):
        return 2 * inputs


def _program(function, *args):
    """What is computed, without computing it."""
    return str(jax.make_jaxpr(function)(*args))


def _programs(model, flag, on):
    """The programs of a model: its init, its own training and test, and by mode."""
    key = jax.random.key(5)

    def init(x, key):
        return model.init({"params": key, "dropout": key}, x, **{flag: not on})

    def own(value, variables, x, key):
        flags = {flag: value, "rngs": {"dropout": key}, "mutable": ["batch_stats"]}
        return model.apply(variables, x, **flags)

    def switched(mode, variables, x, key):
        return modes.apply(model, variables, x, mode=mode, rngs={"dropout": key})

    args = jax.eval_shape(init, X, key), X, key
    runs = {"train": functools.partial(own, on), "test": functools.partial(own, not on)}
    runs |= {mode: functools.partial(switched, mode) for mode in (modes.TRAIN, modes.TEST, OFF)}
    return {"init": _program(init, X, key)} | {name: _program(run, *args) for name, run in runs.items()}


@breadth
def test_a_model_with_its_noise_off_stays_the_same_program(model, flag, on):
    wanted = _programs(model, flag, on)
    for operation, operate in OPERATIONS.items():
        found = _programs(operate(model), flag, on)
        for name in ("init", "test", modes.TEST, OFF):
            assert found[name] == wanted[name], (operation, name)
        # In training the modes switch the new noise as the model's flags do.
        assert found[modes.TRAIN] == found["train"] != wanted["train"], operation
        if operation == "without":
            assert found["train"] == wanted[OFF]


@breadth
def test_a_noise_swapped_for_its_equal_draws_the_same_masks(model, flag, on):
    swapped = swap_noise(model, matched=noise.Dropout)

    @jax.jit
    def run(variables, key):
        flags = {flag: on, "rngs": {"dropout": key}, "mutable": ["batch_stats"]}
        return [m.apply(variables, X, **flags) for m in (model, swapped)]

    draw = np.random.default_rng(0).standard_normal
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(1), X, **{flag: not on}))
    variables = jax.tree.map(lambda leaf: draw(leaf.shape, leaf.dtype), shapes)
    one, other = run(variables, RNGS["dropout"])
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_variables_and_test_mode_are_the_models_own_to_the_bit():
    model = ConstructorFlags()
    operated = swap_noise(move(model, {"Dropout_0": "Dense_0"}), to=noise.Uout(0.3))
    variables = model.init(jax.random.key(1), X)
    jax.tree.map(np.testing.assert_array_equal, operated.init(jax.random.key(1), X), variables)
    np.testing.assert_array_equal(operated.apply(variables, X), model.apply(variables, X))


def test_a_key_given_at_the_call_is_used():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, key):
            return Same(name="same")(nn.Dropout(0.5, deterministic=False)(x, rng=key))

    model, key = Model(), jax.random.key(9)
    for operated in (swap_noise(model, matched=noise.Dropout), move(model, {"Dropout_0": "same"})):
        found = operated.apply({}, FLAT, key)
        np.testing.assert_array_equal(found, model.apply({}, FLAT, key))


def _multipliers(model, keys=RNGS):
    """y / x of the noises of Net, by the BN whose input y is."""
    variables = Net().init(jax.random.key(0), FLAT)
    seen = {}
    for mode in (modes.TEST, modes.Mode(noise=True, batch_norm="running", update=False)):
        runs = seen[mode.noise] = {}
        modes.apply(
            model,
            variables,
            FLAT,
            mode=mode,
            rngs=keys,
            observe=lambda norm, x, runs=runs: runs.update({registry.name_of(norm): x}),
        )
    return {name: np.float64(seen[True][name] / seen[False][name]) for name in seen[True]}


def _check_moments(m, s2):
    """Mean 1 and variance s2, within five standard errors of the sample."""
    error = m.std() / m.size**0.5
    assert abs(m.mean() - 1) < 5 * error
    squares = (m - 1) ** 2
    assert abs(squares.mean() - s2) <= 5 * squares.std() / m.size**0.5


def test_a_swapped_noise_has_its_moments():
    swaps = [
        (swap_noise(Net(), to=noise.Uout(0.6)), 0.12, 0.12),
        (swap_noise(Net(), matched=noise.GaussianDropout), 1, 0.25),
        (swap_noise(with_rates(Net(), {"early": 0.1}), matched=noise.Uout), 0.1 / 0.9, 0.25),
    ]
    for model, early, late in swaps:
        m = _multipliers(model)
        _check_moments(m["first"], early)
        _check_moments(m["second"], late)
        assert len(np.unique(m["second"])) > 1000  # No Bernoulli mask.
        # Another mask in every layer.
        assert abs(np.corrcoef(m["first"].ravel(), m["second"].ravel())[0, 1]) < 0.05


@pytest.mark.parametrize("kind", [nn.Dropout, noise.Dropout, noise.GaussianDropout, noise.Uout])
def test_matched_noises_have_the_same_s2(kind):
    layers = [noise.Uout(0.7), noise.Dropout(0.1), nn.Dropout(0.2), noise.GaussianDropout(0.25)]
    wanted = [0.49 / 3, 1 / 9, 0.25, 1 / 3]
    seen = []

    class Spy(kind):
        def __call__(self, inputs, deterministic=None, rng=None):
            s2 = self.s2 if hasattr(self, "s2") else self.rate / (1 - self.rate)
            seen.append((s2, self.broadcast_dims, self.rng_collection))
            return inputs

    model = nn.Sequential([layer.clone(broadcast_dims=(1,), rng_collection="mask") for layer in layers])
    swap_noise(model, matched=Spy).apply({}, X)
    np.testing.assert_allclose([s2 for s2, *_ in seen], wanted, rtol=1e-12)
    assert {rest for _, *rest in seen for rest in [tuple(rest)]} == {((1,), "mask")}


@pytest.mark.parametrize("kind", [noise.SpatialDropout, noise.StochasticDepth, noise.DropBlock])
def test_noises_that_share_draws_are_matched_too(kind):
    """Beyond the given `broadcast_dims`, which these classes do not take."""
    model = nn.Sequential([nn.Dropout(0.2, broadcast_dims=(1,), deterministic=False)])
    y = swap_noise(model, matched=kind).apply({}, jnp.ones((4000, 2, 2, 3)), rngs=RNGS)
    np.testing.assert_array_equal(np.unique(y), np.float32([0, 1.25]))
    wanted = kind(0.2).apply({}, jnp.ones((4000, 2, 2, 3)), False, jax.random.key(0))
    across = [np.corrcoef(np.asarray(m).reshape(4000, -1).T) for m in (y, wanted)]
    np.testing.assert_allclose(*across, atol=0.12)  # Six standard errors of a correlation's difference.


def test_with_rates_is_the_model_built_with_those_rates():
    variables = Net().init(jax.random.key(0), FLAT)
    flags = {"train": True, "rngs": RNGS, "mutable": ["batch_stats"]}

    @jax.jit
    def run(rate):
        return with_rates(Net(), {"*": 0.9, "l*e": rate}).apply(variables, FLAT, **flags)

    for rates in ((0.9, 0.3), (0.9, 0.0)):
        wanted = Net(rates).apply(variables, FLAT, **flags)
        found = with_rates(Net(), {"*": 0.9, "l*e": rates[1]}).apply(variables, FLAT, **flags)
        jax.tree.map(np.testing.assert_array_equal, found, wanted)
        # A traced rate; one compiled program serves both.
        for a, b in zip(jax.tree.leaves(run(rates[1])), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    assert run._cache_size() == 1
    # What no pattern matches is left alone, and a beta is set as a rate is.
    found = with_rates(Net((0.4, 0.5), noise.Uout), {"early": 0.8}).apply(variables, FLAT, **flags)
    wanted = Net((0.8, 0.5), noise.Uout).apply(variables, FLAT, **flags)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_a_noise_with_a_traced_amount_is_operated_on():
    variables = Net().init(jax.random.key(0), FLAT)

    def run(rate):
        model = move(Net((0.2, rate), noise.Dropout), {"late": "first"})
        flags = {"train": True, "rngs": RNGS, "mutable": ["batch_stats"]}
        operated = (model, swap_noise(model, matched=noise.Uout), swap_noise(model, to=noise.Uout(rate)))
        return [m.apply(variables, FLAT, **flags) for m in operated]

    traced, known = jax.jit(run)(0.1), run(0.1)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), traced, known)


def test_without_noise_is_the_model_with_rate_0():
    variables = Net().init(jax.random.key(0), FLAT)
    flags = {"train": True, "mutable": ["batch_stats"]}
    found = without_noise(Net()).apply(variables, FLAT, **flags)
    jax.tree.map(np.testing.assert_array_equal, found, Net((0, 0)).apply(variables, FLAT, **flags))


def test_noise_that_is_no_layer_of_its_own_is_turned_off_and_not_swapped():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, deterministic=True):
            return RReLU()(nn.Dense(3)(x), deterministic=deterministic)

    variables = Model().init(jax.random.key(0), FLAT)
    quiet = without_noise(Model()).apply(variables, FLAT, deterministic=False)
    np.testing.assert_array_equal(quiet, Model().apply(variables, FLAT))
    with pytest.warns(UserWarning, match="'RReLU_0' has neither rate nor beta and is not swapped"):
        output = swap_noise(Model(), to=noise.Uout(0.5)).apply(variables, FLAT, False, rngs=RNGS)
    np.testing.assert_array_equal(output, Model().apply(variables, FLAT, False, rngs=RNGS))


class Placed(nn.Module):
    """A noise at one of four places."""

    place: str = "head"
    make: type = Double

    @nn.compact
    def __call__(self, x, train=False):
        def at(place, x):
            return self.make(0.5, name="drop")(x, deterministic=not train) if place == self.place else x

        x = nn.Dense(8, name="dense")(at("input", x))
        x = TrainNorm(name="bn")(at("dense", x), train)
        return nn.Dense(3, name="head")(at("bn", x))


@pytest.mark.parametrize(
    ("place", "target"), [("input", "bn"), ("bn", "dense"), ("dense", "dense"), ("bn", ".")]
)
def test_move_is_the_model_written_with_the_noise_there(place, target):
    variables = Placed().init(jax.random.key(0), FLAT)
    for train in (True, False):
        flags = {"train": train, "rngs": RNGS, "mutable": ["batch_stats"]}
        found = move(Placed(place), {"drop": target}).apply(variables, FLAT, **flags)
        output, updated = Placed(target).apply(variables, FLAT, **flags)
        wanted = (2 * output if target == "." and train else output), updated
        jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_a_moved_noise_has_its_moments_where_it_is_now():
    variables = Placed().init(jax.random.key(0), FLAT)
    model = move(Placed("bn", nn.Dropout), {"drop": "dense"})
    inputs = []
    for mode in (modes.TRAIN, modes.TEST):
        modes.apply(model, variables, FLAT, mode=mode, rngs=RNGS, observe=lambda _, x: inputs.append(x))
    # The abstract run that learns the flag is observed too, as any tracing is.
    noisy, clean = (np.float64(x) for x in inputs if not isinstance(x, jax.core.Tracer))
    _check_moments(noisy / clean, 1)


def test_a_moved_noise_draws_anew_at_every_call():
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, rate):
            return x, Same(name="same")(noise.Dropout(rate, deterministic=False, name="drop")(x))

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            layers = nn.scan(Layer, split_rngs={"dropout": True})
            same = Same(name="same")
            y = nn.Dropout(0.5, deterministic=False, name="drop")(x)
            return [*layers(name="layers")(x, jnp.full(3, 0.5))[1], same(y), same(y)]

    ones = jnp.ones((40, 50))
    model = move(Model(), {"layers/drop": "layers/same", "drop": "same"})
    masks = np.stack(model.apply({}, ones, rngs=RNGS)).reshape(5, -1) / 2
    assert abs(np.corrcoef(masks) - np.eye(5)).max() < 0.1
    np.testing.assert_allclose(masks.mean(1), 0.5, atol=0.06)


def test_surgeries_compose_from_the_inside_out():
    """Every surgery gets the model that the one before it made."""
    model = Net(make=noise.Uout)
    both = {"early": 0.5, "late": 0.2}

    def check(operated, early, late):
        m = _multipliers(operated)
        for name, s2 in (("first", early), ("second", late)):
            _check_moments(m[name], s2) if s2 else np.testing.assert_array_equal(m[name], 1)

    check(with_rates(swap_noise(model, to=noise.Dropout(0.9)), both), 1, 0.25)
    check(swap_noise(swap_noise(model, to=noise.Dropout(0.5)), to=noise.Uout(0.3)), 0.03, 0.03)
    check(without_noise(with_rates(model, both)), 0, 0)
    moved = move(model, {"early": "first"})
    check(with_rates(moved, both), 0, 0.04 / 3)
    check(move(swap_noise(moved, to=noise.Dropout(0.5)), {"early": "second", "late": "first"}), 0, 0)
    # Each looks ahead for its own noise.
    apart = move(move(Sequence("a b one two", Double), {"one": "a"}), {"two": "b"})
    np.testing.assert_array_equal(apart.apply({}, FLAT, rngs=RNGS), 4 * FLAT)
    # Moved on, it is not left at the first target.
    variables = Net().init(jax.random.key(0), FLAT)
    twice = move(move(Net(make=Double), {"early": "first"}), {"early": "second"})
    once = move(Net(make=Double), {"early": "second"})
    flags = {"train": True, "rngs": RNGS, "mutable": ["batch_stats"]}
    found, wanted = (m.apply(variables, FLAT, **flags) for m in (twice, once))
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_noise_that_is_frozen_on_purpose_stays_off():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            x = noise.Dropout(0.5, deterministic=True, name="frozen")(x)
            return nn.BatchNorm(name="bn")(x, use_running_average=not train)

    variables = Model().init(jax.random.key(0), FLAT)
    wanted, _ = modes.apply(Model(), variables, FLAT, mode=OFF)
    for operated in (
        swap_noise(Model(), to=noise.Uout(0.5)),
        move(Model(), {"frozen": "bn"}),
        move(swap_noise(Model(), to=nn.Dropout(0.2)), {"frozen": "bn"}),
        with_rates(Model(), {"frozen": 0.1}),
    ):
        output, _ = operated.apply(variables, FLAT, train=True, rngs=RNGS, mutable=["batch_stats"])
        np.testing.assert_array_equal(output, wanted)
        with pytest.warns(UserWarning, match="'frozen' was constructed with deterministic=True"):
            output, _ = modes.apply(operated, variables, FLAT, mode=modes.TRAIN, rngs=RNGS)
        np.testing.assert_array_equal(output, wanted)


def test_types_that_the_user_registers_are_operated_on(monkeypatch):
    class Own(nn.Module):
        rate: float

        @nn.compact
        def __call__(self, x, train):
            if not train:
                return x
            return x * (1 + self.rate * jax.random.normal(self.make_rng("own"), x.shape))

    class Loud(nn.Dropout):
        """A signature of its own, and something around its parent."""

        @nn.compact
        def __call__(self, x, train):
            return 3 * super().__call__(x, deterministic=not train)

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            x = Own(0.5, name="own")(x, train)
            return Loud(0.5, name="loud")(nn.BatchNorm(name="bn")(x, use_running_average=True), train)

    monkeypatch.setitem(registry.NOISES, Own, registry.Switch("train", test=False))
    variables = Model().init(jax.random.key(0), FLAT)
    rngs = {"own": jax.random.key(1), "dropout": jax.random.key(2)}

    def run(model, train=True):
        return model.apply(variables, FLAT, train=train, rngs=rngs)

    test = run(Model(), train=False)
    np.testing.assert_array_equal(run(without_noise(Model())), test)
    np.testing.assert_allclose(run(swap_noise(Model(), to=Double())), 4 * test, rtol=1e-6)
    quiet = with_rates(Model(), {"own": 0.0, "loud": 1.0})
    np.testing.assert_array_equal(run(quiet), 0 * test)
    m = np.float64(run(move(with_rates(Model(), {"loud": 0.0}), {"own": "bn"})) / test)
    _check_moments(m, 0.25)
    swapped = swap_noise(Model(), to=Own(0.1)).apply(variables, FLAT, rngs=rngs, train=True)
    _check_moments(np.float64(swapped / test), (1 + 0.01) ** 2 - 1)


class Block(nn.Module):
    train: bool

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(3, name="dense")(x)
        return nn.Dropout(0.5, deterministic=not self.train, name="drop")(x)


JITTED = nn.jit(Block)


def test_nn_jit_keeps_no_trace_of_surgery():
    """One nn.jit class, whose cache knows the module and not who called it."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return JITTED(train, name="body")(x)

    model = Model()
    variables = model.init(jax.random.key(1), FLAT)
    quiet = model.apply(variables, FLAT)
    before = model.apply(variables, FLAT, train=True, rngs=RNGS)
    operated = (with_rates(model, {"*": 0.1}), move(model, {"body/drop": "body/dense"}))
    different = [m.apply(variables, FLAT, train=True, rngs=RNGS) for m in operated] + [before, quiet]
    again = operated[1].apply(variables, FLAT, train=True, rngs=RNGS)
    np.testing.assert_array_equal(again, different[1])
    for i, one in enumerate(different):
        for other in different[:i]:
            assert np.abs(one - other).max() > 1e-2
    for operated in (without_noise(model), with_rates(model, {"*": 0.0})):
        np.testing.assert_array_equal(operated.apply(variables, FLAT, train=True, rngs=RNGS), quiet)
    np.testing.assert_array_equal(model.apply(variables, FLAT, train=True, rngs=RNGS), before)
    # Nor of what init traces, in which every collection is mutable.
    keys = RNGS | {"params": jax.random.key(1)}
    noisy, same = model.init_with_output(keys, FLAT, train=True)
    quiet, params = without_noise(model).init_with_output(keys, FLAT, train=True)
    assert np.abs(noisy - quiet).max() > 1e-2
    jax.tree.map(np.testing.assert_array_equal, params, same)


def test_an_operated_model_is_a_part_of_another():
    def same(model):
        return model

    class Whole(nn.Module):
        operate: Callable
        inner: nn.Module

        def setup(self):
            self.third = self.operate(Net())

        @nn.compact
        def __call__(self, x, train=False):
            x = self.operate(ConstructorFlags(name="own"))(x, train=train)
            return self.third(self.inner(self.inner(x, train=train), train=train), train=train)

    whole = Whole(same, Net())
    operated = Whole(without_noise, without_noise(Net()))
    renamed = with_rates(Whole(same, with_rates(Net(), {"early": 0.0})), {"*/late": 0.0, "own/*": 0, "t*": 0})
    variables = whole.init(jax.random.key(0), X)
    wanted = modes.apply(whole, variables, X, mode=OFF)
    for model in (operated, renamed):
        jax.tree.map(np.testing.assert_array_equal, model.init(jax.random.key(0), X), variables)
        output, updated = model.apply(variables, X, train=True, rngs=RNGS, mutable=["batch_stats"])
        check = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
        jax.tree.map(check, (output, updated["batch_stats"]), wanted)


def test_noise_that_only_training_reaches():
    model = DropoutBehindIf()
    variables = model.init(jax.random.key(0), X)
    for operated in (with_rates(model, {"Dropout_0": 0.1}), move(model, {"Dropout_0": "Dense_0"})):
        np.testing.assert_array_equal(operated.apply(variables, X), model.apply(variables, X))
    for operated in (with_rates(model, {"Dropuot_0": 0.1}), move(model, {"Dropuot_0": "Dense_0"})):
        for training in (False, True):
            with pytest.raises(DropbnError, match="Did you mean 'Dropout_0'"):
                operated.apply(variables, X, training, rngs=RNGS, mutable=["batch_stats"])

    class NeedsMore(nn.Module):
        @nn.compact
        def __call__(self, x, labels=0, train=False):
            if train:
                x = x + labels + jax.random.normal(self.make_rng("dropout"))
                x = noise.Dropout(0.5, rng_collection="mask", name="drop")(x, deterministic=False)
            return x

    # No keys are needed to know the names; where they cannot be known, that is no error.
    with pytest.raises(DropbnError, match="Did you mean 'drop'"):
        move(NeedsMore(), {"dorp": "."}).apply({}, X)
    move(NeedsMore(), {"dorp": "."}).apply({}, X, None)
    move(NeedsMore(), {"drop": "."}).apply({}, X)


def test_refusals():
    class Pair(nn.Module):
        def __call__(self, x):
            return x, x

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, rate):
            return noise.Dropout(rate, deterministic=False, name="drop")(Same(name="same")(x)), None

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dropout(0.6, deterministic=False, name="drop")(Pair(name="pair")(x)[0])
            layers = nn.scan(Layer, split_rngs={"dropout": True})
            return layers(name="layers")(x, jnp.array([0.1, 0.2]))[0]

    calls = {
        r"^swap_noise takes a noise, to=Uout\(0.1\), or a class": lambda: swap_noise(Model()),
        "got <class .*Dense": lambda: swap_noise(Model(), matched=nn.Dense),
        "AlphaDropout has no s2 to match": lambda: swap_noise(Model(), matched=noise.AlphaDropout),
        "'layers_0' is AlphaDropout, which has no s2 to match": lambda: run(
            swap_noise(nn.Sequential([noise.AlphaDropout(0.1, deterministic=False)]), matched=noise.Uout)
        ),
        "got .*RReLU": lambda: swap_noise(Model(), to=RReLU()),
        r"got <class .*Uout": lambda: swap_noise(Model(), to=noise.Uout),
        r"rate must lie in \[0, 1\], got 1.5": lambda: with_rates(Model(), {"*": 1.5}),
        r"'drop' has s2 = 1.5, which Uout does not reach. Uout: s2 must lie": lambda: run(
            swap_noise(Model(), matched=noise.Uout)
        ),
        "Unknown noise 'block.*Known: drop, ": lambda: run(with_rates(Model(), {"block*": 0.1})),
        "Unknown noise 'dorp'. Did you mean 'drop'": lambda: run(move(Model(), {"dorp": "pair"})),
        "Unknown noise 'pair'": lambda: run(move(Model(), {"pair": "pair"})),
        "Unknown layer 'pear'. Did you mean 'pair'": lambda: run(move(Model(), {"drop": "pear"})),
        "'drop' cannot be moved to 'pair', whose output is no array but a tuple": lambda: run(
            move(Model(), {"drop": "pair"})
        ),
        "'layers/drop' cannot be moved to '.': its amount or its key": lambda: run(
            move(Model(), {"layers/drop": "."})
        ),
        "'layers/drop' cannot be moved to 'layers/same': its amount or its key": lambda: run(
            move(Model(), {"layers/drop": "layers/same"})
        ),
    }

    def run(model):
        jax.eval_shape(lambda x: model.apply({}, x, rngs=RNGS), jnp.ones((2, 3)))

    for message, call in calls.items():
        with pytest.raises(DropbnError, match=message):
            call()


class Foreign(nn.Module):
    """A noise of somebody else, whose amount has another name, or is given at the call."""

    dropout_prob: float | None = None

    @nn.compact
    def __call__(self, x, train, p=None):
        keep = 1 - (self.dropout_prob if p is None else p)
        if not train:
            return x
        return x * jax.random.bernoulli(self.make_rng("dropout"), keep, x.shape) / keep


class ForeignNet(nn.Module):
    """Two foreign noises side by side, the second given its rate at the call."""

    rates: tuple

    @nn.compact
    def __call__(self, x, train=False):
        first = Foreign(self.rates[0], name="built")(x, train)
        return first, Foreign(name="called")(x, train, p=self.rates[1])


@pytest.mark.parametrize("amounts", [(0.25, 0.5), (0.0, 0.5), (0.25, 0.0)])
def test_a_foreign_noise_is_swapped_by_the_amount_it_has_wherever_it_has_it(monkeypatch, amounts):
    monkeypatch.setitem(registry.NOISES, Foreign, registry.Switch("train", test=False))
    ones = jnp.ones((20_000, 4))

    def variances(model):
        return [y.var() for y in model.apply({}, ones, train=True, rngs=RNGS)]

    s2 = [p / (1 - p) for p in amounts]
    # The mean of 80,000 squares of a two-valued factor: an error below 1 %.
    np.testing.assert_allclose(variances(ForeignNet(amounts)), s2, rtol=0.03)
    np.testing.assert_allclose(
        variances(swap_noise(ForeignNet(amounts), matched=noise.GaussianDropout)), s2, rtol=0.03
    )
    swapped = variances(swap_noise(ForeignNet(amounts), to=noise.Uout(0.6)))
    np.testing.assert_allclose(swapped, [0.12 * (p > 0) for p in amounts], rtol=0.03)
    # An amount of 0 is switched on again by its name alone.
    raised = with_rates(ForeignNet(amounts), {"built": 0.2, "called": 0.5})
    np.testing.assert_allclose(variances(raised), [0.25, 1], rtol=0.03)
    assert variances(without_noise(ForeignNet(amounts))) == [0, 0]


class Attended(nn.Module):
    """Attention, whose weights have a dropout."""

    rate: float = 0.5

    @nn.compact
    def __call__(self, x, train=False):
        attention = nn.MultiHeadDotProductAttention(2, dropout_rate=self.rate, name="attention")
        x = x + attention(x, deterministic=not train)
        return nn.BatchNorm(name="norm")(x, use_running_average=not train)


def test_a_layer_with_noise_within_is_switched_and_neither_swapped_nor_moved():
    x = X.reshape(12, 4, 8)
    variables = Attended().init(jax.random.key(1), x)

    def trained(model, train=True):
        return model.apply(variables, x, train=train, rngs=RNGS, mutable=["batch_stats"])[0]

    noisy, clean = trained(Attended()), trained(Attended(0.0))
    assert jnp.abs(noisy - clean).max() > 0.1
    for off in (without_noise(Attended()), with_rates(Attended(), {"*": 0.0})):
        np.testing.assert_array_equal(trained(off), clean)
    output, _ = modes.apply(Attended(), variables, x, mode=OFF, rngs=RNGS)
    np.testing.assert_array_equal(output, clean)
    with pytest.warns(UserWarning, match="'attention' has noise within it and is not swapped"):
        np.testing.assert_array_equal(trained(swap_noise(Attended(), to=noise.Uout(0.1))), noisy)
    with pytest.raises(DropbnError, match="'attention' does more than add noise, so it cannot be moved"):
        trained(move(Attended(), {"attention": "norm"}))


def test_swapping_leaves_a_noise_of_rate_0_off():
    model = Net(rates=(0.0, 0.2))
    variables = model.init(jax.random.key(0), FLAT)
    swapped = swap_noise(model, to=noise.Uout(0.6))
    _, stats = modes.apply(swapped, variables, FLAT, mode=modes.TRAIN, rngs=RNGS)
    # Momentum 0.99: a hundredth of the variance of the batch is in the running one.
    first, second = (100 * (stats[name]["var"] - 0.99) for name in ("first", "second"))
    np.testing.assert_allclose(first, FLAT.var(0), rtol=1e-3)
    np.testing.assert_allclose(second, 0.12 * 4, rtol=0.1)
