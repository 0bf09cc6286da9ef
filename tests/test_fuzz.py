"""Random configs, files and arguments: they work, or are refused in a sentence of ours.

8 cases of each by default, and 1,000 of each with `pytest -m slow tests/test_fuzz.py`; of random fields five
times as many, of a workdir's files twice. Hypothesis mixes constants of all local modules that the process
has loaded into its draws, so a test may see other cases beside other tests than alone. Only the first case,
the simplest, is always the same.
"""

import collections
import dataclasses
import functools
import io
import json
import pickle
import sys
import zipfile

import flax.linen as nn
import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags
from PIL import Image

from configs import base
from dropbn import cli, data, models
from dropbn.data import sampling
from dropbn.diagnose import shift
from dropbn.errors import DropbnError
from dropbn.nn import initializers, noise, order, places
from dropbn.nn.activations import ACTIVATIONS
from dropbn.study import finished_runs, table
from dropbn.train import evaluation, feeds, parallel, steps, workdir
from dropbn.train.fields import check as check_fields
from dropbn.train.plan import abstract_state, make_plan

CASES = pytest.mark.parametrize("cases", [8, pytest.param(1000, marks=pytest.mark.slow)])
RNG = np.random.default_rng(0)


def _run(check, cases, *strategies):
    """Calls `check` with random arguments, `cases` times."""

    @hypothesis.settings(max_examples=cases, suppress_health_check=list(hypothesis.HealthCheck))
    @hypothesis.given(st.tuples(*strategies))
    def run(arguments):
        check(*arguments)

    run()


def _enough(number, cases, share):
    """Whether at least a share of the cases has ended so; of few cases one, because the draws may change."""
    return number >= (cases * share if cases >= 1000 else 1)


@functools.cache
def _digits():
    return data.load(base.get_config().data)


@functools.cache
def _large_digits():
    """128 digits of 32 x 32 pixels, for a network that halves five times."""
    split = _digits().train.take(slice(128))
    split = split._replace(images=split.images.repeat(4, 1).repeat(4, 2))
    return dataclasses.replace(_digits(), train=split, test=split)


def _config(fields):
    config = base.get_config()
    config.update_from_flattened_dict({"batch_size": 8, "duration": "2 steps", **fields})
    return config


# Configs that mostly fit.

_ACTIVATION = st.sampled_from(["act", "act", *ACTIVATIONS])
_EXTRA = st.sampled_from(["bn", "bn", "drop", "act", "relu", "sparse", "lrn"]) | _ACTIVATION
_SPACE = " "


@st.composite
def _words(draw, *always, most=4):
    """`always` among a few words that keep the shape, in any order."""
    words = [*always, *draw(st.lists(_EXTRA, max_size=most))]
    return _SPACE.join(draw(st.permutations(words)))


def _around(text):
    """`text` with a word before or after it, or both."""
    word = st.sampled_from(["", "", "drop", "bn relu", "act"])
    return st.tuples(word, st.just(text), word).map(_SPACE.join)


def _units():
    pooled = st.one_of(_words("conv", "maxpool"), _words("conv", "avgpool"), _words("conv"))
    return st.one_of(
        pooled,
        st.tuples(_words("conv"), _words("conv", most=1)).map("[{0[0]} | {0[1]}]".format),
        _words("conv").map("{{{}}}".format),
        st.tuples(_words("conv"), _words("conv")).map("{{{0[0]} | {0[1]}}}".format),
    )


def _residual(shortcut):
    return _words("conv", "conv").map(f"[{{}} | {shortcut}]".format).flatmap(_around)


