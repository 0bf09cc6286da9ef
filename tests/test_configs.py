"""Every cell of every table builds, with its paper's network and settings."""

import dataclasses
import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base, caffenet, chen2019, hendrycks2016, kim2023, li2018, open_questions, small
from configs import noises as noises_study
from dropbn import data, models
from dropbn.data import sampling
from dropbn.errors import DropbnError
from dropbn.nn import laws, places
from dropbn.train import loop, steps, workdir
from dropbn.train.plan import make_plan

STUDIES = (li2018, kim2023, caffenet, chen2019, hendrycks2016, open_questions, small, noises_study)


CELLS = [
    (study, table, cell["arg"]) for study in STUDIES for table in study.TABLES for cell in study.sweep(table)
]


# One cell of each network at full size; those of 100 layers and more run by -m slow.
NETWORKS = [
    pytest.param(study, arg, marks=[pytest.mark.slow] * (study.get_config(arg).model.depth >= 100))
    for study, arg in {(study, arg.split(",")[0]): (study, arg) for study, _, arg in CELLS}.values()
]


def test_sweeps_are_the_papers_tables():
    sizes = {s.__name__.split(".")[1]: {t: len(s.sweep(t)) for t in s.TABLES} for s in STUDIES}
    assert sizes["li2018"] == {"table3": 16, "table4": 40, "table5": 6, "table6": 40, "figure4": 80}
    assert sizes["kim2023"] == {
        "table1": 36,
        "table2": 8,
        "table3": 8,
        "table4": 8,
        "table5": 12,
        "table6": 12,
        "supplement1": 8,
        "supplement_g": 4,
    }
    assert sum(sizes["caffenet"].values()) == 44 and sizes["hendrycks2016"] == {"vgg": 2, "table2": 4}
    assert sizes["chen2019"] == {"orders": 16}
    assert all(number >= 2 for number in sizes["open_questions"].values())
    assert sizes["open_questions"]["all"] == 44
    assert sizes["small"] == {"widths": 4, "widths_wrn": 3, "digits": 17, "digits_few": 25, "cifar10": 12}
    assert sizes["noises"] == {"digits": 1 + 6 * 7}
    # The bars of Fig. 4 at drop 0.5 are Table 3 within 0.01.
    bars = {cell["arg"]: cell["paper"] for cell in li2018.sweep("figure4")}
    for cell in li2018.sweep("table3"):
        assert bars[cell["arg"]] == pytest.approx(cell["paper"], abs=0.0101)
    by_arg = {cell["arg"]: cell["paper"] for cell in li2018.sweep("table3")}
    assert by_arg["wrn28_10,cifar100,place=b,rate=0.5"] == 19.48
    by_arg = {cell["arg"]: cell["paper"] for cell in kim2023.sweep("table1")}
    assert by_arg["preresnet110,cifar100,place=P0"] == 18.3467


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.__name__)
def test_every_cell_says_where_its_noise_is(study):
    for _, _, arg in (cell for cell in CELLS if cell[0] is study):
        config = study.get_config(arg)
        config.model.num_classes = config.model.num_classes or 10
        architecture = models.resolve(config.model)
        block, head, sections = architecture.block, architecture.head, architecture.sections
        noises = sum(section.order.count("drop") for section in sections)
        if study in (li2018, kim2023):
            place = config.model.place
            parts = place.split("+")
            assert block.count("drop") == sum(part in places.BRANCH_PLACES for part in parts), arg
            assert head.count("drop") == sum(part in places.HEAD_PLACES for part in parts), arg
            assert (noises > 0) == ("place" in arg), arg
        if study is noises_study and noises:
            assert laws.of_config(config.model.noise).s2 in (None, pytest.approx(0.25, rel=1e-7)), arg
        assert noises or not laws.of_config(config.model.noise).amount, arg
        if study is caffenet:
            norms = sum(section.order.count("bn") for section in sections)
            assert ("rate=0" in arg.split(",")) == (laws.of_config(config.model.noise).amount == 0), arg
            assert (norms > 0) == ("bn=" in arg) and noises == (1 if "googlenet" in arg else 2), arg


