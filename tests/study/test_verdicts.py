"""Verdicts against hand calculation, and how often they are wrong in repeated samples."""

import numpy as np
import pytest

from dropbn.errors import DropbnError
from dropbn.study import estimates, finished_runs, verdicts
from dropbn.study.claims import Claim
from dropbn.study.finished_runs import Cell


def _decide(differences, sign, level=0.95):
    return verdicts.decide(estimates.estimate(differences), sign, level=level)


def test_without_a_difference_few_claims_are_decided():
    """2.5 % of 4000 samples about 0 are decided each way, to within 5 sqrt(0.025 0.975 / 4000) = 0.0123."""
    samples = np.random.default_rng(1).normal(0, 1, (4000, 3))
    verdicts = [_decide(sample, 1) for sample in samples]
    for verdict in ("confirmed", "refuted"):
        assert np.mean([v == verdict for v in verdicts]) == pytest.approx(0.025, abs=0.0123)


@pytest.mark.parametrize(
    ("differences", "side"),
    [
        ([1, 2, 3, 4, 5], 1),  # 3 +- 1.96
        ([-1, -2, -3, -4, -5], -1),
        ([-1, 1, 2, 3, 4], 0),  # 1.8 +- 2.776445 sqrt(3.7 / 5) = 2.39
        ([1, 2], 0),  # 1.5 +- 6.35
        ([9, 9.1], 1),  # 9.05 +- 0.64
        ([5], 0),
        ([1, 2, float("nan")], 0),
        # Equal differences: 2^(1 - n) is 0.0625 for five and 0.03125 for six.
        ([0.5] * 2, 0),
        ([0.5] * 5, 0),
        ([0.5] * 6, 1),
        ([-0.5] * 6, -1),
        ([0.1 + 0.2, 0.3, 0.3, 0.3, 0.3], 0),  # equal but for rounding
        ([0.0] * 10, 0),
    ],
)
def test_verdicts_by_hand(differences, side):
    words = {1: ("refuted", "undecided", "confirmed"), 0: ("less", "undecided", "more")}
    for sign, by_side in words.items():
        assert _decide(differences, sign) == by_side[1 + side]
    assert _decide(differences, -1) == words[1][1 - side]


def test_a_higher_level_asks_for_more():
    # 3 +- 4.604095 sqrt(2.5 / 5) = 3.26 at 99 %; equal ones need 2^(1 - n) <= 0.01, eight seeds.
    assert _decide([1, 2, 3, 4, 5], 1, 0.99) == "undecided"
    assert _decide([1] * 7, 1, 0.99) == "undecided"
    assert _decide([1] * 8, 1, 0.99) == "confirmed"


def _cell(arg, **columns):
    """A cell with members 0, 1, 2, ... from lists of what summaries hold; None if a member lacks it."""
    number = max(map(len, columns.values()), default=0)
    members = []
    for seed in range(number):
        summary = {key: values[seed] for key, values in columns.items() if values[seed] is not None}
        records = [{"train/loss": 9.0, "step": 1}, {"train/loss": summary.pop("loss", 1.0), "step": 2}]
        members.append(finished_runs.member(seed, records, summary))
    return Cell(arg, {}, None, members)


def _judge(claim, *cells):
    (row,) = verdicts.judge([claim], cells)
    return row


B_ABOVE_A = Claim("b above a", "b", "a", "accuracy", "a paper", 2.57)


def test_accuracies_are_compared_by_seed_in_points():
    """0.91, 0.92, 0.96 minus 0.90, 0.90, 0.93 is 1, 2, 3 points: 2 +- 4.302653 / sqrt(3)."""
    row = _judge(
        B_ABOVE_A,
        _cell("a", accuracy=[0.90, 0.90, 0.93]),
        _cell("b", accuracy=[0.91, 0.92, 0.96]),
        _cell("c", accuracy=[0.1]),
    )
    assert row == {
        "claim": "b above a",
        "source": "a paper",
        "metric": "accuracy",
        "paper": 2.57,
        "difference": pytest.approx(2),
        "interval": pytest.approx(4.302653 / 3**0.5, abs=1e-6),
        "over": "seeds, images unknown",
        "seeds": 3,
        "se_seeds": pytest.approx(1 / 3**0.5),
        "se_images": None,
        # t = 2 sqrt(3) of 2 degrees of freedom, whose two-sided p is 1 - t / sqrt(2 + t^2).
        "p": pytest.approx(1 - 12**0.5 / 14**0.5),
        "p_adjusted": pytest.approx(1 - 12**0.5 / 14**0.5),
        "p_fdr": pytest.approx(1 - 12**0.5 / 14**0.5),
        "verdict": "undecided",
        "seeds_needed": 4,
        "images_needed": None,
    }


