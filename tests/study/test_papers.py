"""The numbers of the papers' figures against the tables of the papers and against each other."""

import doctest
import statistics

import pytest

from configs import li2018
from dropbn.errors import DropbnError
from dropbn.study import papers

NETWORKS = {
    "preresnet110": "PreResNet",
    "resnext29": "ResNeXt",
    "wrn28_10": "WRN",
    "densenet_bc": "DenseNet",
}
DATASETS = {"cifar10": "C10", "cifar100": "C100"}


def shifts(placement, dataset, network, drop):
    found = papers.rows(
        "li2018_figure4", placement=f"Dropout-({placement})", dataset=dataset, network=network, drop=drop
    )
    return [row["shift"] for row in found]


def test_docstring():
    failed, attempted = doctest.testmod(papers)
    assert attempted and not failed


def test_every_file_is_listed_and_has_rows():
    assert all(papers.rows(name) for name in papers.NAMES)


def test_unknown_names_are_refused():
    with pytest.raises(DropbnError, match="Did you mean 'li2018_figure4'"):
        papers.rows("li2018_fig4")
    with pytest.raises(DropbnError, match="Unknown column of li2018_figure5 'rate'"):
        papers.rows("li2018_figure5", rate=0.5)


def test_a_value_that_the_paper_lacks_gives_no_rows():
    assert papers.rows("li2018_figure4", drop=0.2) == []


def test_rows_are_the_callers_own():
    papers.rows("li2018_figure1")[0]["shift"] = 0
    assert papers.rows("li2018_figure1")[0] == {"drop": 0.0, "bn_index": 0.0, "shift": 1.0029}


@pytest.mark.parametrize("drop, median, largest", [(0.0, 1.007, 1.032), (0.5, 1.435, 3.04)])
def test_figure1(drop, median, largest):
    found = papers.rows("li2018_figure1", drop=drop)
    assert [row["bn_index"] for row in found] == list(range(99))
    assert statistics.median(row["shift"] for row in found) == pytest.approx(median, abs=6e-4)
    assert max(row["shift"] for row in found) == pytest.approx(largest, abs=6e-4)


# Of the reading of the figure: medians and maxima over the layers, printed with three decimals.
@pytest.mark.parametrize(
    "placement, dataset, network, drop, median, largest",
    [
        ("a", "C10", "PreResNet", 0.0, 1.003, 1.024),
        ("a", "C10", "PreResNet", 0.5, 1.272, 2.349),
        ("a", "C10", "ResNeXt", 0.7, 1.322, 4.263),
        ("a", "C10", "WRN", 0.3, 1.134, 1.904),
        ("a", "C100", "PreResNet", 0.5, 1.289, 3.046),
        ("a", "C100", "DenseNet", 0.7, 2.049, 4.666),
        ("a", "C100", "WRN", 0.5, 1.310, 2.401),
        ("b", "C10", "PreResNet", 0.1, 1.017, 1.043),
        ("b", "C10", "DenseNet", 0.7, 1.041, 1.134),
        ("b", "C100", "ResNeXt", 0.5, 1.024, 1.290),
        ("b", "C100", "WRN", 0.7, 1.041, 1.085),
        ("b", "C100", "PreResNet", 0.5, 1.055, 1.151),
    ],
)
def test_figure4_by_median_and_maximum(placement, dataset, network, drop, median, largest):
    found = shifts(placement, dataset, network, drop)
    assert statistics.median(found) == pytest.approx(median, abs=6e-4)
    assert max(found) == pytest.approx(largest, abs=6e-4)


@pytest.mark.parametrize(
    "network, layers", [("PreResNet", 163), ("ResNeXt", 31), ("WRN", 25), ("DenseNet", 99)]
)
def test_figure4_ends_at_the_last_layer(network, layers):
    found = papers.rows("li2018_figure4", network=network)
    assert max(row["x"] for row in found) == layers - 1
    assert sum(row["x"] == layers - 1 for row in found) == 2 * 2 * 5  # of every curve


def test_figure4_where_the_axis_cuts():
    cut = [row for row in papers.rows("li2018_figure4") if row["x"] % 1]
    where = {(row["placement"], row["network"], row["drop"]): row["shift"] for row in cut}
    assert where == {
        ("Dropout-(a)", "PreResNet", 0.7): 3.0941,
        ("Dropout-(b)", "PreResNet", 0.5): 1.2094,
        ("Dropout-(b)", "PreResNet", 0.7): 1.2094,
        ("Dropout-(b)", "ResNeXt", 0.7): 1.4494,
    }


def test_dropout_right_before_bn_in_early_layers_is_two():
    found = papers.rows(
        "li2018_figure4", placement="Dropout-(a)", dataset="C10", network="PreResNet", drop=0.5
    )
    shift = {row["x"]: row["shift"] for row in found}
    assert [round(shift[x], 2) for x in (2, 5, 8, 11)] == [1.99, 2.22, 2.0, 2.11]
    assert max(shift[x] for x in (0, 1, 3, 4, 6, 7)) < 1.04


def test_bars_are_those_of_the_config():
    table = li2018.TABLES["figure4"]
    rates = (0.0, 0.1, 0.3, 0.5, 0.7)
    for dataset, values in table["paper"].items():
        for network, row in zip(table["networks"], values, strict=True):
            for placement, expected in (("a", row[:5]), ("b", row[5:])):
                found = papers.rows(
                    "li2018_figure4_errors",
                    placement=f"Dropout-({placement})",
                    dataset=DATASETS[dataset],
                    network=NETWORKS[network],
                )
                assert {r["drop"]: r["error_pct"] for r in found} == dict(zip(rates, expected, strict=True))


@pytest.mark.parametrize(
    "network, dataset, train, test",
    [
        ("PreResNet", "C100", 95.3, 82.9),
        ("DenseNet", "C100", 94.8, 77.4),
        ("PreResNet", "C10", 98.8, 98.5),
        ("DenseNet", "C10", 99.4, 96.6),
    ],
)
def test_figure5_ends_as_the_paper_says(network, dataset, train, test):
    last = {"PreResNet": 163, "DenseNet": 299}[network]
    for mode, expected in (("train", train), ("test", test)):
        final = papers.rows("li2018_figure5", network=network, dataset=dataset, drop=0.5, mode=mode)[-1]
        assert final["epoch"] == last
        assert final["train_acc"] == pytest.approx(expected, abs=0.06)
        without = papers.rows("li2018_figure5", network=network, dataset=dataset, drop=0.0, mode=mode)[-1]
        assert without["train_acc"] >= 99.85


def test_figure3():
    d_cos2 = {
        row["x"]: row["y"]
        for row in papers.rows("li2018_figure3", panel="d cos2 by d", dataset="C10", network="WRN")
    }
    assert {int(d): round(y, 2) for d, y in d_cos2.items()} == {
        16: 1.31,
        27: 0.87,
        144: 7.74,
        160: 3.41,
        320: 2.31,
        1440: 22.74,
        2880: 47.09,
        5760: 129.2,
    }


# Table 1 of the paper: the mean over the layers, as exact as the reading.
@pytest.mark.parametrize(
    "network, dataset, layers, mean",
    [("WRN", "C10", 28, 0.02292), ("ResNeXt", "C100", 31, 0.02468), ("DenseNet", "C10", 99, 0.01538)],
)
def test_figure3_has_the_means_of_table1(network, dataset, layers, mean):
    found = papers.rows("li2018_figure3", panel="cos2 by layer", dataset=dataset, network=network)
    assert [row["x"] for row in found] == list(range(layers))
    assert statistics.mean(row["y"] for row in found) == pytest.approx(mean, abs=1e-4)
