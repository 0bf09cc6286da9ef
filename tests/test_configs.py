"""Every cell of every table builds, with its paper's network and settings."""

import pathlib
import re

import pytest

from configs import base, kim2023, li2018
from dropbn import models, places, training, workdir
from dropbn.errors import DropbnError

CELLS = [
    (study, table, cell["arg"])
    for study in (li2018, kim2023)
    for table in study.TABLES
    for cell in study.sweep(table)
]


def test_sweeps_are_the_papers_tables():
    assert {(s.__name__, t): len(s.sweep(t)) for s in (li2018, kim2023) for t in s.TABLES} == {
        ("configs.li2018", "table3"): 16,
        ("configs.li2018", "table4"): 40,
        ("configs.li2018", "table6"): 40,
        ("configs.kim2023", "table1"): 36,
        ("configs.kim2023", "table3"): 8,
        ("configs.kim2023", "supplement1"): 8,
    }
    by_arg = {cell["arg"]: cell["paper"] for cell in li2018.sweep("table3")}
    assert by_arg["wrn28_10,cifar100,place=b,rate=0.5"] == 19.48
    by_arg = {cell["arg"]: cell["paper"] for cell in kim2023.sweep("table1")}
    assert by_arg["preresnet110,cifar100,place=P0"] == 18.3467


@pytest.mark.parametrize(("study", "table", "arg"), CELLS, ids=lambda v: v if isinstance(v, str) else "")
def test_every_cell_builds(study, table, arg):
    config = study.get_config(arg)
    assert config.data.name == arg.split(",")[1] and config.data.crop_padding == 4 and config.data.flip
    config.model.num_classes = 10
    block, head = models.orders(config.model)
    place = config.model.place
    assert (block.count("drop"), head.count("drop")) == (
        place in places.BRANCH_PLACES,
        place in places.HEAD_PLACES,
    )
    noises = sum(section.order.count("drop") for section in models.create(config.model).sections)
    assert (noises > 0) == ("place" in arg)


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


@pytest.mark.parametrize(
    ("study", "network", "parameters"),
    [
        (li2018, "preresnet110", 1_703_258),
        (li2018, "resnext29", 34_426_698),
        (li2018, "wrn28_10", 36_479_194),
        (li2018, "densenet_bc", 769_162),
        (kim2023, "preresnet110", 1_730_522),
        (kim2023, "resnet110", 1_730_714),
    ],
)
def test_networks_are_the_papers(study, network, parameters):
    config = study.get_config(f"{network},cifar10").model
    config.num_classes = 10
    assert models.describe(config).rows[-1]["parameters"] == parameters


@pytest.mark.parametrize(
    ("study", "arg"),
    [
        (li2018, "preresnet110,cifar10,place=a,rate=0.5,quick"),
        (li2018, "resnext29,cifar10,place=b,beta=0.5,quick"),
        (li2018, "wrn28_10,cifar10,place=last,rate=0.2,quick"),
        (li2018, "densenet_bc,cifar100,place=b,rate=0.5,quick"),
        (kim2023, "resnet110,cifar10,place=G1,quick"),
        (kim2023, "preresnet50,cifar10,place=P0,quick"),
    ],
)
def test_a_quick_cell_trains(study, arg, tmp_path):
    config = study.get_config(arg)
    _, records = training.train_and_evaluate(config, tmp_path / "run")
    assert [record["step"] for record in records] == [2]
    amount = config.model.noise.beta or config.model.noise.rate
    assert amount > 0 and workdir.read_config(tmp_path / "run").model.place == config.model.place


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("preresnet110", "network,dataset first"),
        ("preresnet111,cifar10", "Did you mean 'preresnet110'"),
        ("preresnet110,cifar10,place=P4", "Unknown place 'P4'"),
        ("preresnet110,cifar10,rat=0.5", "Did you mean 'rate='"),
        ("preresnet110,cifar10,rate=much", "'rate=much' gives no number"),
    ],
)
def test_words_that_mean_nothing(arg, message):
    with pytest.raises(DropbnError, match=message):
        li2018.get_config(arg)


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