def test_only_seeds_of_both_cells_count():
    """Members are paired by seed, not by rank: seeds 1 and 3 have 5 and 5.1 points."""
    row = _judge(
        B_ABOVE_A,
        _cell("a", accuracy=[None, 0.5, 0.9, 0.8]),
        _cell("b", accuracy=[0.1, 0.55, None, 0.851]),
    )
    assert row["seeds"] == 2 and row["difference"] == pytest.approx(5.05)
    # s = 0.1 / sqrt(2), so 12.706205 * 0.05.
    assert row["interval"] == pytest.approx(0.63531, abs=1e-5) and row["verdict"] == "confirmed"
    late = Cell("b", {}, None, [finished_runs.member(7, [], {"accuracy": 0.5})])
    assert _judge(B_ABOVE_A, _cell("a", accuracy=[0.5, 0.5]), late)["verdict"] == "not run"


def test_one_seed_decides_nothing():
    row = _judge(B_ABOVE_A, _cell("a", accuracy=[0.1]), _cell("b", accuracy=[0.9]))
    assert (row["difference"], row["interval"], row["seeds"]) == (pytest.approx(80), None, 1)
    assert row["verdict"] == "undecided"


@pytest.mark.parametrize(
    "cells",
    [
        (),
        (_cell("a", accuracy=[0.1, 0.2]),),
        (_cell("a", accuracy=[0.1, 0.2]), _cell("b")),
        (_cell("a", accuracy=[0.1, 0.2]), _cell("b", loss=[0.1, 0.2])),
    ],
    ids=["no cells", "no cell", "no member", "no such number"],
)
def test_what_was_not_run(cells):
    row = _judge(B_ABOVE_A, *cells)
    assert row["verdict"] == "not run" and row["seeds"] == 0
    assert row["difference"] is None and row["interval"] is None and row["paper"] == 2.57


def test_a_question_is_answered_by_more_or_less():
    cells = _cell("a", accuracy=[0.5, 0.5, 0.5]), _cell("b", accuracy=[0.60, 0.61, 0.62])
    question = Claim("a against b", "a", "b", "accuracy", "open question", sign=0)
    assert _judge(question, *cells)["verdict"] == "less"
    assert _judge(question._replace(more="b", less="a"), *cells)["verdict"] == "more"
    assert _judge(question._replace(less="a"), *cells)["verdict"] == "undecided"
    assert _judge(question._replace(sign=1), *cells)["verdict"] == "refuted"


def test_one_cell_with_two_metrics():
    cell = _cell(
        "a",
        accuracy=[0.5, 0.6, 0.7, 0.9],
        recalibrated=[{"li2018_torch": share, "li2018": 0.1} for share in (0.61, 0.70, 0.82)]
        + [{"li2018": 0.1}],
    )
    claim = Claim("adjusted", "a", "a", "adjusted_accuracy", "", 2.0, less_metric="accuracy")
    row = _judge(claim, cell)
    assert row["difference"] == pytest.approx(11) and row["verdict"] == "confirmed"  # 11, 10, 12


def _right(arg, *correct, seeds=None, statistics="running"):
    """A cell whose members have these images right, as 0 and 1."""
    key = {"running": "accuracy", "li2018_torch": "recalibrated"}[statistics]
    members = []
    for seed, right in zip(seeds or range(len(correct)), correct, strict=True):
        share = float(np.mean(right))
        summary = {key: share if key == "accuracy" else {statistics: share}}
        summary["correct"] = {statistics: finished_runs.pack(np.array(right, bool))}
        members.append(finished_runs.member(seed, [], summary))
    return Cell(arg, {}, None, members)


