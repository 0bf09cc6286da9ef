"""Li et al.'s figures of a study: where their lines, bars and markers stand, ours and the paper's."""

import numpy as np
import pytest
from drawn_cells import bars, cell, curve, digits, drawn, markers, member, records, titles, whiskers

from configs import kim2023, li2018
from dropbn import plots
from dropbn.study import li2018_figures


def test_shift_is_the_mean_over_seeds_of_the_larger_of_ratio_and_inverse():
    noisy = digits(",place=a,rate=0.5", member(0, ratios=[0.5, 1.0]), member(1, ratios=[0.25, 1.25]))
    figure = li2018_figures.shift_curves([digits("", member(ratios=[1.0, 0.8])), noisy])
    ours, paper = figure.axes
    assert titles(figure) == ["(a) before the last BN", "(a) before the last BN, Li et al."]
    assert curve(ours, 0) == [1.0, 1.25]  # no noise
    assert curve(ours, 1) == [3.0, 1.125]  # the means of 2 and 4, of 1 and 1.25
    band = ours.collections[1].get_paths()[0].vertices
    assert {tuple(point) for point in band} >= {(0, 2), (0, 4), (1, 1), (1, 1.25)}
    assert paper.get_ylim() == ours.get_ylim()


def test_shift_stands_beside_the_papers_curves_of_the_same_amounts():
    cells = [digits("", member(ratios=[1.0])), digits(",place=a,rate=0.5", member(ratios=[0.5]))]
    _, paper = li2018_figures.shift_curves(cells).axes
    without, half = drawn(paper, True)
    assert not drawn(paper)
    assert [round(half[i][1], 2) for i in (2, 5, 8, 11)] == [1.99, 2.22, 2.0, 2.11]
    assert half[:, 1].max() == pytest.approx(2.349, abs=6e-4)  # papers.md, 1.7
    assert np.median(without[:, 1]) == pytest.approx(1.003, abs=6e-4)
    assert half[-1][0] == 162


def test_shift_of_cifar100_stands_beside_cifar100():
    half = cell(li2018, "densenet_bc,cifar100,place=a,rate=0.5", member(ratios=[0.5]))
    _, paper = li2018_figures.shift_curves([half]).axes
    assert drawn(paper, True)[0][:, 1].max() == pytest.approx(3.167, abs=6e-4)


def test_shift_by_the_papers_estimator_where_it_was_measured():
    measured = member(ratios=[0.5], shift_li2018=[{"layer": "bn", "ratio": 0.1}])
    ours, _ = li2018_figures.shift_curves([digits(",place=b,rate=0.5", measured)]).axes
    assert curve(ours, 0) == [10.0]


def test_positions_of_kim_are_panels_and_two_of_them_are_a_and_b():
    noisy = [digits(f",place=P{i}", member(ratios=[0.9])) for i in (7, 6, 4, 0)]
    figure = li2018_figures.shift_curves([digits("", member(ratios=[1.0])), *noisy])
    assert titles(figure) == ["P0", "P4: (a) before the last BN", "P6: (b) before the last weights", "P7"]
    assert not plots.holds_papers(figure)  # which has no dropout 0.2


def test_amounts_of_one_place_share_its_panel_and_uout_has_no_curve_of_the_paper():
    words = (",place=b,rate=0.5", ",place=P6,rate=0.1", ",place=b,beta=0.5")
    figure = li2018_figures.shift_curves([digits(w, member(ratios=[0.9])) for w in words])
    ours, paper = figure.axes
    assert len(drawn(ours)) == 3
    assert len(drawn(paper, True)) == 2
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["dropout 0.1", "dropout 0.5", "uout 0.5"]  # no curve without noise


def test_a_shift_far_beyond_the_others_is_on_a_logarithmic_axis():
    cells = [digits("", member(ratios=[1.0])), digits(",place=P0", member(ratios=[0.002]))]
    cells += [digits(",place=P5", member(ratios=[1.01]))]
    p0, p5 = li2018_figures.shift_curves(cells).axes
    assert (p0.get_yscale(), p5.get_yscale()) == ("log", "linear")
    assert p0.get_ylim()[0] == 0.9 and p0.get_ylim()[1] > 500
    assert p5.get_ylim() == pytest.approx((0.99, 1.2))  # as the paper's (b)


def test_no_shift_curves_without_noise_or_without_bn():
    assert li2018_figures.shift_curves([digits("", member(ratios=[1.0])), digits(",place=a,rate=0")]) is None
    assert li2018_figures.shift_curves([digits(",place=a,rate=0.5", member(ratios=[]))]) is None


def test_errors_with_their_intervals_and_the_papers():
    runs = [member(seed, accuracy) for seed, accuracy in enumerate((0.90, 0.92, 0.94))]
    cells = [digits("", member(accuracy=0.95)), digits(",place=a,rate=0.5", *runs)]
    figure = li2018_figures.error_bars(cells)
    (axes,) = figure.axes
    assert bars(axes) == pytest.approx({0.0: 5.0, 0.5: 8.0})
    half = 4.302653 * 2 / 3**0.5  # t of 2 degrees of freedom, s = 2 points
    assert whiskers(axes)[0.5] == pytest.approx((8 - half, 8 + half), rel=1e-5)
    assert 0.0 not in whiskers(axes)  # one seed has none
    expected = dict(
        zip((0.0, 0.1, 0.3, 0.5, 0.7), li2018.TABLES["figure4"]["paper"]["cifar10"][0][:5], strict=True)
    )
    assert markers(axes) == expected