@pytest.mark.parametrize(("study", "arg"), NETWORKS, ids=lambda v: v if isinstance(v, str) else "")
def test_every_network_builds(study, arg):
    """Every network at full size on images of its size; places change no parameter (see test_models)."""
    config = study.get_config(arg)
    config.model.num_classes = config.model.num_classes or 10
    size = config.data.image_size or (8 if study is open_questions else 32)
    total = models.describe(config.model, (size, size, 3)).rows[-1]
    assert total["parameters"] > 1000


def test_settings_are_the_papers():
    config = li2018.get_config("wrn28_10,cifar100,place=b,beta=0.1,seed=3")
    assert (config.model.noise.kind, config.model.noise.beta, config.model.place) == ("uout", 0.1, "b")
    assert (config.seed, config.batch_size, config.duration) == (3, 128, "200 epochs")
    optimizer = config.optimizer
    assert optimizer.decay_at == ("60 epochs", "120 epochs", "160 epochs")
    assert (optimizer.schedule, optimizer.decay_factor, optimizer.weight_decay) == ("step", 0.2, 5e-4)
    assert (optimizer.learning_rate, optimizer.momentum, optimizer.nesterov) == (0.1, 0.9, False)
    assert li2018.get_config("densenet_bc,cifar10").batch_size == 64
    config = kim2023.get_config("preresnet110,cifar100,place=P6")
    assert (config.model.noise.kind, config.model.noise.rate) == ("dropout", 0.2)
    assert config.duration == "164 epochs" and config.optimizer.weight_decay == 1e-4
    assert not config.optimizer.nesterov and config.model.init == "he_fan_out"
    inits = {
        name: kim2023.get_config(f"{name},imagenet2012").model.init
        for name in ("efficientnet_b0", "densenet169")
    }
    assert inits == {"efficientnet_b0": "timm", "densenet169": "he_fan_in"}
    # 1e-4 and 5e-4 times the sum of squares, whose gradient is twice the weight.
    for network, decay in (("densenet100", 1e-4), ("vgg", 5e-4)):
        optimizer = hendrycks2016.get_config(f"{network},cifar10").optimizer
        assert (optimizer.weight_decay, optimizer.nesterov) == (2 * decay, True)


@pytest.mark.parametrize(
    ("study", "network", "parameters"),
    [
        (li2018, "preresnet110", 1_703_258),
        (li2018, "resnext29", 34_426_698),
        (li2018, "wrn28_10", 36_479_194),
        (li2018, "densenet_bc", 769_162),
        (kim2023, "preresnet110", 1_730_522),
        (kim2023, "resnet110", 1_730_714),
        # The convolutions of VGG-16, a hidden layer of 512 and a classifier.
        (hendrycks2016, "vgg", 14_714_688 + 512 * 513 + 513 * 10),
        (hendrycks2016, "densenet40", 1_019_722),
    ],
)
def test_networks_are_the_papers(study, network, parameters):
    config = study.get_config(f"{network},cifar10").model
    config.num_classes = 10
    assert models.describe(config).rows[-1]["parameters"] == parameters


def test_a_quick_cell_runs(tmp_path):
    config = open_questions.get_config("scale_at,test,quick")
    _, records = loop.train_and_evaluate(config, tmp_path / "run")
    assert [record["step"] for record in records] == [2]
    assert workdir.read_config(tmp_path / "run").model.noise.scale_at == "test"


# One of each kind of network; the others by `pytest -m slow`.
QUICK = [
    (li2018, "densenet_bc,cifar100,place=b,beta=0.5,quick"),
    (open_questions, "pooling,after_avgpool,quick"),
    (open_questions, "nonzero_at_zero,before_sigmoid,quick"),
    (open_questions, "restore_skewed,exact,quick"),
]


