"""Order strings: the language, the executor, the named positions."""

import itertools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dropbn.errors import DropbnError
from dropbn.nn import order, places
from dropbn.nn.layers import Layers, Parts, Size
from dropbn.nn.noise import Dropout
from dropbn.nn.norm import BatchNorm
from dropbn.nn.order import Concat, Order, Parallel, Residual, parse

BASIC = "[bn relu conv bn relu conv | conv]"
BOTTLENECK = "[bn relu conv bn relu conv bn relu conv | conv]"


def _orders(items):
    return st.lists(items, min_size=1, max_size=4).map(lambda found: Order(tuple(found)))


_words = st.sampled_from(order.WORDS)
_items = st.recursive(
    _words,
    lambda items: st.one_of(
        st.builds(Residual, _orders(items), st.none() | _orders(items)),
        st.builds(Concat, _orders(items)),
        st.builds(Parallel, st.lists(_orders(items), min_size=2, max_size=3).map(tuple)),
    ),
    max_leaves=8,
)


@hypothesis.given(_orders(_items))
def test_parse_and_str_round_trip(plan):
    assert parse(str(plan)) == plan
    names = [name for name, _ in plan.named()]
    assert len(set(names)) == len(names)


@hypothesis.given(st.text(alphabet="[]{}| bnrelucov", max_size=20))
def test_any_text_parses_or_is_refused_in_our_words(text):
    try:
        assert parse(str(parse(text))) == parse(text)
    except DropbnError as error:
        assert "^" in str(error)


@pytest.mark.parametrize(
    ("text", "message", "caret"),
    [
        ("", "An empty order", 0),
        ("bn rulu conv", "Did you mean 'relu'?", 3),
        ("[bn relu conv", "ends before its '|' or ']'", 13),
        ("[bn | conv", "ends before its ']'", 10),
        ("{bn conv", "ends before its '|' or '}'", 8),
        ("{bn | conv", "ends before its '|' or '}'", 10),
        ("bn ] conv", "']' has no place", 3),
        ("bn | conv", "'|' has no place", 3),
        ("{bn | }", "An empty branch", 6),
        ("[bn | conv | conv]", "'|' has no place", 11),
        ("[bn } conv]", "'}' has no place", 4),
        ("bn [] conv", "An empty branch", 4),
        ("bn [ | conv]", "An empty branch", 5),
        ("[bn |]", "An empty shortcut", 5),
        ("bn {} conv", "An empty branch", 4),
        ("[bn, conv]", "Unknown word in an order: 'bn,'", 1),
    ],
)
def test_malformed_orders_point_at_the_place(text, message, caret):
    with pytest.raises(DropbnError) as error:
        parse(text)
    assert message in str(error.value)
    *_, shown, carets = str(error.value).split("\n")
    assert shown == "    " + text
    assert carets.index("^") == 4 + caret


def test_of_a_long_order_the_place_is_shown():
    text = "bn " * 5000 + "bnn " + "relu " * 5000
    with pytest.raises(DropbnError) as error:
        order.parse(text)
    message, shown, carets = str(error.value).split("\n")
    assert "Did you mean 'bn'" in message and len(shown) < 300
    assert shown[carets.index("^") : carets.rindex("^") + 1] == "bnn"
    for wrong in (5, None, b"conv", ["conv"]):
        with pytest.raises(DropbnError, match="An order is a text, such as 'bn relu conv', not"):
            order.parse(wrong)


def test_names_count_kinds_and_ignore_brackets():
    names = [name for name, _ in parse("bn [conv bn {conv drop} | conv bn] relu [bn conv | conv]").named()]
    assert " ".join(names) == (
        "bn1 conv1 bn2 conv2 drop1 shortcut_conv1 shortcut_bn1 relu1 bn3 conv3 shortcut_conv2"
    )


def test_a_shortcut_that_does_not_run_renames_nothing():
    seen = []

    def layer(name, word, x):
        seen.append(name)
        return jnp.ones((*x.shape[:-1], 5)) if name == "conv2" else x

    with pytest.raises(DropbnError, match="the branch gives"):
        order.run(parse("[conv | conv] [conv | conv]"), jnp.ones((1, 3)), layer)
    assert seen == ["conv1", "conv2", "shortcut_conv2"]


