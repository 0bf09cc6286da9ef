"""The figures of a study: what their lines, bars and markers stand at, ours and the papers'."""

import numpy as np
import pytest

from configs import caffenet, kim2023, li2018, open_questions, small
from dropbn import plots
from dropbn.study import claims, figures, finished_runs, li2018_figures, papers, placements, verdicts
from dropbn.study.finished_runs import Cell


def member(seed=0, accuracy=0.5, ratios=(), weights=(), records=(), **others):
    rows = [{"layer": f"stage1_block{i}/bn1", "ratio": ratio} for i, ratio in enumerate(ratios)]
    summary = {"accuracy": accuracy, "shift": rows, "weights": list(weights), **others}
    return finished_runs.member(seed, list(records), summary)


def cell(study, arg, *members, paper=None):
    return Cell(arg, study.get_config(arg).to_dict(), paper, list(members) or [member()])


def digits(words, *members, paper=None):
    return cell(small, f"preresnet8,digits{words}", *members, paper=paper)


def drawn(axes, of_the_paper=False):
    """The data of the lines that are ours, or the paper's, by color or in order."""
    return [line.get_xydata() for line in axes.lines if (line.get_gid() == "paper") is of_the_paper]


def curve(axes, number):
    """The y of our number-th curve."""
    return drawn(axes)[number][:, 1].tolist()


def bars(axes):
    """x of the middle -> where a bar ends."""
    return {
        round(patch.get_x() + patch.get_width() / 2, 6): patch.get_y() + patch.get_height()
        for patch in axes.patches
    }


def whiskers(axes):
    """x -> (lower end, upper end)."""
    segments = [
        s for lines in axes.collections if hasattr(lines, "get_segments") for s in lines.get_segments()
    ]
    return {round(s[0][0], 6): (s[0][1], s[1][1]) for s in segments if len(s) == 2 and np.isfinite(s).all()}


def markers(axes):
    """x -> y of the paper's values."""
    return {round(x, 6): y for data in drawn(axes, True) for x, y in data}


def titles(figure):
    return [axes.get_title(loc="left") for axes in figure.axes]


# Shift curves, Li et al.'s Figures 1 and 4.


def test_shift_is_the_mean_over_seeds_of_the_larger_of_ratio_and_inverse():
    noisy = digits(",place=a,rate=0.5", member(0, ratios=[0.5, 1.0]), member(1, ratios=[0.25, 1.25]))
    figure = figures.shift_curves([digits("", member(ratios=[1.0, 0.8])), noisy])
    ours, paper = figure.axes
    assert titles(figure) == ["(a) before the last BN", "(a) before the last BN, Li et al."]
    assert curve(ours, 0) == [1.0, 1.25]  # no noise
    assert curve(ours, 1) == [3.0, 1.125]  # the means of 2 and 4, of 1 and 1.25
    band = ours.collections[1].get_paths()[0].vertices
    assert {tuple(point) for point in band} >= {(0, 2), (0, 4), (1, 1), (1, 1.25)}
    assert paper.get_ylim() == ours.get_ylim()


def test_shift_stands_beside_the_papers_curves_of_the_same_amounts():
    cells = [digits("", member(ratios=[1.0])), digits(",place=a,rate=0.5", member(ratios=[0.5]))]
    _, paper = figures.shift_curves(cells).axes
    without, half = drawn(paper, True)
    assert not drawn(paper)
    assert [round(half[i][1], 2) for i in (2, 5, 8, 11)] == [1.99, 2.22, 2.0, 2.11]
    assert half[:, 1].max() == pytest.approx(2.349, abs=6e-4)  # papers.md, 1.7
    assert np.median(without[:, 1]) == pytest.approx(1.003, abs=6e-4)
    assert half[-1][0] == 162


def test_shift_of_cifar100_stands_beside_cifar100():
    half = cell(li2018, "densenet_bc,cifar100,place=a,rate=0.5", member(ratios=[0.5]))
    _, paper = figures.shift_curves([half]).axes
    assert drawn(paper, True)[0][:, 1].max() == pytest.approx(3.167, abs=6e-4)