def test_errors_of_both_places_on_one_scale():
    cells = [cell(li2018, f"wrn28_10,cifar100,place={place},rate=0.5") for place in "ab"]
    figure = li2018_figures.error_bars(cells)
    assert [markers(axes)[0.5] for axes in figure.axes] == [21.08, 19.48]
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()


def test_no_errors_at_rates_that_the_figure_lacks_or_of_other_networks():
    assert li2018_figures.error_bars([digits(""), digits(",place=P4")]) is None
    assert li2018_figures.error_bars([cell(kim2023, "resnet50,cifar10,place=G1,rate=0.5")]) is None


def weight_rows(*layers):
    return [{"layer": name, "fan_in": d, "cos2": cos2, "d_cos2": d * cos2} for name, d, cos2 in layers]


def test_weights_are_in_network_order_without_the_classifier():
    first = weight_rows(
        ("head/dense1", 64, 0.9),
        ("stage10_block1/conv1", 144, 0.04),
        ("stage2_block1/conv1", 144, 0.02),
        ("stem/conv1", 27, 0.01),
    )
    second = [row | {"cos2": row["cos2"] / 2, "d_cos2": row["d_cos2"] / 2} for row in first]
    figure = li2018_figures.weights([digits("", member(0, weights=first), member(1, weights=second))])
    left, right = figure.axes
    assert drawn(left)[0].tolist() == [[0.0, 0.0075], [0.5, 0.015], [1.0, 0.03]]
    assert drawn(right)[0] == pytest.approx(np.array([[27, 27 * 0.0075], [144, 144 * (0.015 + 0.03) / 2]]))
    theirs = {int(d): round(y, 2) for d, y in drawn(right, True)[0]}
    assert theirs[144] == 3.51 and theirs[576] == 3.34  # papers.md, 1.7
    assert drawn(left, True)[0][[0, -1], 0].tolist() == [0, 1]


def test_transitions_follow_their_stage():
    names = ("transition1/conv1", "stage2_block1/conv1", "stage1_block10/conv1", "stage1_block9/conv2")
    found = li2018_figures._convolutions(member(weights=weight_rows(*((name, 9, 0.1) for name in names))))
    assert [row["layer"] for row in found] == [names[3], names[2], names[0], names[1]]


def test_weights_are_of_cells_without_noise():
    rows = weight_rows(("stem/conv1", 27, 0.01))
    assert li2018_figures.weights([digits(",place=a,rate=0.5", member(weights=rows))]) is None
    assert li2018_figures.weights([digits("")]) is None


def test_training_accuracy_by_share_of_the_training():
    runs = (
        member(0, records=records((0.2, 0.1), (0.6, 0.4), (0.9, 0.7))),
        member(1, records=records((0.4, 0.1), (0.8, 0.2))),  # stopped early
    )
    cells = [digits("", member(records=records((0.5, 0.5), (1.0, 1.0)))), digits(",place=a,rate=0.5", *runs)]
    ours, paper = li2018_figures.training_curves(cells).axes
    none_train, none_test, half_train, half_test = drawn(ours)
    assert none_train.tolist() == none_test.tolist() == [[0.5, 50], [1, 100]]
    assert half_train == pytest.approx(np.array([[0.5, 30], [1, 70]]))
    assert half_test == pytest.approx(np.array([[0.5, 10], [1, 30]]))
    assert [line.is_dashed() for line in ours.lines] == [False, True, False, True]
    final = [data[-1].tolist() for data in drawn(paper, True)[2:]]
    assert final == [[1, pytest.approx(98.8, abs=0.06)], [1, pytest.approx(98.5, abs=0.06)]]


@pytest.mark.parametrize("network, train, test", [("preresnet110", 95.3, 82.9), ("densenet_bc", 94.8, 77.4)])
def test_training_of_the_paper_ends_where_the_paper_says(network, train, test):
    half = cell(li2018, f"{network},cifar100,place=a,rate=0.5", member(records=records((0.5, 0.5))))
    paper = li2018_figures.training_curves([half]).axes[1]
    assert [data[-1][1] for data in drawn(paper, True)[2:]] == pytest.approx([train, test], abs=0.06)


def test_training_alone_where_the_paper_has_no_curve():
    half = cell(li2018, "wrn28_10,cifar100,place=a,rate=0.5", member(records=records((0.5, 0.5))))
    figure = li2018_figures.training_curves([half])
    assert len(figure.axes) == 1 and not plots.holds_papers(figure)


def test_no_training_without_a_half():
    assert (
        li2018_figures.training_curves([digits(""), digits(",place=a,rate=0.3"), digits(",place=b,rate=0.5")])
        is None
    )


def test_a_title_too_wide_for_its_figure_is_broken():
    figure = li2018_figures.error_bars([digits(",place=b,rate=0.5")])
    assert figure.get_suptitle().split("\n") == [
        "PreResNet-8 on digits",
        "Li et al.: PreResNet-110 (bottlenecks) on CIFAR-10",
    ]