def _trace(text, place):
    """The words in the order in which the executor comes to them, `conv` of a shortcut left out."""
    words = []

    def layer(name, word, x):
        words.append(word)
        return x

    order.run(places.place(parse(text), place), jnp.ones((2, 3)), layer)
    return " ".join(words)


@pytest.mark.parametrize(
    ("place", "executed"),
    [
        # Kim et al. 2023, Fig. 2, bottom to top.
        ("P0", "drop bn relu conv bn relu conv"),
        ("P1", "drop bn relu conv bn relu conv"),
        ("P2", "bn drop relu conv bn relu conv"),
        ("P3", "bn relu drop conv bn relu conv"),
        ("P4", "bn relu conv drop bn relu conv"),
        ("P5", "bn relu conv bn drop relu conv"),
        ("P6", "bn relu conv bn relu drop conv"),
        ("P7", "bn relu conv bn relu conv drop"),
        # Li et al. 2018, section 4: right before the last BN; before the last convolution.
        ("a", "bn relu conv drop bn relu conv"),
        ("b", "bn relu conv bn relu drop conv"),
        # Kim et al., supplement G; Chen et al. 2019: ReLU, then the IC layer (BN, dropout), then the weights.
        ("P6+P7", "bn relu conv bn relu drop conv drop"),
        ("P2+a", "bn drop relu conv drop bn relu conv"),
        ("ic", "relu bn drop conv relu bn drop conv"),
    ],
)
def test_places_in_a_basic_block(place, executed):
    assert _trace(BASIC, place) == executed


@pytest.mark.parametrize(
    ("place", "executed"),
    [
        ("a", "bn relu conv bn relu conv drop bn relu conv"),
        ("b", "bn relu conv bn relu conv bn relu drop conv"),
        ("P5", "bn relu conv bn relu conv bn drop relu conv"),
    ],
)
def test_places_in_a_bottleneck(place, executed):
    assert _trace(BOTTLENECK, place) == executed


@pytest.mark.parametrize(
    ("place", "executed"),
    [
        ("last", "bn relu gap drop dense"),
        ("H3", "bn drop relu gap dense"),
        ("H4", "bn relu drop gap dense"),
        ("H5", "bn relu gap drop dense"),
        ("H6", "bn relu gap dense drop"),
        ("G2", "bn relu drop gap dense"),
    ],
)
def test_places_in_a_head(place, executed):
    assert _trace("bn relu gap dense", place) == executed


def test_places_around_a_head_with_a_convolution():
    assert _trace("conv bn relu gap dense", "H1") == "drop conv bn relu gap dense"
    assert _trace("conv bn relu gap dense", "H2") == "conv drop bn relu gap dense"


@pytest.mark.parametrize(
    ("place", "block", "head"),
    [
        ("before", "conv bn relu", "flatten dense bn relu drop dense bn relu drop dense"),
        ("after", "conv relu bn", "flatten dense relu bn drop dense relu bn drop dense"),
    ],
)
def test_places_of_bn(place, block, head):
    assert _trace("conv relu", place) == block
    assert _trace("flatten dense relu drop dense relu drop dense", place) == head


def test_places_look_at_their_own_level():
    assert str(places.place(parse("[bn relu conv] bn relu gap dense"), "last")) == (
        "[bn relu conv] bn relu gap drop dense"
    )
    assert str(places.place(parse("[bn conv [bn conv] bn conv]"), "a")) == "[bn conv [bn conv] drop bn conv]"


def test_p0_is_on_the_trunk_and_p1_in_the_branch():
    assert str(places.place(parse(BASIC), "P0")) == f"drop {BASIC}"
    assert str(places.place(parse(BASIC), "P1")) == "[drop bn relu conv bn relu conv | conv]"


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        (BASIC, "P9", "Unknown place 'P9'"),
        ("[bn drop conv]", "a", "already holds drop"),
        ("[conv bn relu conv bn | conv bn] relu", "P4", "begins with bn"),
        ("bn relu gap dense", "H1", "has none"),
        (f"{BASIC} {BASIC}", "a", "one bracket"),
        ("[bn relu] gap", "H6", "has none"),
        ("[conv bn relu conv bn | conv bn] relu", "P0", "begins with bn"),
        ("{conv bn | conv bn}", "a", "one bracket"),
        ("[bn relu conv relu conv]", "ic", "a bn for every weight layer"),
        ("conv bn relu", "after", "already holds bn"),
    ],
)
def test_places_that_do_not_exist_are_refused(text, place, message):
    with pytest.raises(DropbnError, match=message):
        places.place(parse(text), place)


