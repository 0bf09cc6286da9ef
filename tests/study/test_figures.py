"""The figures of a study: where their bars and markers stand, ours and the papers'."""

import numpy as np
import pytest
from drawn_cells import bars, cell, digits, markers, member, records, whiskers

from configs import caffenet, kim2023, open_questions, small
from dropbn.study import claims, figures, finished_runs, verdicts
from dropbn.study.finished_runs import Cell


def test_positions_are_paired_by_seed():
    plain = digits("", *(member(seed, a, [0.8]) for seed, a in enumerate((0.90, 0.80, 0.70))), paper=93.0)
    p5 = digits(
        ",place=P5", *(member(seed, a, [0.5]) for seed, a in ((1, 0.82), (2, 0.76), (3, 0.1))), paper=93.5
    )
    p0 = digits(",place=P0", member(0, 0.85, [0.9, 0.25]), paper=84.0)
    left, right = figures.positions([p5, plain, p0]).axes
    assert [label.get_text() for label in left.get_xticklabels()] == ["P0", "P5"]
    assert bars(left) == pytest.approx({0: -5.0, 1: 4.0})  # of seed 0; of seeds 1 and 2, 2 and 6 points
    half = 12.7062 * 8**0.5 / 2**0.5  # t of 1 degree of freedom, s = sqrt(8)
    assert whiskers(left)[1] == pytest.approx((4 - half, 4 + half), rel=1e-5)
    assert markers(left) == pytest.approx({0: -9.0, 1: 0.5})
    assert bars(right) == pytest.approx({0: 4.0, 1: 2.0})
    (plain_shift,) = [line for line in right.lines if line.get_label() == "no dropout"]
    assert plain_shift.get_ydata() == pytest.approx([1.25, 1.25])


def test_positions_have_the_intervals_of_their_claims():
    """The intervals are over images too: three seeds of equal accuracy have none over seeds alone."""

    def runs(*rights):
        return [
            member(seed, np.mean(right), correct={"running": finished_runs.pack(np.array(right, bool))})
            for seed, right in enumerate(rights)
        ]

    plain = digits("", *runs(*3 * [[1, 1, 0, 0]]))
    p5, p6 = (digits(f",place=P{i}", *runs([1, 1, 1, 0], [1, 1, 0, 1], [1, 1, 1, 0])) for i in (5, 6))
    left, _ = figures.positions([plain, p5, p6]).axes
    claim = claims.Claim("P5", p5.arg, plain.arg, "accuracy", "")
    [row] = verdicts.judge([claim], [plain, p5])
    assert row["interval"] > 1 and row["over"] == "seeds and images"
    low, high = row["difference"] - row["interval"], row["difference"] + row["interval"]
    assert whiskers(left)[0] == pytest.approx((low, high))


def test_positions_against_errors_turn_the_papers_sign():
    cells = [digits("", paper=5.0), digits(",place=P5", paper=4.0), digits(",place=P6", paper=7.0)]
    assert markers(figures.positions(cells, "error").axes[0]) == {0: 1.0, 1: -2.0}


def test_positions_of_the_table_of_kim():
    cells = [cell(kim2023, row["arg"], paper=row["paper"]) for row in kim2023.sweep("table1")[:9]]
    found = markers(figures.positions(cells).axes[0])
    # The differences that the paper prints, of accuracies that it has rounded.
    assert [found[i] for i in (0, 4, 5)] == pytest.approx([-9.4133, -0.4467, 0.17], abs=1e-4)


def test_positions_are_of_one_amount():
    cells = [digits(""), *(digits(f",place=P{i}") for i in range(3)), digits(",place=P1,rate=0.5")]
    figure = figures.positions(cells)
    assert figure.axes[0].get_xlabel() == "position of dropout 0.2"
    assert len(bars(figure.axes[0])) == 3


def test_no_positions_without_no_dropout_or_with_one():
    assert figures.positions([digits(",place=P0"), digits(",place=P5")]) is None
    assert figures.positions([digits(""), digits(",place=P5")]) is None