_HEAD = st.sampled_from(["flatten", "gap"]).flatmap(lambda word: _words(most=2).map(f"{{}} {word}".format))
# Name, depth, block, head.
_NETWORKS = {
    "mlp": (
        st.integers(1, 2),
        st.one_of(_words("dense"), _words("dense").map("{{{}}}".format)),
        _words("dense"),
    ),
    "lenet": (
        st.integers(1, 2),
        st.lists(_units(), min_size=1, max_size=2).map(_SPACE.join),
        st.tuples(_HEAD, _words("dense", most=2)).map(_SPACE.join),
    ),
    "preresnet": (st.just(8), _residual("conv"), _HEAD.map("{} dense".format)),
    "resnet": (st.just(8), _residual("conv bn"), _HEAD.map("{} dense".format)),
    "wrn": (st.just(10), _residual("conv"), _HEAD.map("{} dense".format)),
    "densenet": (st.just(7), _words("conv").map("{{{}}}".format), _HEAD.map("{} dense".format)),
    "vgg": (st.just(11), _words("conv", most=2), _HEAD.map("{} dense".format)),
}
_PLACES = [*places.BRANCH_PLACES, *places.HEAD_PLACES, *places.NORM_PLACES]


@st.composite
def _fitting(draw):
    """Fields of a small network and its training, most of which fit each other."""
    name = draw(st.sampled_from(["mlp"] * 6 + ["lenet"] * 6 + list(_NETWORKS)[2:]))
    depth, block, head = _NETWORKS[name]
    batch_size = draw(st.sampled_from([8, 7, 6, 4, 1]))
    fitting = [size for size in range(1, 9) if batch_size % size == 0]
    fields = {
        "model.name": name,
        "model.depth": draw(depth),
        "model.width": draw(st.sampled_from([1, 2, 4, 8])),
        "model.block": draw(st.just("") | block),
        "model.head": draw(st.just("") | head),
        "model.init": draw(st.sampled_from(initializers.NAMES)),
        "model.dtype": draw(st.sampled_from(["float32", "float32", "bfloat16"])),
        "model.bn.momentum": draw(st.floats(0, 0.99)),
        "model.bn.epsilon": draw(st.floats(1e-5, 0.1)),
        "model.bn.use_scale": draw(st.booleans()),
        "model.bn.use_bias": draw(st.booleans()),
        "model.bn.scale_init": draw(st.floats(0, 2)),
        "model.bn.bias_init": draw(st.floats(-1, 1)),
        "model.bn.group_size": draw(st.sampled_from([0, 0, 0, *fitting * 2, 3, -1])),
        "model.sparsity.target": draw(st.floats(0.01, 0.99)),
        "model.sparsity.weight": draw(st.floats(0, 1)),
        "data.crop_padding": draw(st.integers(0, 2)),
        "data.flip": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**31 - 1)),
        "batch_size": batch_size,
        "optimizer.learning_rate": draw(st.floats(0, 0.2)),
        "optimizer.momentum": draw(st.sampled_from([0.0, 0.9])),
        "optimizer.nesterov": draw(st.booleans()),
        "optimizer.weight_decay": draw(st.floats(0, 0.01)),
        "optimizer.schedule": draw(st.sampled_from(["constant", "step", "cosine"])),
        "optimizer.decay_at": draw(st.sampled_from([("1 steps",), ("0 steps", "1 steps"), ("8 examples",)])),
        "optimizer.decay_factor": draw(st.floats(0, 1)),
        "optimizer.warmup": draw(st.sampled_from(["0 epochs", "0 epochs", "1 steps", "8 examples"])),
    }
    orders = fields["model.block"] + fields["model.head"]
    if "act" in orders:
        fields["model.activation"] = draw(st.sampled_from(list(ACTIVATIONS)))
    elif "drop" not in orders and draw(st.booleans()):
        fields["model.place"] = draw(st.sampled_from(_PLACES))
    kind = draw(st.sampled_from(list(noise.KINDS)))
    if "drop" in orders or "model.place" in fields or draw(st.integers(0, 9)) == 7:
        amount = draw(st.one_of(st.floats(0, 0.9), st.sampled_from([0.0, 0.5, 1.0])))
        fields |= {"model.noise.kind": kind, f"model.noise.{'beta' if kind == 'uout' else 'rate'}": amount}
    if kind == "dropout":
        fields["model.noise.scale_at"] = draw(st.sampled_from(["train", "train", "test"]))
        fields["model.noise.restore"] = draw(st.sampled_from(["", "", "sqrt_keep", "exact"]))
    if draw(st.integers(0, 9)) == 7:
        pixels = 32 * 32 if name == "vgg" else 8 * 8
        fields |= {"task": "reconstruct", "model.num_classes": draw(st.sampled_from([0, pixels, pixels]))}
    return fields