PARTS = Parts(norm=BatchNorm, noise=lambda name: Dropout(0.5, name=name))
SIZES = (Size(6, 3, 2), Size(6, 3), Size(6, 1, 2))


def _init(block, sizes=SIZES, parts=PARTS):
    return jax.eval_shape(Layers(block, sizes, parts).init, jax.random.key(0), jnp.ones((2, 8, 8, 3)))


def test_moving_drop_renames_no_parameter():
    plain = parse(BASIC)
    wanted = _init(plain)
    assert set(wanted["params"]) == {"conv1", "conv2", "bn1", "bn2", "shortcut_conv1"}
    blocks = [places.place(plain, place) for place in places.BRANCH_PLACES]
    branch = plain.items[0].branch.items
    blocks += [
        Order((Residual(Order((*branch[:i], "drop", *branch[i:])), plain.items[0].shortcut),))
        for i in range(len(branch) + 1)
    ]
    for block in blocks:
        assert _init(block) == wanted, str(block)


def test_p5_is_p6_for_the_same_mask():
    x = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
    p5, p6, p4 = (Layers(places.place(parse(BASIC), p), SIZES, PARTS) for p in ("P5", "P6", "P4"))
    variables = p5.init(jax.random.key(1), x)

    def run(block):
        return block.apply(
            variables, x, deterministic=False, rngs={"dropout": jax.random.key(2)}, mutable=["batch_stats"]
        )[0]

    np.testing.assert_allclose(run(p5), run(p6), rtol=1e-5, atol=1e-5)
    assert np.abs(run(p5) - run(p4)).max() > 0.1


def test_layers_compute_what_the_string_says():
    """Each word against NumPy on a hand-made input."""
    x = jnp.arange(2 * 4 * 4 * 1, dtype=jnp.float32).reshape(2, 4, 4, 1) - 10

    def run(text, *sizes):
        layers = Layers(parse(text), sizes, PARTS._replace(activation="tanh"))
        return layers.init_with_output(jax.random.key(0), x)[0]

    windows = np.asarray(x).reshape(2, 2, 2, 2, 2, 1)
    np.testing.assert_array_equal(run("maxpool", Size(kernel=2, stride=2)), windows.max((2, 4)))
    np.testing.assert_array_equal(run("avgpool", Size(kernel=2, stride=2)), windows.mean((2, 4)))
    np.testing.assert_array_equal(run("gap"), x.mean((1, 2)))
    np.testing.assert_array_equal(run("flatten"), x.reshape(2, 16))
    np.testing.assert_allclose(run("act"), np.tanh(x), rtol=1e-6)
    np.testing.assert_array_equal(run("[relu]"), x + np.maximum(x, 0))
    np.testing.assert_array_equal(run("{relu}"), np.concatenate([x, np.maximum(x, 0)], -1))
    np.testing.assert_allclose(
        run("{relu | tanh}"), np.concatenate([np.maximum(x, 0), np.tanh(x)], -1), rtol=1e-6
    )