def test_bn_before_and_after_in_open_questions():
    accuracies = {"before_relu": 0.9, "after_relu": 0.92, "before_sigmoid": 0.7, "after_sigmoid": 0.8}
    cells = [
        cell(
            open_questions,
            f"activation,{arm}",
            *(member(seed, a + shift) for seed, shift in enumerate((-0.01, 0.01))),
        )
        for arm, a in accuracies.items()
    ]
    figure = figures.bn_places(cells)
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["relu", "sigmoid"]
    assert bars(axes) == pytest.approx({-0.2: 90, 0.2: 92, 0.8: 70, 1.2: 80})
    assert whiskers(axes)[-0.2] == pytest.approx((90 - 12.7062, 90 + 12.7062), rel=1e-5)  # t s / sqrt 2 = t
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["BN before", "BN after"]


def test_bn_places_of_the_benchmark():
    cells = [cell(caffenet, row["arg"], paper=row["paper"]) for row in caffenet.sweep("position")]
    figure = figures.bn_places(cells)
    assert sorted(markers(figure.axes[0]).values()) == [47.1, 47.4, 47.8, 49.3, 49.9]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "no BN",
        "BN before",
        "BN before, scale and bias",
        "BN after",
        "BN after, scale and bias",
        "caffenet-benchmark",
    ]
    assert [y for _, y in sorted(markers(figure.axes[0]).items())] == [47.1, 47.4, 47.8, 49.9, 49.3]
    assert set(markers(figures.bn_places(cells, "error").axes[0]).values()) >= {100 - 47.1}


def test_bn_places_tell_other_words_apart():
    cells = [cell(caffenet, row["arg"], paper=row["paper"]) for row in caffenet.sweep("dropout")]
    (axes,) = figures.bn_places(cells).axes
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        "relu\nrate=0.5",
        "relu\nrate=0.2",
        "relu\nrate=0",
    ]
    assert markers(axes) == {0: 49.9, 1: 52.7, 2: 51.3}


def test_no_bn_places_without_such_places():
    assert figures.bn_places([digits(""), digits(",place=P5")]) is None
    assert (
        figures.bn_places([cell(caffenet, row["arg"]) for row in caffenet.sweep("activation_no_bn")]) is None
    )


def test_draw_writes_what_the_cells_allow_for_each_network_and_dataset(tmp_path):
    cells = [
        digits("", member(0, ratios=[1.0]), member(1, ratios=[1.0])),
        digits(",place=a,rate=0.5", member(0, ratios=[0.5], records=records((0.5, 0.5)))),
        cell(small, "preresnet20,cifar10,place=b,rate=0.5", member(ratios=[0.9])),
        cell(open_questions, "activation,before_relu"),
        cell(open_questions, "activation,after_relu"),
        Cell("preresnet8,digits,place=P5", {}, None, []),
    ]
    found = figures.draw(cells, tmp_path / "figures")
    captions = {figure["file"]: figure["caption"] for figure in found}
    assert set(captions) == {path.name for path in (tmp_path / "figures").iterdir()}
    assert set(captions) == {
        "shift_preresnet8_digits.png",
        "error_preresnet8_digits.png",
        "training_preresnet8_digits.png",
        "shift_preresnet20_cifar10.png",
        "error_preresnet20_cifar10.png",
        "bn_places_activation_digits.png",
    }
    shift = captions["shift_preresnet8_digits.png"]
    assert "PreResNet-8 on digits (seeds: 1 to 2)" in shift
    assert "Li et al. (2018), Fig. 4, PreResNet-110 (bottlenecks) on CIFAR-10" in shift
    assert "caffenet-benchmark" not in captions["bn_places_activation_digits.png"]  # nothing of it is drawn


def test_draw_tells_widths_apart(tmp_path):
    cells = [
        digits(f",width={width},place=b,rate=0.5", member(ratios=[ratio]))
        for width, ratio in ((4, 0.8), (16, 0.7))
    ]
    captions = {figure["file"]: figure["caption"] for figure in figures.draw(cells, tmp_path)}
    assert "PreResNet-8 of width 4 on digits" in captions["shift_preresnet8_digits_width_4.png"]
    assert "PreResNet-8 on digits" in captions["shift_preresnet8_digits_width_16.png"]


def test_draw_nothing(tmp_path):
    assert figures.draw([], tmp_path / "figures") == []


def test_draw_names_files_of_any_dataset(tmp_path):
    noisy = digits(",place=P5", member(ratios=[0.5]))
    noisy.config["data"]["name"] = "folder:/data/my pets"
    assert [figure["file"] for figure in figures.draw([noisy], tmp_path)] == [
        "shift_preresnet8_folder_data_my_pets.png"
    ]