SLOW = [
    (kim2023, "preresnet50_elu,cifar10,place=P6+P7,quick"),
    (li2018, "resnext29,cifar10,place=b,beta=0.5,quick"),
    (hendrycks2016, "vgg,cifar10,quick"),
    (kim2023, "resnet110,cifar10,place=G1,quick"),
    (kim2023, "mobilenetv2_140,imagenet2012,place=H1,quick"),
    (li2018, "preresnet110,cifar10,place=a,rate=0.5,quick"),
    (li2018, "wrn28_10,cifar10,place=last,rate=0.2,quick"),
    (li2018, "preresnet200,imagenet2012,place=last,rate=0.2,quick"),
    (li2018, "resnext101,imagenet2012,place=last,rate=0.2,quick"),
    (li2018, "senet154,imagenet2012,place=last,rate=0.2,quick"),
    (kim2023, "preresnet50,cifar10,place=P0,quick"),
    (kim2023, "resnetv2_50,caltech101,place=H4,quick"),
    (kim2023, "efficientnet_b0,imagenet2012,place=H2,quick"),
    (kim2023, "resnet50_imagenet,imagenet2012,place=H5,quick"),
    (kim2023, "densenet169,imagenet2012,place=H3,quick"),
    (chen2019, "preresnet50,cifar10,order=conv_relu_ic,quick"),
    (caffenet, "caffenet_lrn,imagenet2012,bn=after,affine,activation=maxout,quick"),
    (caffenet, "googlenet,imagenet2012,bn=before,activation=rrelu,rate=0,quick"),
    (small, "preresnet20,cifar10,place=a,rate=0.5,quick"),
    (small, "preresnet8,digits,place=ic,quick"),
]


@pytest.mark.parametrize(
    ("study", "arg"),
    [*QUICK, *(pytest.param(*cell, marks=pytest.mark.slow) for cell in SLOW)],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_a_quick_cell_takes_two_steps(study, arg):
    config = study.get_config(arg)
    dataset = data.load(config.data)
    plan = make_plan(config, dataset)
    shape = dataset.train.image_shape
    variables = jax.eval_shape(lambda: plan.model.init(jax.random.key(0), jnp.zeros((1, *shape))))
    rng = np.random.default_rng(0)

    def fill(path, leaf):  # Cheaper than init, which compiles every layer.
        spread = (1 / np.prod(leaf.shape[:-1])) ** 0.5 if path[-1].key == "kernel" else 0.0
        ones = path[-1].key in ("scale", "var")
        return np.float32(rng.normal(0, spread, leaf.shape) + ones)

    variables = jax.tree_util.tree_map_with_path(fill, variables)
    params, stats = variables["params"], variables.get("batch_stats", {})
    state = steps.TrainState(jnp.int32(0), params, stats, jax.jit(plan.tx.init)(params))
    architecture = plan.architecture
    step = jax.jit(
        functools.partial(
            steps.train_step,
            build=lambda hyper: models.create(dataclasses.replace(architecture, amount=hyper.amount)),
            tx=plan.tx,
            task=plan.task,
        )
    )
    part = dataset.plain(config.batch_size)
    images = sampling.normalize(part.images, dataset.mean, dataset.std)
    hyper = steps.Hyper(0, architecture.amount, 1.0)
    batch = {"image": images, "label": part.labels}
    first, _ = step(state, batch, hyper)
    second, sums = step(first, batch, hyper)
    _, other_noise = step(first, batch, hyper.replace(seed=1))
    assert second.step == 2 and np.isfinite(sums["loss"]) and sums["loss"] != other_noise["loss"]
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), params, second.params)
    assert np.mean(jax.tree.leaves(moved)) > 0.9, moved


def test_a_sparse_autoencoder_learns_and_reports_its_penalty(tmp_path):
    config = open_questions.get_config("sparse_autoencoder,zero")
    config.duration = "3 epochs"
    _, records = loop.train_and_evaluate(config, tmp_path / "run")
    assert records[-1]["train/penalty"] < records[0]["train/penalty"]
    assert records[-1]["test/accuracy"] > 0.4  # of the variance; the mean image explains none
    assert records[-1]["test/accuracy"] == pytest.approx(1 - records[-1]["test/loss"], abs=1e-6)