def _two_steps(config, dataset):
    """State and losses of two steps on one device, by the run's own parts."""
    layout = parallel.Layout(tuple(jax.devices()[:1]), axis_name=None)
    plan = make_plan(config, dataset, layout)
    feed = feeds.create([plan], [dataset])
    architecture = plan.architecture
    create = functools.partial(steps.create_state, plan.model, plan.tx, config.seed)
    state = jax.jit(lambda: create(dataset.train.image_shape))()
    if config.model.init == "lsuv":
        images = sampling.normalize(dataset.plain(config.batch_size).images, dataset.mean, dataset.std)
        state = state.replace(params=initializers.lsuv(plan.model, state.variables, images)["params"])

    @jax.jit
    def step(state, inputs, hyper):
        return steps.train_step(
            state,
            feed.batcher.train_batch(inputs, state.step, hyper.seed),
            hyper,
            build=lambda hyper: models.create(dataclasses.replace(architecture, amount=hyper.amount)),
            tx=plan.tx,
            task=plan.task,
        )

    losses = []
    for inputs in feed.train_inputs(0, range(plan.total_steps)):
        hyper = steps.Hyper(config.seed, architecture.amount, 1.0)
        state, sums = step(state, jax.tree.map(lambda stacked: stacked[0], inputs), hyper)
        losses.append(sums["loss"] / sums["count"] + sums.get("penalty", 0))
    return state, losses


@CASES
def test_random_networks_train_or_are_refused(cases):
    outcomes = collections.Counter()

    def check(fields):
        config = _config(fields)
        try:
            state, losses = _two_steps(config, _large_digits() if config.model.name == "vgg" else _digits())
        except DropbnError as error:
            outcomes[f"refused: {str(error)[:40]}"] += 1
            return
        assert int(state.step) == len(losses) == 2
        assert np.isfinite(losses).all()
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
        outcomes[f"trained: {config.model.name}"] += 1

    _run(check, cases, _fitting())
    print(json.dumps(outcomes, indent=1))
    trained = sum(number for outcome, number in outcomes.items() if outcome.startswith("trained"))
    assert _enough(trained, cases, 0.4)  # 0.56 of 620 fit, and always the simplest


# Configs that mostly do not fit.

_KNOWN = [*order.WORDS, *_PLACES, *models.FAMILIES, *noise.KINDS, *initializers.NAMES, "cosine", "exact"]


def _flat(tree, prefix=""):
    flat = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


