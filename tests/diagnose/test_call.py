"""How a model is called: what a batch gives it, and the sentence that every wrong argument gets."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from public_style_models import Constructed, Critic, Phase, Plain, PolicyAndValue, StringMode

from dropbn.diagnose import gap, lint, modes, shift, surgery, uncertainty
from dropbn.diagnose.call import Call, num_examples
from dropbn.diagnose.flags import flags_of
from dropbn.diagnose.linen import Model
from dropbn.errors import DropbnError

X = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
PLAIN = Plain().init(jax.random.key(0), X)
FIELDS = "inputs, args, kwargs, method, rngs, outputs, train_kwargs, test_kwargs"


def _refused(sentence):
    return pytest.raises(DropbnError, match=re.escape(sentence))


WRONG = {
    "Plain takes no argument 'trian'. It takes (x, train); the tool itself takes " + FIELDS: {"trian": True},
    "Plain takes no argument 'phase'.": {"train_kwargs": {"phase": 1}},
    "train=True says training, and test mode is run here: leave it out": {"train": True},
    "args=[1]: give a tuple of positional arguments, such as (x,).": {"args": [1]},
    "kwargs=('train',): give a dict.": {"kwargs": ("train",)},
    "rngs=7: give a dict.": {"rngs": 7},
    "test_kwargs=False: give a dict.": {"test_kwargs": False},
    "The model's argument 'train' is given twice": {"train": False, "kwargs": {"train": False}},
    "Plain has no method 'encode'.": {"method": "encode"},
    "Plain(x, train) cannot be traced with these inputs: too many positional arguments.": {"args": (1, 2, 3)},
    "inputs='image' is no part of a batch: an array of shape (6, 5).": {"inputs": "image"},
}


@pytest.mark.parametrize("sentence", WRONG, ids=lambda sentence: sentence[:40])
def test_a_wrong_argument_gets_a_sentence(sentence):
    for tool in (shift.measure, uncertainty.sample):
        wrong = WRONG[sentence]
        if tool is uncertainty.sample and wrong == {"train": True}:
            wrong, sentence = {"train": False}, "train=False says test mode, and training is run here"
        with _refused(sentence):
            tool(Plain(), PLAIN, [X], **wrong)


def test_parts_of_a_batch_that_it_has_not():
    for batch, inputs, is_a in (
        ({"x": X}, "image", "a dict with the keys ['x']"),
        ((X, X), 2, "a tuple of 2"),
        ((X, X), "x", "a tuple of 2"),
        (X, 0, "an array of shape (6, 5)"),
    ):
        with _refused(f"inputs={inputs!r} is no part of a batch: {is_a}."):
            shift.measure(Plain(), PLAIN, [batch], inputs=inputs)
        with _refused(f"labels={inputs!r} is no part of a batch: {is_a}."):
            uncertainty.sample(Plain(), PLAIN, [batch], inputs=lambda batch: X, labels=inputs)


def test_arguments_that_are_missing():
    critic = "Critic(observation, action, train) cannot be traced with these inputs: "
    with _refused(critic + "missing a required argument: 'action'. Say by inputs=, args= or kwargs= what"):
        shift.measure(Critic(), {}, [X])
    with _refused(critic):
        lint.check(Critic(), X)
    with _refused(critic):
        modes.apply(Critic(), {}, X, mode=modes.TEST)


def test_parts_of_the_output_that_it_has_not():
    variables = PolicyAndValue().init(jax.random.key(0), X)
    whole = "The model returns a tuple of 2, not an array: say by outputs= which part is its output"
    labels = np.arange(len(X)) % 2  # Either array fits them.
    with _refused(whole):
        gap.explain(PolicyAndValue(), variables, [(X, labels)], [(X, labels)])
    for outputs, sentence in (
        (None, whole),
        (2, "outputs=2 is no part of what the model returns: a tuple of 2."),
        ("logits", "outputs='logits' is no part of what the model returns: a tuple of 2."),
        (lambda returned: returned.logits, "is no part of what the model returns: a tuple of 2."),
    ):
        with _refused(sentence):
            uncertainty.sample(PolicyAndValue(), variables, [X], outputs=outputs)
    # An index would pick an example, and the others would vanish in silence.
    with _refused("outputs=0 is no part of what the model returns: an array of shape (6, 3)."):
        uncertainty.sample(Plain(), PLAIN, [X], outputs=0, task="classify")
    found = uncertainty.sample(Plain(), PLAIN, [X], outputs=lambda logits: logits[:, :2], num_samples=1)
    assert found.mean.shape == (6, 2)


def test_models_that_are_none():
    refusal = "A builtin_function_or_method is neither a Linen or NNX module nor a pair of Linen modules"
    for tool in (shift.measure, shift.predict, uncertainty.sample):
        with _refused(f"{refusal} (for training, for test)."):
            tool(len, {}, [X])
    with _refused(refusal):
        lint.check(len, X)
    with _refused(refusal):
        surgery.move_to_last_bn(len, X)
    with _refused("A builtin_function_or_method is no module."):
        surgery.without_noise(len)
    with _refused("A tuple is neither a Linen or NNX module nor a pair"):
        shift.measure((Plain(), Plain(), Plain()), PLAIN, [X])


def test_modes_that_are_none():
    with _refused("Unknown batch_norm 'bach'"):
        modes.Mode(True, "bach", False)
    with _refused("Mode: noise is True or False, got 'off'."):
        modes.Mode("off", "batch", False)
    with _refused("Mode: update is True or False, got None."):
        modes.Mode(True, "batch", None)
    with _refused("mode='train' is no Mode: give modes.TRAIN, modes.TEST or modes.Mode(noise, batch_norm"):
        modes.apply(Plain(), PLAIN, X, mode="train")


class Unknown(nn.Module):
    """Drops and normalizes by flags of unknown names."""

    def dropped(self, x, is_on):
        x = nn.Dropout(0.5)(x, deterministic=not is_on)
        return nn.BatchNorm(use_running_average=not is_on, momentum=0.5)(x)


class Required(Unknown):
    @nn.compact
    def __call__(self, x, phase):
        return self.dropped(x, phase)


class Evaluates(Unknown):
    @nn.compact
    def __call__(self, x, returns_both=False, is_eval_mode=True):
        y = self.dropped(x, not is_eval_mode)
        return (y, x) if returns_both else y


class Halve(nn.Module):
    @nn.compact
    def __call__(self, x):
        return 2 * x * jax.random.bernoulli(self.make_rng("dropout"), 0.5, x.shape)


class ByHand(Unknown):
    @nn.compact
    def __call__(self, x, *, use_noise: "bool | None" = None):
        x = Halve()(x) if use_noise else x
        return nn.BatchNorm(use_running_average=not use_noise, momentum=0.5)(x)


@pytest.mark.parametrize(
    ("kind", "flag", "training"),
    [
        pytest.param(Required, "phase", True, marks=pytest.mark.slow),
        pytest.param(Evaluates, "is_eval_mode", False, marks=pytest.mark.slow),
        (ByHand, "use_noise", True),
    ],
)
def test_a_flag_of_an_unknown_name_is_found_by_what_it_does(kind, flag, training):
    model, x = kind(), np.float32(1 + np.random.default_rng(0).normal(size=(64, 3)))
    variables = {"params": {"BatchNorm_0": {"scale": jnp.ones(3), "bias": jnp.zeros(3)}}}
    variables["batch_stats"] = {"BatchNorm_0": {"mean": jnp.ones(3), "var": jnp.full(3, 2.0)}}
    with pytest.warns(UserWarning, match=f"^{flag}={training} is taken to say training"):
        (found,) = lint.check(model, x).rows
    assert (found["code"], found["ratio"]) == ("DBN101", pytest.approx(0.5))
    (row,) = shift.measure(model, variables, [x]).rows
    assert row["ratio"] == pytest.approx(np.float64(x).var(0).mean() / 2, rel=1e-6)
    keys = {"dropout": jax.random.key(3)}
    (row,) = shift.predict(model, variables, [x], rngs=keys).rows
    folded = {"rngs": {"dropout": jax.random.fold_in(keys["dropout"], 0)}, "mutable": ["batch_stats"]}
    _, moved = model.apply(variables, x, **{flag: training}, **folded)
    var = 2 * np.float64(moved["batch_stats"]["BatchNorm_0"]["var"]) - 2
    assert row["moving_var"] == pytest.approx(var.mean(), rel=1e-5)
    y, _ = surgery.without_noise(model).apply(variables, x, **{flag: training}, **folded)
    np.testing.assert_allclose(y, (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5), atol=1e-5)


def test_several_flags_of_unknown_names_are_asked_for():
    class Two(nn.Module):
        @nn.compact
        def __call__(self, x, update=True, running=False, frozen: bool | None = None):
            frozen = running or not update if frozen is None else frozen
            return nn.BatchNorm(use_running_average=frozen)(x)

    class One(Two):
        @nn.compact
        def __call__(self, x, update=True, frozen: bool | None = None):
            return nn.BatchNorm(use_running_average=not update if frozen is None else frozen)(x)

    with pytest.warns(UserWarning, match="update=True is taken to say training"):
        assert lint.check(One(), X).rows == []
    asked = "update and running change noise or batch normalization: give train_kwargs={'update': True}, "
    with _refused(asked + "test_kwargs={'update': False}; or train_kwargs={'running': False}, test_kwargs="):
        lint.check(Two(), X)


def test_an_argument_that_changes_the_variables_is_no_flag():
    class Heads(nn.Module):
        @nn.compact
        def __call__(self, x, with_head=False):
            x = nn.BatchNorm(use_running_average=True)(x)
            return nn.Dropout(0.5, deterministic=False)(nn.Dense(3)(x)) if with_head else x

    assert [row["code"] for row in lint.check(Heads(), X, train_kwargs={}, test_kwargs={}).rows] == ["DBN304"]
    with _refused("Which argument of Heads(x, with_head) says training? No name is known."):
        lint.check(Heads(), X)


def test_a_model_that_says_nothing_of_its_modes():
    variables = Phase().init(jax.random.key(0), X)
    sentence = "Which argument of Phase(x, phase) says training? No name is known. Give it by train_kwargs="
    batches = [(X, np.arange(len(X)) % 3)]
    for ask in (
        lambda: lint.check(Phase(), X),
        lambda: shift.predict(Phase(), variables, [X]),
        lambda: uncertainty.sample(Phase(), variables, [X]),
        lambda: gap.explain(Phase(), variables, batches, batches),
    ):
        with _refused(sentence):
            ask()
    assert lint.check(Phase(), X, train_kwargs={"phase": 1}).errors()


def test_flags_are_known_by_name():
    class Net(nn.Module):
        def __call__(self, x, training=None, mode="predict"):
            return x

        def pad(self, x, *, mode="reflect", eval=False):
            return x

    def of(**call):
        return flags_of(Model.of(Net(), call).parameters)

    assert of() == {"training": (True, False), "mode": ("train", "predict")}
    assert of(method="pad") == of(method=Net.pad) == {"eval": (False, True)}
    assert flags_of(Model.of(StringMode()).parameters) == {"mode": ("train", "eval")}
    # A model that takes no flag has them among its fields.
    model = Model.of(Constructed(training=False))
    assert (model.train.training, model.test.training) == (True, False)


def test_what_a_batch_gives_the_model():
    def given(inputs, function, **call):
        model = Model.of(nn.Dense(1), {"method": function, **call})
        return model.arguments(inputs)

    a, b = X[:, :2], X[:, 2:]

    def one(self, x, train):
        return x

    def two(self, left, train, right):
        return left

    def many(self, *inputs):
        return inputs[0]

    assert given((a, b), one) == (((a, b),), {})
    args, kwargs = given((a, b), two)
    assert args == () and kwargs["left"] is a and kwargs["right"] is b
    assert given((a, b), many) == ((a, b), {})
    batch = {"left": a, "right": b}
    assert given(batch, two) == ((), batch)
    assert given(batch, one) == ((batch,), {})
    assert given({"left": a}, one) == (({"left": a},), {})
    assert given(a, two, kwargs={"right": b}) == ((a,), {})


def test_an_input_that_the_model_may_do_without():
    def given(inputs, **call):
        def padded(self, x, train=False, padding=None, scale=1.0, *, lengths=None):
            return x

        return Model.of(nn.Dense(1), {"method": padded, **call}).arguments(inputs)

    a, b = X[:, :2], X[:, 2:]
    for batch in ((a, b), {"x": a, "padding": b}):
        args, kwargs = given(batch)
        assert args == () and kwargs["x"] is a and kwargs["padding"] is b and len(kwargs) == 2
    assert given({"x": a, "lengths": b}) == ((), {"x": a, "lengths": b})
    # Neither of these is more than one input: a number is an option, and its argument is given already.
    assert given((a, b, b)) == (((a, b, b),), {})
    assert given((a, b), padding=b) == (((a, b),), {})
    assert given((a,)) == (((a,),), {}) and given({"padding": b}) == (({"padding": b},), {})


def test_every_tool_gives_an_input_that_the_model_may_do_without():
    class Weighted(nn.Module):
        @nn.compact
        def __call__(self, x, weights=None, train=False):
            x = nn.Dense(4)(x) if weights is None else nn.Dense(4)(x) * weights[:, None]
            return nn.BatchNorm()(x, use_running_average=not train)

    weights = np.arange(6, dtype=np.float32)
    variables = Weighted().init(jax.random.key(0), X)
    values = X @ np.float64(variables["params"]["Dense_0"]["kernel"]) * weights[:, None]
    for batch in (((X, weights), None), {"x": X, "weights": weights}):
        inputs = (lambda batch: batch) if isinstance(batch, dict) else None
        row = shift.predict(Weighted(), variables, [batch], inputs=inputs).rows[0]
        assert row["real_var"] == pytest.approx(values.var(0).mean(), rel=1e-6)


def test_examples_are_counted_by_the_leading_axis():
    assert num_examples(X) == num_examples({"scale": 2.0, "x": X}) == num_examples((X, X[:3])) == 6
    tokens = np.zeros((40, 7), int)
    assert num_examples({"tokens": tokens, "mask": tokens > 0}) == 40
    assert num_examples(3.0) == 1


def test_the_names_of_the_tools_stay_free_for_the_model():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, mode, inputs, rngs=1, train=False):
            return nn.Dense(3)(nn.Dropout(0.5)(x * inputs * rngs, deterministic=not train))

    kwargs = {"mode": "valid", "inputs": 2.0, "rngs": 3}
    variables = Net().init(jax.random.key(0), X, *kwargs.values())
    output, _ = modes.apply(Net(), variables, X, mode=modes.TEST, kwargs=kwargs)
    np.testing.assert_allclose(output, Net().apply(variables, X, *kwargs.values()), rtol=1e-6)
    keys = {"dropout": jax.random.key(2)}
    output, _ = modes.apply(Net(), variables, X, mode=modes.TRAIN, kwargs=kwargs, rngs=keys)
    wanted = Net().apply(variables, X, *kwargs.values(), train=True, rngs=keys)
    np.testing.assert_allclose(output, wanted, rtol=1e-6)
    assert "1 noise" in lint.check(Net(), X, kwargs=kwargs).title


def test_a_call_is_compiled_once_for_equal_arguments():
    one, other = (Model.of(Plain(), {"kwargs": {"train": True}, "rngs": {}}) for _ in range(2))
    assert one == other and hash(one) == hash(other)
    assert one != Model.of(Plain(), {"train": False, "rngs": {}})
    assert one != Model.of(Plain(), {"train": True, "rngs": {"dropout": jax.random.key(0)}})
    assert Call.of({"train": True, "args": (1,)}) == Call(args=(1,), kwargs={"train": True})
    model = Model.of(Plain())
    assert model.output_shape(model.layers(PLAIN, X)).shape == (6, 3)