@pytest.mark.parametrize(
    ("study", "arg", "message"),
    [
        (caffenet, "caffenet,imagenet2012,place=a", "stands after fc6 and fc7"),
        (caffenet, "caffenet,imagenet2012,bn=afer", "Did you mean 'after'"),
        (chen2019, "preresnet50,cifar10,order=ic", "Unknown order 'ic'"),
        (open_questions, "bn_scales,one", "Did you mean 'bn_scale'"),
        (open_questions, "bn_scale,two", "the arms of bn_scale are one, sqrt2"),
        (chen2019, "preresnet50,cifar10,place=ic", "Unknown word 'place=ic'"),
        (open_questions, "bn_scale,one,rate=0.3", "Unknown word 'rate=0.3'"),
    ],
)
def test_words_that_mean_nothing_to_a_study(study, arg, message):
    with pytest.raises(DropbnError, match=message):
        study.get_config(arg)


def test_every_field_is_read():
    root = pathlib.Path(__file__).parent.parent
    code = "\n".join(file.read_text() for file in [*root.glob("dropbn/**/*.py"), root / "train.py"])
    for field in base.get_config().to_dict() | {
        f"{name}.{key}": value
        for name, group in base.get_config().to_dict().items()
        if isinstance(group, dict)
        for key, value in group.items()
    }:
        name = field.split(".")[-1]
        assert re.search(rf"\.{name}\b", code), f"config.{field} is read nowhere"


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.__name__)
def test_a_table_that_does_not_exist(study):
    with pytest.raises(DropbnError, match=r"Unknown (table|question) 'tabel3'"):
        study.sweep("tabel3")
    with pytest.raises(DropbnError, match=r"Unknown (table|question) 'tabel3'"):
        study.claims("tabel3")


def test_small_cells_are_the_papers_noises():
    config = small.get_config("preresnet8,digits,place=P4")
    assert config.model.noise.rate == 0.2 and config.duration == "20 epochs"
    config = small.get_config("preresnet20,cifar10,place=b,beta=0.5")
    assert (config.model.noise.kind, config.model.noise.rate, config.model.noise.beta) == ("uout", 0, 0.5)
    assert config.data.train_examples == 10_000 and config.data.flip and config.data.crop_padding == 4
    values = {cell["arg"]: cell for table in small.TABLES for cell in small.sweep(table)}
    for column, accuracy in (("", 94.03), (",place=P0", 70.9433), (",place=P7", 94.2667)):
        assert values[f"preresnet8,digits{column}"]["paper"] == accuracy
    assert values["preresnet8,digits,place=a,rate=0.5"]["paper"] is None
    errors = {cell["arg"]: cell for table in ("table4", "table3") for cell in li2018.sweep(table)}
    for column in ("", ",place=a,rate=0.5", ",place=b,rate=0.5"):
        cell, error = values[f"preresnet20,cifar10{column}"], errors[f"preresnet110,cifar10{column}"]
        assert cell["paper"] == pytest.approx(100 - error["paper"])
        assert (cell["adjusted"] is None) == (error["adjusted"] is None)
        if cell["adjusted"]:
            assert cell["adjusted"] == pytest.approx(100 - error["adjusted"])


def test_adjusted_errors_are_the_papers():
    """Table 3's columns add up to 21.40, 18.70, 92.49 and 87.36; adjusting improves each of the 16."""
    cells = li2018.sweep("table3")
    for dataset, place, total in (
        ("cifar10", "a", 21.40),
        ("cifar10", "b", 18.70),
        ("cifar100", "a", 92.49),
        ("cifar100", "b", 87.36),
    ):
        column = [cell["adjusted"] for cell in cells if f"{dataset},place={place}," in cell["arg"]]
        assert len(column) == 4 and sum(column) == pytest.approx(total)
    assert all(cell["adjusted"] < cell["paper"] for cell in cells)
    assert [cell["adjusted"] for cell in hendrycks2016.sweep("table2")] == [1.85, 5.38, 22.17, 22.48]
    others = [cell for table in li2018.TABLES if table != "table3" for cell in li2018.sweep(table)]
    assert {cell["adjusted"] for cell in others} == {None}