def test_accuracies_are_compared_by_seed_and_image():
    a = _right("a", [1, 0, 0, 1], [0, 0, 0, 1], [1, 1, 1, 1], seeds=(0, 1, 5))
    b = _right("b", [1, 1, 1, 0], [1, 0, 1, 1], [0, 0, 0, 0], seeds=(0, 1, 2))
    expected = [[0, 100, 100, -100], [100, 0, 100, 0]]
    np.testing.assert_array_equal(verdicts.paired(b, a, "accuracy"), expected)
    row = _judge(B_ABOVE_A, a, b)
    mean, half = estimates.interval(expected)
    assert (row["difference"], row["interval"], row["seeds"]) == (37.5, half, 2) and mean == 37.5
    assert row["over"] == "seeds and images"
    # Seeds have 25 and 50 points; images 50, 50, 100, -50, whose variance is 11875 / 3.
    assert row["se_seeds"] == pytest.approx(12.5) and row["se_images"] == pytest.approx((11875 / 12) ** 0.5)
    adjusted = _right("b", [0, 1, 1, 0], [1, 1, 1, 1], statistics="li2018_torch")
    np.testing.assert_array_equal(
        verdicts.paired(adjusted, a, "adjusted_accuracy", "accuracy"),
        [[-100, 100, 100, -100], [100, 100, 100, 0]],
    )


@pytest.mark.parametrize(
    "other",
    [
        _cell("b", accuracy=[0.75, 0.75]),
        _right("b", [1, 1, 1, 0, 1, 1, 1, 0], [1, 1, 1, 0, 1, 1, 1, 0]),
        _right("b", [1, 1, 1, 0], [1, 1, 1, 0, 1, 1, 1, 0]),
    ],
    ids=["no images", "other images", "a seed with other images"],
)
def test_without_common_images_accuracies_are_compared_over_seeds(other):
    row = _judge(B_ABOVE_A, _right("a", [1, 0, 1, 0], [0, 0, 1, 0]), other)
    assert row["over"] == "seeds, images unknown" and row["se_images"] is None
    assert row["difference"] == 37.5 and row["interval"] == pytest.approx(12.706205 * 12.5)
    loss = _judge(B_ABOVE_A._replace(metric="loss"), _cell("a", loss=[1, 2]), _cell("b", loss=[1, 3]))
    assert loss["over"] == "seeds"


def _losses(arg, *values):
    return _cell(arg, loss=list(values))


def _above(more, less, **others):
    return Claim(f"{more} above {less}", more, less, "loss", "a paper")._replace(**others)


def test_p_is_adjusted_for_the_claims_with_a_sign_that_were_run():
    cells = [
        _losses("zero", 0, 0, 0),
        _losses("same", 0.00, 0.01, -0.01),
        _losses("b", 1, 1.1, 0.9),
        _losses("c", 1, 1.6, 0.4),
        _losses("twin", 1, 1.6, 0.4),
        _losses("d", 1, 5, -3),
        _losses("one", 7),
    ]
    claimed = [_above(more, "zero") for more in ("b", "c", "twin", "d", "one", "nothing")]
    claimed += [_above("b", "same", sign=0), _above("zero", "c")]
    rows = verdicts.judge(claimed, cells)
    b, c, twin, d, one, nothing, question, turned = rows
    # t is 1 / (s / sqrt(3)) with s = 0.1, 0.6 and 4; of 2 degrees of freedom p = 1 - t / sqrt(2 + t^2).
    p = [1 - t / (2 + t * t) ** 0.5 for t in (3**0.5 / s for s in (0.1, 0.6, 4))]
    assert [row["p"] for row in (b, c, d)] == pytest.approx(p)
    # Of three tests: twin is c by another name, and zero above c is c above zero turned round.
    assert [row["p_adjusted"] for row in (b, c, d)] == pytest.approx([3 * p[0], 2 * p[1], p[2]])
    assert [row["p_fdr"] for row in (b, c, d)] == pytest.approx([3 * p[0], 1.5 * p[1], p[2]])
    for row in (twin, turned):
        assert (row["p"], row["p_adjusted"], row["p_fdr"]) == (c["p"], c["p_adjusted"], c["p_fdr"])
    assert one["p"] is one["p_adjusted"] is nothing["p"] is nothing["p_adjusted"] is None
    assert question["p"] < 0.05 and question["p_adjusted"] is None and question["verdict"] == "more"
    assert [row["verdict"] for row in (b, c, d)] == ["confirmed", "undecided", "undecided"]
    assert c["p"] > 0.05 and 0.03 > b["p_adjusted"] > 0.005