_FIELDS = _flat(base.get_config().to_dict())
_ORDER = st.lists(st.sampled_from([*"[]{}||", "conv", "dense", *order.WORDS]), max_size=12).map(_SPACE.join)
_DURATION = st.tuples(
    st.one_of(
        st.integers(-2, 10**6).map(str), st.floats().map(str), st.sampled_from(["1e999", "9" * 400, "٣"])
    ),
    st.sampled_from(["epochs", "step", "examples", "weeks", ""]),
).map(_SPACE.join)
_TEXT = st.one_of(
    st.sampled_from(_KNOWN), _ORDER, _DURATION, st.text(max_size=10), st.integers(1, 2000).map("[".__mul__)
)
_DATA = st.one_of(
    st.tuples(st.sampled_from(["folder:", "npz:", "folder:~", "npz:~", ""]), st.text(max_size=10)).map(
        "".join
    ),
    st.sampled_from(
        ["folder:.", "npz:.", "folder:/dev/null", "npz:/dev/zero", "folder:" + "x" * 300, "npz:" + "x" * 300]
    ),
    st.sampled_from([*data.stock.NAMES, "digits", "digit"]),
)
_SPLIT = st.lists(
    st.sampled_from(["70", "15", "0", "-1", "²", "٣", "", "x", "9" * 30, "1" * 5000]), max_size=4
)
_VALUES = {
    bool: st.booleans(),
    int: st.one_of(
        st.integers(-3, 40), st.sampled_from([-(2**63), -(2**31), 10**6, 2**31 - 1, 2**31, 2**63, 10**30])
    ),
    float: st.floats(),
    str: _TEXT,
}
_OWN = {
    "data.name": _DATA,
    "data.dir": st.sampled_from(
        ["", "here", "a b/ü", "/dev/null", "/proc/nowhere", "~nobody/x", "x" * 300, "\0"]
    ),
    "data.split": _SPLIT.map(":".join),
    "data.crop_scale": st.lists(st.floats(), max_size=3).map(tuple),
    "optimizer.decay_at": st.lists(_DURATION, max_size=3).map(tuple),
    "model.depth": st.integers(-30, 60),  # A network of a million layers is what was asked for.
}
_DEPTHS = {
    "mlp": 1,
    "lenet": 1,
    "densenet": 10,
    "wrn": 10,
    "vgg": 11,
    "resnext": 11,
    "preresnet": 8,
    "resnet": 8,
}
_DEPTHS |= {"autoencoder": 1, "mobilenetv2": 23, "googlenet": 10, "senet": 14, "resnet_imagenet": 14}


@st.composite
def _unfitting(draw):
    """Fields of a small network, of which one to three are anything of their type."""
    name = draw(st.sampled_from(list(_DEPTHS)))
    fields = {"model.name": name, "model.depth": _DEPTHS[name], "model.width": 4}
    # Half of the draws are of orders: they can be wrong in more ways.
    changed = st.sampled_from(["model.block", "model.head", "model.place"]) | st.sampled_from(list(_FIELDS))
    for field in draw(st.lists(changed, min_size=1, max_size=3)):
        fields[field] = draw(_OWN[field] if field in _OWN else _VALUES[type(_FIELDS[field])])
    return fields


@CASES
def test_random_fields_are_refused_in_a_sentence(cases, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcomes = collections.Counter()

    def check(fields):
        config = _config(fields)
        try:
            dataset = data.load(config.data) if any(f.startswith("data.") for f in fields) else _digits()
            plan = make_plan(config, dataset)
            abstract_state(plan, dataset)
            outcomes["accepted"] += 1
        except DropbnError as error:
            assert len(str(error)) > 20
            outcomes[f"refused: {str(error)[:40]}"] += 1

    _run(check, cases * 5, _unfitting())
    print(json.dumps(outcomes, indent=1))
    refused = outcomes.total() - outcomes["accepted"]
    assert _enough(refused, cases * 5, 0.7)  # 0.86 of 3,000


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model.block": "[" * 400}, "More than 50 brackets"),
        (
            {"model.name": "mobilenetv2", "model.depth": 23, "model.block": "[conv bn]"},
            "a widening convolution",
        ),
        ({"model.width": 2**63}, "has 9223372036854775808 channels, more than"),
        ({"model.name": "lenet", "model.depth": 60}, "channels, more than"),
        ({"checkpoint_every": "1e999 epochs"}, "is longer than 2147483647 steps"),
        ({"duration": "1e10 epochs"}, "is longer than 2147483647 steps"),
        (
            {"optimizer.schedule": "step", "optimizer.decay_factor": -0.5},
            "optimizer.decay_factor=-0.5: give 0",
        ),
        ({"optimizer.learning_rate": float("nan")}, "optimizer.learning_rate=nan: give 0"),
        ({"optimizer.learning_rate": 1e300}, "optimizer.learning_rate=1e.300: give 0 or more, at most 3.4e"),
        ({"data.train_examples": -1}, "data.train_examples=-1: give 0"),
        ({"data.image_size": 8, "data.split": "1" * 5000 + ":1:1"}, "give train:validation:test"),
        ({"data.dir": "\0"}, "Cannot prepare or read dataset"),
        ({"data.name": "folder:~no-such-user/x"}, "has no class folders"),
        ({"data.name": "npz:~no-such-user/x"}, "Cannot read"),
        ({"data.name": f"folder:{'x' * 300}"}, "Cannot read the folder"),
    ],
)
def test_what_random_fields_found(fields, message):
    config = _config({"model.depth": 8, "model.width": 4, **fields})
    with pytest.raises(DropbnError, match=message):
        dataset = data.load(config.data)
        abstract_state(make_plan(config, dataset), dataset)