def test_pooling_up_to_the_border_as_caffe():
    """3x3 windows at 0, 2, 4: the last one hangs over the border of 6 pixels, and fits 5."""
    x = np.asarray(jax.random.normal(jax.random.key(0), (1, 6, 6, 1)))
    layers = Layers(parse("maxpool"), (Size(kernel=3, stride=2, padding="ceil"),), PARTS)
    for side, number in ((6, 3), (5, 2)):
        image = x[:, :side, :side]
        wanted = [
            [image[0, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max() for j in range(number)]
            for i in range(number)
        ]
        np.testing.assert_array_equal(layers.apply({}, image)[0, ..., 0], wanted)


def test_local_response_normalization_is_krizhevskys():
    x = 30 * np.asarray(jax.random.normal(jax.random.key(0), (2, 3, 3, 7)))
    y = Layers(parse("lrn"), (), PARTS).apply({}, x)
    for c in range(7):
        energy = (x[..., max(0, c - 2) : c + 3] ** 2).sum(-1)
        np.testing.assert_allclose(y[..., c], x[..., c] / (1 + 1e-4 / 5 * energy) ** 0.75, rtol=1e-5)


def test_squeeze_and_excitation_is_hus():
    x = np.asarray(jax.random.normal(jax.random.key(0), (2, 3, 3, 4)))
    layers = Layers(parse("se"), (Size(2, activation="silu"),), PARTS)
    variables = layers.init(jax.random.key(1), x)
    key = iter(jax.random.split(jax.random.key(2), 9))
    variables = jax.tree.map(lambda leaf: jax.random.normal(next(key), leaf.shape), variables)
    squeeze, excite = (
        {k: np.asarray(v) for k, v in variables["params"]["se1"][name].items()}
        for name in ("squeeze", "excite")
    )
    hidden = x.mean((1, 2)) @ squeeze["kernel"] + squeeze["bias"]
    gate = 1 / (1 + np.exp(-((hidden / (1 + np.exp(-hidden))) @ excite["kernel"] + excite["bias"])))
    np.testing.assert_allclose(layers.apply(variables, x), x * gate[:, None, None], rtol=1e-5, atol=1e-6)


def test_strided_convolution_pads_both_sides():
    """PyTorch's padding, k // 2 on each side, not XLA's "SAME", which is one-sided at stride 2."""
    x = jax.random.normal(jax.random.key(0), (1, 6, 6, 2))
    layers = Layers(parse("conv"), (Size(3, 3, 2),), PARTS)
    y, variables = layers.init_with_output(jax.random.key(1), x)
    kernel = np.asarray(variables["params"]["conv1"]["kernel"])
    padded = np.pad(np.asarray(x), ((0, 0), (1, 1), (1, 1), (0, 0)))
    for i, j in itertools.product(range(3), range(3)):
        patch = padded[0, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
        np.testing.assert_allclose(y[0, i, j], np.einsum("hwc,hwcf->f", patch, kernel), rtol=1e-4, atol=1e-5)


def test_initial_weights_have_the_stated_spread():
    layers = Layers(parse("conv gap dense"), (Size(256, 3), Size(512, bias=True)), PARTS)
    params = layers.init(jax.random.key(0), jnp.ones((1, 4, 4, 64)))["params"]
    # Fan-out He: variance 2 / (9 * 256); 5 standard errors of a variance over n values are 5 sqrt(2 / n).
    kernel = params["conv1"]["kernel"]
    assert float(kernel.var()) == pytest.approx(2 / (9 * 256), rel=5 * (2 / kernel.size) ** 0.5)
    for weights in params["dense1"].values():
        assert float(jnp.abs(weights).max()) == pytest.approx(1 / 16, rel=0.02)


def test_refusals_of_the_executor():
    with pytest.raises(DropbnError, match=r"has 3 sized layers .*gives 2 sizes"):
        _init(parse(BASIC), SIZES[:2])
    with pytest.raises(DropbnError, match="it needs"):
        _init(parse("[bn relu conv]"), (Size(6),))
    with pytest.raises(DropbnError, match="Unknown activation ''"):
        _init(parse("act"), ())


@pytest.mark.parametrize(
    ("text", "hoisted"),
    [
        (BASIC, "bn relu [conv bn relu conv | conv]"),
        ("drop [bn relu conv]", "drop bn relu [conv]"),
        ("[conv bn | conv] relu", "[conv bn | conv] relu"),
        ("bn relu conv", "bn relu conv"),
    ],
)
def test_hoisting_shares_the_pre_activation(text, hoisted):
    assert str(order.hoist(parse(text))) == hoisted


def test_unbracketing_drops_the_skip():
    assert str(order.unbracket(parse("relu [conv bn {relu} | conv] relu"))) == "relu conv bn {relu} relu"