def test_holm_takes_the_largest_so_far():
    """p of 0.01, 0.04, 0.03, 0.005, by hand: 3 * 0.01, 2 * 0.03 twice, 4 * 0.005."""
    holm, fdr = zip(*verdicts._adjusted(dict(enumerate([0.01, 0.04, 0.03, 0.005]))).values(), strict=True)
    assert holm == pytest.approx((0.03, 0.06, 0.06, 0.02)) and fdr == pytest.approx((0.02, 0.04, 0.04, 0.02))


def test_of_many_true_zeros_seldom_any_is_decided():
    """300 tables of 10 claims give 5 % to within 5 sqrt(0.05 0.95 / 300) = 6.3 %; without Holm, 40 %."""
    rng = np.random.default_rng(5)
    claimed = [_above(f"more{i}", f"less{i}") for i in range(10)]
    tables = []
    for _ in range(300):
        cells = [_losses(f"{side}{i}", *rng.normal(size=4)) for side in ("more", "less") for i in range(10)]
        tables.append({row["verdict"] for row in verdicts.judge(claimed, cells)})
    assert 0.003 < np.mean([found != {"undecided"} for found in tables]) < 0.05 + 0.063


@pytest.mark.parametrize(
    ("differences", "paper", "verdict"),
    [
        ([1, 2, 3, 4, 5], 3.5, "confirmed"),  # 3 +- 1.96
        ([1, 2, 3, 4, 5], 5.0, "confirmed, smaller here"),
        ([1, 2, 3, 4, 5], 1.0, "confirmed"),  # larger here
        ([-1, 1, 2, 3, 4], 4.0, "undecided"),  # 1.8 +- 2.39
        ([-1, 1, 2, 3, 4], 4.2, "smaller here"),
        ([-1, 1, 2, 3, 4], None, "undecided"),
        ([-1, -2, -3, -4, -5], 5.0, "refuted"),
        ([0.0] * 5, 5.0, "undecided"),  # Five equal differences have p = 0.0625.
        ([0.0] * 6, 5.0, "smaller here"),
        ([0.5], 5.0, "undecided"),
    ],
)
def test_smaller_than_in_the_paper(differences, paper, verdict):
    found = estimates.estimate(differences)
    assert verdicts.decide(found, 1, paper) == verdict
    turned = estimates.estimate([-d for d in differences])
    assert verdicts.decide(turned, -1, None if paper is None else -paper) == verdict


def test_an_adjusted_p_takes_the_sign_and_leaves_the_size():
    found = estimates.estimate([1, 2, 3, 4, 5])  # p = 0.013
    assert verdicts.decide(found, 1, 4.0, p=0.06) == "undecided"
    assert verdicts.decide(found, 1, 5.0, p=0.06) == "smaller here"


def test_what_is_needed_is_said_of_what_is_undecided():
    rows = verdicts.judge(
        [
            _above("b", "a", paper=paper, sign=sign)
            for paper, sign in ((2.0, 1), (9.0, 1), (None, 1), (2.0, 0))
        ],
        [_losses("a", 0, 0, 0), _losses("b", -1, 0, 1)],
    )
    assert [row["verdict"] for row in rows] == ["undecided", "smaller here", "undecided", "undecided"]
    assert [row["seeds_needed"] for row in rows] == [5, None, None, None]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: _decide([1, 2], 2), "sign of a claim is 1, -1 or 0"),
        (lambda: verdicts.judge([B_ABOVE_A._replace(metric="acuracy")], []), "Did you mean 'accuracy'"),
    ],
    ids=["sign", "metric"],
)
def test_requests_that_are_refused(call, message):
    with pytest.raises(DropbnError, match=message):
        call()