@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
def test_exact_restoration_of_constant_channels_has_a_gradient(rate):
    x = jax.random.normal(jax.random.key(0), (8, 3)) * np.array([0.0, 1e-12, 1.0]) + np.array([0.0, 1.0, 2.0])

    def total(x, rate):
        layer = noise.Dropout(rate, restore="exact", deterministic=False)
        return (layer.apply({}, x, rngs={"dropout": jax.random.key(1)}) ** 2).sum()

    assert np.isfinite(jax.jit(jax.grad(total))(x, rate)).all()


# Image folders and archives.


def _broken(good):
    """`good` bytes cut, changed, added to, or replaced."""
    place = st.integers(0, len(good) - 1)
    byte = st.tuples(place | st.integers(0, min(64, len(good) - 1)), st.integers(0, 255))
    return st.one_of(
        place.map(lambda end: good[:end]),
        st.lists(byte, min_size=1, max_size=4).map(lambda changes: _changed(good, changes)),
        st.builds(lambda at, more: good[:at] + more + good[at:], place, st.binary(min_size=1, max_size=8)),
        st.binary(max_size=64),
    )


def _changed(good, changes):
    found = bytearray(good)
    for place, byte in changes:
        found[place] = byte
    return bytes(found)


def _encoded(image, kind, **options):
    found = io.BytesIO()
    image.save(found, kind, **options)
    return found.getvalue()


def _images():
    """Path below a folder -> an image file, of the kinds that cameras and programs write."""
    image = Image.fromarray(RNG.integers(0, 256, (8, 9, 3)).astype(np.uint8))
    return {
        "train/a b/0.png": _encoded(image, "PNG"),
        "train/a b/1.PNG": _encoded(image.quantize(16), "PNG"),
        "train/a b/2.png": _encoded(image.convert("RGBA"), "PNG", compress_level=0),
        "train/ö/0.jpg": _encoded(image, "JPEG"),
        "train/ö/1.jpeg": _encoded(image, "JPEG", progressive=True, optimize=True),
        "train/ö/2.jpg": _encoded(image.convert("CMYK"), "JPEG"),
        "test/a b/0.png": _encoded(image, "PNG"),
        "test/ö/0.jpg": _encoded(image, "JPEG"),
    }


@CASES
@pytest.mark.parametrize("image_size", [0, 6], ids=["in memory", "streamed"])
def test_broken_images_are_named(cases, image_size, tmp_path):
    root, outcomes = tmp_path / "my images, 画像", collections.Counter()
    written = _images()
    for name, content in written.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    config = _config({"data.name": f"folder:{root}", "data.image_size": image_size, "data.resize": 7}).data

    def read():
        found = data.load(config)
        splits = [split.take(slice(None)) for split in (found.train, found.test)]
        return dict(zip(written, np.concatenate([split.images for split in splits]), strict=True))

    right = read()

    def check(change):
        name, content = change
        (root / name).write_bytes(content)
        try:
            found = read()
        except DropbnError as error:
            named = [other for other in written if str(root / other) in str(error)]
            # Of two sizes nobody knows which is the right one.
            assert name in named and (len(named) == 1 or "have one shape" in str(error))
            outcomes["refused"] += 1
        else:
            # A JPEG has no checksum.
            assert all((found[n] == right[n]).all() for n in right if n != name or "jp" not in n)
            outcomes["read"] += 1
        finally:
            (root / name).write_bytes(written[name])

    _run(
        check,
        cases,
        st.sampled_from(list(written)).flatmap(lambda n: st.tuples(st.just(n), _broken(written[n]))),
    )
    print(json.dumps(outcomes))
    assert _enough(outcomes["refused"], cases, 0.7)  # 0.81 of 1,200, and always the simplest
    assert all((image == right[name]).all() for name, image in read().items())