def test_shift_by_the_papers_estimator_where_it_was_measured():
    measured = member(ratios=[0.5], shift_li2018=[{"layer": "bn", "ratio": 0.1}])
    ours, _ = figures.shift_curves([digits(",place=b,rate=0.5", measured)]).axes
    assert curve(ours, 0) == [10.0]


def test_positions_of_kim_are_panels_and_two_of_them_are_a_and_b():
    noisy = [digits(f",place=P{i}", member(ratios=[0.9])) for i in (7, 6, 4, 0)]
    figure = figures.shift_curves([digits("", member(ratios=[1.0])), *noisy])
    assert titles(figure) == ["P0", "P4: (a) before the last BN", "P6: (b) before the last weights", "P7"]
    assert not plots.holds_papers(figure)  # which has no dropout 0.2


def test_amounts_of_one_place_share_its_panel_and_uout_has_no_curve_of_the_paper():
    words = (",place=b,rate=0.5", ",place=P6,rate=0.1", ",place=b,beta=0.5")
    figure = figures.shift_curves([digits(w, member(ratios=[0.9])) for w in words])
    ours, paper = figure.axes
    assert len(drawn(ours)) == 3
    assert len(drawn(paper, True)) == 2
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["no noise", "dropout 0.1", "dropout 0.5", "uout 0.5"]


def test_a_shift_far_beyond_the_others_is_on_a_logarithmic_axis():
    cells = [digits("", member(ratios=[1.0])), digits(",place=P0", member(ratios=[0.002]))]
    cells += [digits(",place=P5", member(ratios=[1.01]))]
    p0, p5 = figures.shift_curves(cells).axes
    assert (p0.get_yscale(), p5.get_yscale()) == ("log", "linear")
    assert p0.get_ylim()[0] == 0.9 and p0.get_ylim()[1] > 500
    assert p5.get_ylim() == pytest.approx((0.99, 1.2))  # as the paper's (b)


def test_no_shift_curves_without_noise_or_without_bn():
    assert figures.shift_curves([digits("", member(ratios=[1.0])), digits(",place=a,rate=0")]) is None
    assert figures.shift_curves([digits(",place=a,rate=0.5", member(ratios=[]))]) is None


# Bars of Figure 4.


def test_errors_with_their_intervals_and_the_papers():
    runs = [member(seed, accuracy) for seed, accuracy in enumerate((0.90, 0.92, 0.94))]
    cells = [digits("", member(accuracy=0.95)), digits(",place=a,rate=0.5", *runs)]
    figure = figures.error_bars(cells)
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
    figure = figures.error_bars(cells)
    assert [markers(axes)[0.5] for axes in figure.axes] == [21.08, 19.48]
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()


def test_no_errors_at_rates_that_the_figure_lacks_or_of_other_networks():
    assert figures.error_bars([digits(""), digits(",place=P4")]) is None
    assert figures.error_bars([cell(kim2023, "resnet50,cifar10,place=G1,rate=0.5")]) is None


# Weights, Figure 3.


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
    figure = figures.weights([digits("", member(0, weights=first), member(1, weights=second))])
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
    assert figures.weights([digits(",place=a,rate=0.5", member(weights=rows))]) is None
    assert figures.weights([digits("")]) is None


# Training, Figure 5.


def records(*accuracies):
    return [
        {"epoch": float(epoch), "train/accuracy": train, "train/accuracy_test_mode": test}
        for epoch, (train, test) in enumerate(accuracies, 1)
    ]


def test_training_accuracy_by_share_of_the_training():
    runs = (
        member(0, records=records((0.2, 0.1), (0.6, 0.4), (0.9, 0.7))),
        member(1, records=records((0.4, 0.1), (0.8, 0.2))),  # stopped early
    )
    cells = [digits("", member(records=records((0.5, 0.5), (1.0, 1.0)))), digits(",place=a,rate=0.5", *runs)]
    ours, paper = figures.training_curves(cells).axes
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
    paper = figures.training_curves([half]).axes[1]
    assert [data[-1][1] for data in drawn(paper, True)[2:]] == pytest.approx([train, test], abs=0.06)


