"""Published parameter counts, and what `models.create` refuses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console
from ml_collections import ConfigDict

from configs import base
from dropbn import models
from dropbn.errors import DropbnError
from dropbn.models import inverted, preresnet
from dropbn.nn import places


def _model(depth=8, width=4, classes=10, **fields):
    config = base.get_config().model
    config.update(ConfigDict({"depth": depth, "width": width, "num_classes": classes, **fields}))
    return config


def _basic_blocks(depth, v1):
    """Parameters of a basic-block ResNet of width 16 on 10 classes, counted layer by layer."""
    total, channels = 3 * 16 * 9 + 2 * 16 * v1, 16
    for out in (16, 32, 64):
        for _ in range((depth - 2) // 6):
            norms = 2 * out + 2 * out if v1 else 2 * channels + 2 * out
            total += channels * out * 9 + out * out * 9 + norms
            if channels != out:
                total += channels * out + 2 * out * v1
            channels = out
    return total + 2 * 64 * (not v1) + 64 * 10 + 10


def _densenet_40():
    total, channels = 16 * 27, 16
    for stage in range(3):
        for _ in range(12):
            total += 2 * channels + 9 * channels * 12
            channels += 12
        total += 2 * channels + (channels**2 if stage < 2 else channels * 10 + 10)
    return total


def _caffenet(width):
    """Kernels and biases of conv1 to conv5 and fc6 to fc8; a 3x3 pool5."""
    convs = 96 * (121 * 3 + 1) + 256 * (25 * 48 + 1) + 384 * (9 * 256 + 1) + (384 + 256) * (9 * 192 + 1)
    return convs + (9 * 256 + 1) * width + (width + 1) * width + (width + 1) * 1000


# family, depth, width, fields, classes -> parameters, BN layers.
COUNTS = [
    # Li et al. 2018, Table 2: 1.70, 36.48/36.54, 34.43/34.52, 0.77/0.80 M on 10/100 classes (the 1.77 M it
    # prints for PreResNet on 100 does not follow from that network). BN layers: the curves of its Fig. 4.
    ("preresnet", 164, 16, {"block": preresnet.BOTTLENECK}, 10, 1_703_258, 163),
    ("preresnet", 164, 16, {"block": preresnet.BOTTLENECK}, 100, 1_726_388, 163),
    ("wrn", 28, 160, {}, 10, 36_479_194, 25),
    ("wrn", 28, 160, {}, 100, 36_536_884, 25),
    ("resnext", 29, 64, {"cardinality": 8}, 10, 34_426_698, 31),
    ("resnext", 29, 64, {"cardinality": 8}, 100, 34_518_948, 31),
    ("densenet", 100, 12, {}, 10, 769_162, 99),
    ("densenet", 100, 12, {}, 100, 800_032, 99),
    # Huang et al. 2017, Table 2: DenseNet (k = 12) of depth 40 has 1.0 M. The sum over its layers.
    ("densenet", 40, 12, {"block": "{bn relu conv}"}, 10, _densenet_40(), 39),
    # Kim et al. 2023: basic blocks, counted by hand above.
    ("preresnet", 110, 16, {}, 10, _basic_blocks(110, v1=False), 109),
    ("preresnet", 50, 16, {}, 10, _basic_blocks(50, v1=False), 49),
    ("resnet", 110, 16, {}, 10, _basic_blocks(110, v1=True), 111),
    ("resnet", 50, 16, {}, 10, _basic_blocks(50, v1=True), 51),
    # The known size of VGG-16 with BN and one dense layer.
    ("vgg", 16, 64, {}, 10, 14_728_266, 13),
    # 3072 * 1024 + 1024, 1024 * 1024 + 1024, two BNs, 1024 * 10 + 10.
    ("mlp", 2, 1024, {}, 10, 3_146_752 + 1_049_600 + 4_096 + 10_250, 2),
    # 5x5 convolutions 3 -> 6 -> 12 with bias, 32x32 pooled twice, 768 -> 48 -> 10.
    ("lenet", 2, 6, {}, 10, 456 + 1_812 + 36_912 + 490, 0),
    # torchvision 0.29, timm 1.0.31; PreResNet-200 is pytorchcv's 64,666,280 without the BN of its stem.
    ("preresnet_imagenet", 50, 64, {}, 1000, 25_549_352, 49),
    ("preresnet_imagenet", 101, 64, {}, 1000, 44_541_480, 100),
    ("preresnet_imagenet", 200, 64, {}, 1000, 64_666_280 - 2 * 64, 199),
    ("resnet_imagenet", 50, 64, {}, 1000, 25_557_032, 53),
    ("resnext_imagenet", 101, 4, {"cardinality": 64}, 1000, 83_455_272, 104),
    ("senet", 152, 4, {"cardinality": 64}, 1000, 115_088_984, 157),
    ("densenet_imagenet", 169, 32, {}, 1000, 14_149_480, 169),
    ("mobilenetv2", 53, 100, {}, 1000, 3_504_872, 52),
    ("mobilenetv2", 53, 140, {}, 1000, 6_108_776, 52),
    ("efficientnet", 50, 100, {}, 1000, 5_288_548, 49),
    # 784 -> 100 -> 784, a BN.
    ("autoencoder", 1, 100, {}, 784, 3_073 * 100 + 101 * 784 + 200, 1),
    # BVLC GoogLeNet without the auxiliary classifiers.
    ("googlenet", 22, 100, {}, 1000, 6_998_552, 0),
    # Counted by hand from the benchmark's prototxt below.
    ("caffenet", 8, 2048, {}, 1000, _caffenet(2048), 0),
    ("caffenet_lrn", 8, 4096, {}, 1000, _caffenet(4096), 0),
    ("caffenet", 8, 2048, {"place": "after"}, 1000, _caffenet(2048) + 2 * (96 + 640 + 640 + 2 * 2048), 7),
]


@pytest.mark.parametrize(
    ("name", "depth", "width", "fields", "classes", "parameters", "norms"),
    [pytest.param(*row, marks=[pytest.mark.slow] * (row[1] >= 100)) for row in COUNTS],
)
def test_parameter_counts(name, depth, width, fields, classes, parameters, norms):
    model = models.create(_model(depth, width, classes, name=name, **fields))
    size = (128 if name.startswith(("caffenet", "googlenet")) else 224) if classes == 1000 else 32
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, size, size, 3)))
    assert sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes["params"])) == parameters
    assert len(jax.tree.leaves(shapes.get("batch_stats", {}))) == 2 * norms


def test_all_tested():
    assert {row[0] for row in COUNTS} == set(models.FAMILIES)


@pytest.mark.parametrize("make", [models.create, models.describe])
def test_a_network_without_outputs_is_refused(make):
    with pytest.raises(DropbnError, match="num_classes=0: give the number of outputs"):
        make(_model(classes=0))


@pytest.mark.parametrize("place", [*places.BRANCH_PLACES, *places.HEAD_PLACES])
def test_every_place_leaves_the_parameters_and_adds_noise(place):
    if place in ("H1", "H2"):
        with pytest.raises(DropbnError, match="has none"):
            models.create(_model(place=place))
        return
    key = jax.random.key(0)
    x = jax.random.normal(key, (4, 8, 8, 1))
    config = _model(place=place)
    config.noise.rate = 0.5
    model, plain = models.create(config), models.create(_model())
    assert jax.eval_shape(model.init, key, x) == jax.eval_shape(plain.init, key, x)
    variables = plain.init(key, x)
    outputs = [
        model.apply(variables, x, False, rngs={"dropout": jax.random.key(i)}, mutable=["batch_stats"])[0]
        for i in (1, 1, 2)
    ]
    np.testing.assert_array_equal(outputs[0], outputs[1])
    assert np.abs(outputs[0] - outputs[2]).max() > 1e-3


def test_the_forward_pass_is_he_2016_in_numpy():
    """One basic and one widening block against an independent computation in float64."""
    config = _model(classes=3)
    model = models.create(config)
    x = jax.random.normal(jax.random.key(0), (5, 8, 8, 2))
    variables = model.init(jax.random.key(1), x)
    key = iter(jax.random.split(jax.random.key(2), 99))
    stats = jax.tree.map(lambda s: s + jax.random.uniform(next(key), s.shape), variables["batch_stats"])
    params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(next(key), p.shape), variables["params"])

    def conv(x, w, stride):
        k = w.shape[0]
        x = np.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2), (0, 0)))
        size = (x.shape[1] - k) // stride + 1
        y = np.zeros((len(x), size, size, w.shape[3]))
        for i in range(size):
            for j in range(size):
                patch = x[:, i * stride : i * stride + k, j * stride : j * stride + k]
                y[:, i, j] = np.einsum("nhwc,hwcf->nf", patch, w)
        return y

    def reference(batch_mode):
        p, s = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (params, stats))

        def bn_relu(x, block, name):
            mean, var = (s[block][name][k] for k in ("mean", "var"))
            if batch_mode:
                mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
            y = (x - mean) / np.sqrt(var + 1e-5) * p[block][name]["scale"] + p[block][name]["bias"]
            return np.maximum(y, 0)

        h = conv(np.asarray(x, np.float64), p["stem"]["conv1"]["kernel"], 1)
        for stage, stride in ((1, 1), (2, 2), (3, 2)):
            block = f"stage{stage}_block1"
            y = conv(bn_relu(h, block, "bn1"), p[block]["conv1"]["kernel"], stride)
            y = conv(bn_relu(y, block, "bn2"), p[block]["conv2"]["kernel"], 1)
            skip = conv(h, p[block]["shortcut_conv1"]["kernel"], stride) if stride == 2 else h
            h = skip + y
        h = bn_relu(h, "head", "bn1").mean((1, 2))
        return h @ p["head"]["dense1"]["kernel"] + p["head"]["dense1"]["bias"]

    for batch_mode in (False, True):
        logits, _ = model.apply(
            {"params": params, "batch_stats": stats},
            x,
            deterministic=True,
            use_running_average=not batch_mode,
            mutable=["batch_stats"],
        )
        np.testing.assert_allclose(logits, reference(batch_mode), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_bfloat16_computes_low_and_keeps_high():
    config = _model(dtype="bfloat16")
    model, x = models.create(config), jax.random.normal(jax.random.key(0), (8, 8, 8, 1))
    variables = model.init(jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    logits, updated = model.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
    assert logits.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(updated)} == {jnp.dtype("float32")}
    config.dtype = "float32"
    full, _ = models.create(config).apply(variables, x, use_running_average=False, mutable=["batch_stats"])
    np.testing.assert_allclose(logits.astype(jnp.float32), full, atol=0.15)


@pytest.mark.parametrize("kind", ["dropout", "gaussian", "uout"])
def test_a_traced_amount_acts_as_the_configs_own(kind):
    def config(amount):
        block = {"name": "mlp", "depth": 1, "block": "dense drop bn relu", "init": "hendrycks"}
        return _model(**block, noise={"kind": kind, "beta" if kind == "uout" else "rate": amount})

    def outputs(model):
        return model.apply(variables, x, False, rngs={"dropout": jax.random.key(2)}, mutable="batch_stats")[0]

    @jax.jit
    def traced(amount):
        return outputs(models.create(dataclasses.replace(architecture, amount=amount)))

    architecture, x = models.resolve(config(0.5)), jax.random.normal(jax.random.key(0), (8, 4, 4, 1))
    variables = models.create(architecture).init(jax.random.key(1), x)
    assert architecture.amount == 0.5 and architecture.noise == kind
    np.testing.assert_allclose(traced(0.5), outputs(models.create(architecture)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(traced(0.25), outputs(models.create(config(0.25))), rtol=1e-5, atol=1e-6)
    assert not np.allclose(traced(0.25), traced(0.5), atol=0.1)


def test_a_plain_densenet_drops_after_every_convolution_but_the_stems():
    """Three blocks of twelve layers and two transitions; Dropout-(a) of a DenseNet-BC leaves those alone."""
    plain = _model(name="densenet", depth=40, width=12, block="{bn relu conv drop}", noise={"rate": 0.2})
    orders = {section.name: str(section.order) for section in models.create(plain).sections}
    assert sum(order.count("conv drop") for order in orders.values()) == 3 * 12 + 2
    assert orders["transition1"] == "bn relu conv drop avgpool" and orders["stem"] == "conv"
    in_a = _model(name="densenet", depth=40, width=12, place="a", noise={"rate": 0.2})
    assert sum(section.order.count("drop") for section in models.create(in_a).sections) == 3 * 6


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "preresnets"}, "Unknown model 'preresnets'. Did you mean 'preresnet'?"),
        ({"dtype": "float16"}, "Unknown dtype 'float16'"),
        ({"place": "P10"}, "Unknown place 'P10'"),
        ({"activation": "rely"}, "Unknown activation 'rely'. Did you mean 'relu'?"),
        ({"activation": "elu"}, "give both or neither"),
        ({"block": "[bn act conv bn act conv | conv]"}, "give both or neither"),
        ({"block": "[bn relu konv | conv]"}, "Did you mean 'conv'?"),
        ({"block": "[bn relu conv | conv]"}, "two convolutions (basic) or three (bottleneck), got 1"),
        ({"block": "bn relu conv"}, "one residual bracket"),
        ({"block": "[bn relu conv drop bn relu conv | conv]", "place": "P4"}, "give one of them"),
        ({"block": "[bn relu conv drop bn relu conv | conv]", "place": "H4"}, "give one of them"),
        ({"head": "bn relu drop gap dense", "place": "a"}, "give one of them"),
        ({"noise": {"kind": "dropout", "rate": 0.5}}, "no order says where"),
        ({"block": "[bn relu {relu} conv bn relu conv | conv]"}, None),
        ({"head": "bn relu {gap} dense"}, "concatenates channels"),
        ({"head": "bn relu gap gap dense"}, "not images"),
        ({"depth": 21}, "it has to be 6n + 2"),
        ({"depth": 20, "block": preresnet.BOTTLENECK}, None),
        ({"depth": 22, "block": preresnet.BOTTLENECK}, "it has to be 9n + 2"),
        ({"head": "bn relu gap dense dense"}, "has 2 sized layers"),
        ({"name": "wrn", "depth": 20}, "it has to be 6n + 4"),
        ({"name": "resnext", "depth": 30}, "it has to be 9n + 2"),
        ({"name": "resnext", "depth": 14, "block": preresnet.BLOCK}, "three convolutions"),
        ({"name": "senet", "depth": 14, "width": 1, "cardinality": 2}, "2 groups, which do not divide its 1"),
        (
            {"name": "vgg", "depth": 11},
            "window of 2 pixels, and its input is 1 x 1: the images are too small",
        ),
        ({"name": "googlenet", "depth": 10, "width": 8}, "input is 1 x 1: the images are too small"),
        ({"name": "vgg", "depth": 11, "block": "conv", "place": "after"}, "around activations"),
        (
            {
                "name": "mlp",
                "depth": 1,
                "init": "hendrycks",
                "block": "dense relu drop",
                "noise": {"rate": 1.0},
            },
            "divides",
        ),
        ({"name": "senet", "depth": 51}, "senet has a depth of 14, 50, 101, 152, 200"),
        ({"name": "mobilenetv2", "block": "conv bn relu6"}, "has a depth of 53, 23"),
        ({"name": "mobilenetv2", "depth": 23, "block": "conv bn relu6"}, "one residual bracket"),
        ({"name": "lenet", "depth": 2, "place": "H1"}, "has none"),
        (
            {"name": "lenet", "depth": 2, "block": "conv bn relu maxpool", "place": "after"},
            "already holds bn",
        ),
        ({"name": "lenet", "depth": 1, "init": "lsvu"}, "Did you mean 'lsuv'"),
        ({"name": "lenet", "depth": 1, "block": "conv prelu maxpool", "init": "hendrycks"}, "one number"),
        ({"name": "densenet", "depth": 99}, "a depth of 6n + 4"),
        ({"name": "densenet", "depth": 16, "block": "bn relu conv"}, "a dense bracket"),
        ({"name": "vgg", "depth": 12}, "a depth of 11, 13, 16, 19"),
    ],
)
def test_configs_that_name_no_network(fields, message):
    def build():
        model = models.create(_model(**{"depth": 8, **fields}))
        jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 8, 8, 1)))

    if message is None:
        build()
    else:
        with pytest.raises(DropbnError) as error:
            build()
        assert message in str(error.value)


def test_bn_and_noise_are_as_the_config_says():
    bn = {"use_scale": True, "use_bias": True, "scale_init": 2**0.5, "bias_init": -3.5}
    fields = {"name": "mlp", "depth": 1, "block": "dense bn drop sigmoid"}
    x = jnp.ones((4, 3))
    params = models.create(_model(**fields, bn=bn)).init(jax.random.key(0), x)["params"]["layer1"]["bn1"]
    np.testing.assert_allclose(params["scale"], 2**0.5, rtol=1e-6)
    np.testing.assert_array_equal(params["bias"], -3.5)
    for use_scale, use_bias in ((True, False), (False, True), (False, False)):
        config = _model(**fields, bn={"use_scale": use_scale, "use_bias": use_bias})
        shapes = jax.eval_shape(models.create(config).init, jax.random.key(0), x)
        kept = {name for name, used in (("scale", use_scale), ("bias", use_bias)) if used}
        assert set(shapes["params"]["layer1"].get("bn1", {})) == kept
    for noise in ({"scale_at": "test"}, {"restore": "exact"}):
        layers = models.create(_model(**fields, noise={"rate": 0.5, **noise})).parts.noise(name="drop1")
        assert {key: getattr(layers, key) for key in noise} == noise


@pytest.mark.parametrize(
    ("kind", "rate", "beta", "message"),
    [
        ("dropuot", 0.5, 0.0, "Did you mean 'dropout'"),
        ("dropout", 1.5, 0.0, "rate must lie in"),
        ("gaussian", 1.0, 0.0, "rate must lie in"),
        ("uout", 0.5, -0.5, "beta must lie in"),
        ("uout", 1.5, 0.5, None),  # the field that its kind does not use is ignored
        ("dropout", 0.5, 7.0, None),
    ],
)
def test_noise_configs(kind, rate, beta, message):
    config = _model(place="a", noise={"kind": kind, "rate": rate, "beta": beta})
    if message is None:
        models.create(config)
    else:
        with pytest.raises(DropbnError, match=message):
            models.create(config)


def test_mobile_networks_round_channels_as_published():
    """To the nearest 8, but never by more than a tenth down: 11 would lose a quarter."""
    wanted = {5: 8, 8: 8, 11: 16, 12: 16, 15: 16, 16 * 1.4: 24, 24 * 1.4: 32, 320 * 1.4: 448}
    assert {channels: inverted.rounded(channels) for channels in wanted} == wanted


def test_describe_counts_what_is_there():
    config = _model(28, 160, name="wrn", place="b")
    rows = models.describe(config).rows
    assert [row["sections"] for row in rows[:3]] == [
        "stem",
        "stage1_block1",
        "stage1_block2 .. stage1_block4",
    ]
    assert [row["order"] for row in rows[1:3]] == [
        "bn relu [conv bn relu drop conv | conv]",
        "[bn relu conv bn relu drop conv | conv]",
    ]
    assert rows[1]["parameters"] == 2 * 16 + 9 * 16 * 160 + 2 * 160 + 9 * 160 * 160 + 16 * 160
    total = rows[-1]
    assert (total["number"], total["parameters"]) == (14, 36_479_194)
    assert (total["batch_norms"], total["noises"]) == (25, 12)
    # ResNeXt's shortcut BN is in every block's order and runs in three of nine blocks.
    assert models.describe(_model(29, 64, name="resnext")).rows[-1]["batch_norms"] == 31


def test_brackets_of_an_order_are_printed():
    console = rich.console.Console(width=120)
    with console.capture() as printed:
        console.print(models.describe(_model()))
    assert "[bn relu conv bn relu conv | conv]" in printed.get()