_ARRAYS = {
    "train_images": RNG.integers(0, 256, (19, 4, 4, 2)).astype(np.uint8),
    "train_labels": np.arange(19) % 3,
    "test_images": RNG.integers(0, 256, (4, 4, 4, 2)).astype(np.uint8),
    "test_labels": np.array([2, 1, 0, 2]),
}


def _archive(save=np.savez, **changes):
    found = io.BytesIO()
    save(found, **_ARRAYS | changes)
    return found.getvalue()


def _load(file):
    found = data.load(_config({"data.name": f"npz:{file}"}).data)
    splits = {"train": found.train, "test": found.test}
    return {
        f"{name}_{kind}": getattr(split, kind) for name, split in splits.items() for kind in split._fields
    }


def _assert_right(arrays):
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, _ARRAYS[name])


@CASES
def test_broken_archives_are_refused(cases, tmp_path):
    file, outcomes = tmp_path / "my arrays, 数.npz", collections.Counter()
    archives = [_archive(), _archive(np.savez_compressed)]

    def check(content):
        file.write_bytes(content)
        try:
            arrays = _load(file)
        except DropbnError as error:
            assert str(file) in str(error)
            outcomes["refused"] += 1
        else:
            _assert_right(arrays)
            outcomes["read"] += 1

    _run(check, cases, st.sampled_from(archives).flatmap(_broken))
    print(json.dumps(outcomes))
    assert _enough(outcomes["refused"], cases, 0.7)  # 0.87 of 600, and always the simplest
    file.write_bytes(archives[1])
    _assert_right(_load(file))


def test_a_header_that_says_less_than_there_is_is_refused(tmp_path):
    """NumPy would read half of the bytes as labels of half the size, and never come to the checksum."""
    content = _archive()
    assert content.count(b"'<i8'") == 2
    (tmp_path / "d.npz").write_bytes(content.replace(b"'<i8'", b"'<i4'"))
    with pytest.raises(DropbnError, match=r"train_labels.npy is damaged"):
        _load(tmp_path / "d.npz")


class _Bomb:
    """What creates a file when it is unpickled."""

    def __init__(self, file):
        self.file = str(file)

    def __reduce__(self):
        return open, (self.file, "w")


@pytest.mark.parametrize("how", ["an array in it", "the file itself", "a .npy"])
def test_nothing_is_unpickled(how, tmp_path):
    file, made = tmp_path / "d.npz", tmp_path / "made"
    objects = np.array([_Bomb(made)] * 4)
    contents = {
        "an array in it": lambda: _archive(test_labels=objects),
        "the file itself": lambda: pickle.dumps(objects),
        "a .npy": lambda: _saved(objects),
    }
    file.write_bytes(contents[how]())
    with pytest.raises(DropbnError, match="Cannot read"):
        _load(file)
    assert not made.exists()
    loaded = np.load(file, allow_pickle=True)  # So it would have gone off.
    _ = loaded["test_labels"] if how == "an array in it" else None
    assert made.exists()


def _saved(array):
    found = io.BytesIO()
    np.save(found, array)
    return found.getvalue()


def test_an_archive_writes_nothing(tmp_path):
    file = tmp_path / "in" / "d.npz"
    file.parent.mkdir()
    file.write_bytes(_archive())
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("../outside.npy", _saved(np.arange(3)))
        archive.writestr(f"{tmp_path}/outside.npy", _saved(np.arange(3)))
    _assert_right(_load(file))
    assert list(tmp_path.rglob("*")) == [file.parent, file]