def test_training_alone_where_the_paper_has_no_curve():
    half = cell(li2018, "wrn28_10,cifar100,place=a,rate=0.5", member(records=records((0.5, 0.5))))
    figure = figures.training_curves([half])
    assert len(figure.axes) == 1 and not plots.holds_papers(figure)


def test_no_training_without_a_half():
    assert (
        figures.training_curves([digits(""), digits(",place=a,rate=0.3"), digits(",place=b,rate=0.5")])
        is None
    )


# Kim et al.'s positions.


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
    """Which are over images too: three seeds of equal accuracy have none over seeds alone."""

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


# BN before and after the activation.


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


# All of them.


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


def test_draw_nothing(tmp_path):
    assert figures.draw([], tmp_path / "figures") == []


def test_draw_names_files_of_any_dataset(tmp_path):
    noisy = digits(",place=P5", member(ratios=[0.5]))
    noisy.config["data"]["name"] = "folder:/data/my pets"
    assert [figure["file"] for figure in figures.draw([noisy], tmp_path)] == [
        "shift_preresnet8_folder_data_my_pets.png"
    ]


# What a config says.


@pytest.mark.parametrize(
    "study, arg, noise, place, words",
    [
        (small, "preresnet8,digits", placements.NONE, "", "PreResNet-8 on digits"),
        (small, "preresnet8,digits,place=P4", ("dropout", 0.2), "a", "PreResNet-8 on digits"),
        (li2018, "preresnet110,cifar10,place=b,beta=0.1", ("uout", 0.1), "b", "PreResNet-164 on CIFAR-10"),
        (li2018, "wrn28_10,cifar100,place=a,rate=0", placements.NONE, "a", "WRN-28-10 on CIFAR-100"),
        (
            kim2023,
            "preresnet50_bottleneck,cifar10,place=P4",
            ("dropout", 0.2),
            "P4",
            "PreResNet-56 on CIFAR-10",
        ),
        (open_questions, "relu,before", ("dropout", 0.3), "", "LeNet on digits"),
        (open_questions, "both,bn", placements.NONE, "", "LeNet on digits"),
    ],
)
def test_config_in_the_papers_names(study, arg, noise, place, words):
    config = study.get_config(arg).to_dict()
    assert placements.noise(config) == noise
    assert placements.place(config) == place
    assert placements.describe(config) == words


@pytest.mark.parametrize(
    "block, place",
    [
        ("[bn relu conv bn relu conv | conv]", "a"),
        ("{bn relu conv bn relu conv}", "a"),
        ("[bn relu conv bn relu conv bn relu conv]", "P4"),
    ],
)
def test_p4_is_a_in_a_branch_of_two_convolutions(block, place):
    config = small.get_config("preresnet8,digits,place=P4").to_dict()
    config["model"]["block"] = block
    assert placements.place(config) == place


@pytest.mark.parametrize(
    "study, arg, side",
    [
        (caffenet, "caffenet,imagenet2012", "none"),
        (caffenet, "caffenet,imagenet2012,bn=after", "after"),
        (open_questions, "activation,before_sigmoid", "before"),
        (open_questions, "bn_and_pooling,before", None),
        (small, "preresnet8,digits,place=P5", None),
    ],
)
def test_side_of_bn(study, arg, side):
    assert placements.bn_side(study.get_config(arg).to_dict()) == side


def test_the_cell_without_noise_moves_no_bn():
    moved, plain = digits(",place=ic,rate=0"), digits(",place=a,rate=0")
    assert placements.without_noise([moved]) is None
    assert placements.without_noise([moved, plain]) == plain
    assert placements.without_noise([moved, plain, digits("")]).arg == "preresnet8,digits"


def test_every_family_of_li2018_has_its_data():
    for network in li2018.CIFAR_NETWORKS:
        beside = placements.li2018(li2018.get_config(f"{network},cifar100").to_dict())
        assert papers.rows("li2018_figure4", **beside) and beside["dataset"] == "C100"