def test_other_formats_are_not_opened(tmp_path):
    """Pillow would hand PostScript to Ghostscript, which is a programming language."""
    for name, content in _images().items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    script = tmp_path / "train" / "ö" / "1.jpeg"
    script.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 8\n%%EndComments\nshowpage\n%%EOF\n")
    with Image.open(script) as image:
        assert image.format == "EPS"
    with pytest.raises(DropbnError, match=r"1.jpeg cannot be read as an image .PNG or JPEG."):
        data.load(_config({"data.name": f"folder:{tmp_path}"}).data)


# Files of a workdir, configs that are code, and what the tools are given.


def _workdir(root):
    """A workdir with every file that commands read, and a check of each: path -> a function that reads it."""
    path = workdir.claim(root, base.get_config())
    (path / "metrics.jsonl").write_text('{"step": 1, "epoch": 0.5}\n{"step": 2, "epoch": 1.0}\n')
    (path / "checkpoint_dir").write_text("elsewhere\n")
    (path / "eval").mkdir()
    (path / "eval" / "report.json").write_text('{"shift": [{"ratio": 0.5}], "checkpoint_step": 2}')
    summary = {"accuracy": 0.5, "loss": 1.0, "train_accuracy": 0.75, "train_accuracy_test_mode": 0.25}
    summary |= {"recalibrated": {}, "correct": {"running": finished_runs.pack(np.array([True, False]))}}
    (path / "eval" / "summary.json").write_text(json.dumps(summary))
    (path / "table.json").write_text('{"config": "configs/small.py:digits"}')
    (path / "members.csv").write_text("cell,seed,accuracy\na,0,50.0\n")
    (path / "correct.csv").write_text("cell,seed,statistics,images,bits\na,0,running,2,gA==\n")
    return {
        "config.json": workdir.read_config,
        "metrics.jsonl": workdir.read_metrics,
        "checkpoint_dir": workdir.checkpoints,
        "eval/report.json": evaluation.read_report,
        "eval/summary.json": finished_runs.read,
        "table.json": lambda path: table.refuse_another(path, "configs/small.py:digits"),
        "members.csv": finished_runs.published,
        "correct.csv": finished_runs.published,
    }


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.just("x y" * 5000),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(list("abc")), inner, max_size=3)
    ),
    max_leaves=5,
)


def _edited(good):
    """A file of JSON with one value changed, removed or added; any other file is broken as bytes."""
    try:
        tree = json.loads(good)
    except ValueError:
        return _broken(good)
    if not isinstance(tree, dict):
        return _broken(good)
    names = list(tree)
    changed = st.builds(lambda name, value: tree | {name: value}, st.sampled_from(names), _JSON)
    removed = st.sampled_from(names).map(lambda name: {key: tree[key] for key in names if key != name})
    return (changed | removed | _JSON).map(lambda found: json.dumps(found).encode())


@CASES
def test_broken_files_of_a_workdir_are_named(cases, tmp_path):
    readers, outcomes = _workdir(tmp_path), collections.Counter()
    written = {name: (tmp_path / name).read_bytes() for name in readers}
    for read in readers.values():
        read(tmp_path)

    def check(name, content):
        (tmp_path / name).write_bytes(content)
        try:
            readers[name](tmp_path)
            outcomes["read"] += 1
        except DropbnError as error:
            assert str(tmp_path) in str(error) and len(str(error)) < 1500
            outcomes["refused"] += 1
        finally:
            (tmp_path / name).write_bytes(written[name])

    def broken(name):
        return st.tuples(st.just(name), _broken(written[name]) | _edited(written[name]))

    _run(lambda change: check(*change), cases * 2, st.sampled_from(list(readers)).flatmap(broken))
    print(json.dumps(outcomes))
    assert _enough(outcomes["refused"], cases * 2, 0.7)  # 0.86 of 1,200, and always the simplest


_LINES = st.sampled_from(
    [
        "1 / 0",
        "config.seed = 3",
        "config.sed = 3",
        "config.seed = 'x'",
        "config.model = 5",
        "config.model.noise.rate = None",
        "raise SystemExit(0)",
        "raise KeyError('a' * 5000)",
        "import no_such_module",
        "open('no such file')",
        "def",
        "\0",
        "return 5",
        "del config.data",
        "assert False, 'no'",
        "config = config.to_dict()",
        "from dropbn.nn import order; order.parse(5)",
    ]
)


@CASES
def test_config_files_that_fail_end_in_a_sentence(cases, tmp_path, monkeypatch, capsys):
    outcomes = collections.Counter()

    def check(lines):
        body = "\n    ".join(["config = base.get_config()", *lines, "return config"])
        (tmp_path / "own.py").write_text(f"from configs import base\ndef get_config():\n    {body}\n")
        values = flags.FlagValues()
        monkeypatch.setattr(cli.flags, "FLAGS", values)
        monkeypatch.delitem(sys.modules, "config_config", raising=False)
        monkeypatch.setattr(sys, "argv", ["train.py", f"--config={tmp_path}/own.py"])
        try:
            with cli.parsing():
                config_flags.DEFINE_config_file("config", flag_values=values)
            cli._parse(sys.argv)
            check_fields(values.config)
        except cli.Ended as ended:
            said = capsys.readouterr().err
            assert ended.code == 2 and said.startswith("error: ") and "Traceback" not in said
            assert len(said) < 1500
            outcomes["refused"] += 1
        except DropbnError:
            outcomes["refused"] += 1
        else:
            outcomes["accepted"] += 1

    _run(check, cases, st.lists(_LINES, min_size=1, max_size=2))
    print(json.dumps(outcomes))
    assert _enough(outcomes["refused"], cases, 0.7)  # 0.99 of 600, and always the simplest


_ANY = st.recursive(
    st.sampled_from(
        [None, True, 5, 0.5, "abc", "x y" * 5000, b"x", np.zeros((0, 3)), np.ones((4, 3)), object(), int]
    )
    | st.just(np.array(["a"] * 4))
    | st.just(np.float32(3)),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.tuples(inner, inner)
        | st.dictionaries(st.sampled_from(["image", "label", "x"]), inner, max_size=2)
    ),
    max_leaves=4,
)
_ARGUMENTS = st.dictionaries(
    st.sampled_from(
        ["inputs", "args", "kwargs", "method", "rngs", "outputs", "train_kwargs", "test_kwargs", "train"]
    ),
    _ANY,
    max_size=2,
)


class _Net(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        return nn.BatchNorm(use_running_average=not train)(nn.Dropout(0.5, deterministic=not train)(x))


@CASES
def test_random_arguments_of_the_tools_are_refused_in_a_sentence(cases):
    outcomes, x = collections.Counter(), np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    variables = _Net().init(jax.random.key(0), x, train=False)
    remembered = jax.tree.map(lambda leaf: leaf + 0.5, variables["batch_stats"])
    variables = variables | {"batch_stats": remembered}  # A network that was not trained is refused.
    models, good = st.sampled_from([_Net(), _Net(), _Net(), _Net, None, "net", (_Net, _Net)]), st.just([x])
    some = st.sampled_from([variables, variables, variables, None, {}, "v", [1], {"params": 3}])

    def check(model, given, batches, call):
        try:
            shift.measure(model, given, batches, **call)
            outcomes["accepted"] += 1
        except DropbnError as error:
            assert len(str(error)) < 1500
            outcomes["refused"] += 1

    _run(check, cases, models, some, good | st.lists(_ANY, max_size=2) | _ANY, _ARGUMENTS)
    print(json.dumps(outcomes))
    assert _enough(outcomes["refused"], cases, 0.7)  # 0.98 of 600
    assert outcomes["accepted"]  # always the simplest
