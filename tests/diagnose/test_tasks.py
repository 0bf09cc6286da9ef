"""Tasks against formulas in plain NumPy, and draws of a posterior that is two points."""

import flax.linen as nn
import numpy as np
import pytest

from dropbn.diagnose import gap, tasks, uncertainty
from dropbn.errors import DropbnError

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 2, (7, 3)).astype(np.float32)
CLASSES = np.array([0, 2, 1, 1, 0, 2, 2])


def _sigmoid(z):
    return 1 / (1 + np.exp(-np.float64(z)))


def _cross_entropy(logits, classes):
    """-log p of each row's class, one by one."""
    rows = zip(np.float64(logits), classes, strict=True)
    return np.array([np.log(np.exp(row).sum()) - row[c] for row, c in rows])


def _binary_entropy(logits, labels):
    return -np.where(labels, np.log(_sigmoid(logits)), np.log(_sigmoid(-np.float64(logits))))


def test_classify():
    wanted = {"loss": _cross_entropy(LOGITS, CLASSES), "correct": LOGITS.argmax(-1) == CLASSES}
    for labels in (CLASSES, CLASSES.astype(np.uint8), np.eye(3)[CLASSES], np.eye(3, dtype=int)[CLASSES]):
        found = tasks.TASKS["classify"].score(LOGITS, labels)
        np.testing.assert_allclose(found["loss"], wanted["loss"])
        np.testing.assert_array_equal(found["correct"], wanted["correct"])
    np.testing.assert_allclose(tasks.softmax(LOGITS + 1000), tasks.softmax(LOGITS), rtol=1e-4)


def test_classify_of_pixels_and_tokens_is_a_mean_of_an_example():
    for shape in ((7, 4), (7, 4, 5)):
        logits, labels = RNG.normal(size=(*shape, 3)), RNG.integers(0, 3, shape)
        found = tasks.TASKS["classify"].score(logits, labels)
        for i in range(7):
            loss = _cross_entropy(logits[i].reshape(-1, 3), labels[i].reshape(-1))
            assert found["loss"][i] == pytest.approx(loss.mean())
            assert found["correct"][i] == pytest.approx((logits[i].argmax(-1) == labels[i]).mean())
        one_hot = tasks.TASKS["classify"].score(logits, np.eye(3)[labels])
        np.testing.assert_allclose(one_hot["loss"], found["loss"])


def test_binary_in_either_shape():
    logits, labels = LOGITS[:, 0], CLASSES > 1
    for z in (logits, logits[:, None]):
        for y in (labels, labels[:, None], labels.astype(np.float32)):
            found = tasks.TASKS["binary"].score(z, y)
            np.testing.assert_allclose(found["loss"], _binary_entropy(logits, labels))
            np.testing.assert_array_equal(found["correct"], (logits > 0) == labels)
    p = np.stack([_sigmoid(-logits), _sigmoid(logits)], -1)
    np.testing.assert_allclose(tasks.TASKS["binary"].predict(logits[:, None]), p)


def test_multilabel_is_a_mean_over_labels():
    labels = RNG.integers(0, 2, LOGITS.shape)
    found = tasks.TASKS["multilabel"].score(LOGITS, labels)
    np.testing.assert_allclose(found["loss"], _binary_entropy(LOGITS, labels).mean(-1))
    np.testing.assert_allclose(found["correct"], ((LOGITS > 0) == labels).mean(-1))


def test_regress_has_a_loss_and_nothing_correct():
    for shape in ((7,), (7, 1), (7, 2, 3)):
        values, labels = RNG.normal(size=shape), RNG.normal(size=shape)
        found = tasks.TASKS["regress"].score(values, labels)
        squares = np.square(values - labels).reshape(7, -1)
        np.testing.assert_allclose(found["loss"], squares.mean(-1))
        assert "correct" not in found
    flat = tasks.TASKS["regress"].score(LOGITS[:, :1], LOGITS[:, 1])
    np.testing.assert_allclose(flat["loss"], np.square(np.float64(LOGITS[:, 0]) - LOGITS[:, 1]))


@pytest.mark.parametrize("name", tasks.TASKS)
def test_averaged_predictions_score_as_they_do(name):
    outputs = LOGITS[:, 0] if name == "binary" else LOGITS
    labels = {"binary": CLASSES > 1, "multilabel": LOGITS > 1, "regress": LOGITS + 1}.get(name, CLASSES)
    task = tasks.TASKS[name]
    back = task.invert(task.predict(outputs))
    found, wanted = task.score(back, labels), task.score(outputs, labels)
    for key in wanted:
        np.testing.assert_allclose(found[key], wanted[key], rtol=1e-6)


DECIDED = [
    ((7, 3), CLASSES, "classify"),
    ((7, 3), np.eye(3)[CLASSES], "classify"),
    ((7, 4, 3), RNG.integers(0, 3, (7, 4)), "classify"),
    ((7, 4, 4, 2), RNG.integers(0, 2, (7, 4, 4)), "classify"),
    ((7, 3), np.array([[1, 1, 0]] * 7), "multilabel"),
    ((7, 3), np.zeros((7, 3)), "multilabel"),
    ((7,), CLASSES > 1, "binary"),
    ((7, 1), (CLASSES > 1).astype(int), "binary"),
    ((7, 1), (CLASSES > 1).astype(int)[:, None], "binary"),
    ((7,), LOGITS[:, 0], "regress"),
    ((7, 1), LOGITS[:, 0], "regress"),
    ((7, 3), LOGITS, "regress"),
    ((7, 3), None, "classify"),
]


@pytest.mark.parametrize(("shape", "labels", "name"), DECIDED)
def test_the_task_that_outputs_and_labels_decide(shape, labels, name):
    assert tasks.find(None, np.zeros(shape, np.float32), labels) is tasks.TASKS[name]


UNDECIDED = [
    ((7,), CLASSES),  # Classes, and one output: counts, or an ordinal?
    ((7,), (CLASSES > 1).astype(np.float32)),  # 0.0 and 1.0: a probability, or a value?
    ((7, 1), None),
    ((7, 4, 3), None),
    ((7, 3), RNG.integers(0, 3, (7, 4))),
    ((7, 3), LOGITS[:, 0]),
]


@pytest.mark.parametrize(("shape", "labels"), UNDECIDED)
def test_what_does_not_decide_is_asked_for(shape, labels):
    outputs = np.zeros(shape, np.float32)
    with pytest.raises(DropbnError, match="do not tell what the model is for: give task=") as refusal:
        tasks.find(None, outputs, labels)
    assert f"Outputs of shape {shape} and" in str(refusal.value)
    assert tasks.find("regress", outputs, labels) is tasks.TASKS["regress"]


MISFITS = [
    ("classify", LOGITS, CLASSES + 1),
    ("classify", LOGITS, CLASSES + 0.5),
    ("classify", LOGITS, CLASSES[:5]),
    ("binary", LOGITS, CLASSES > 1),
    ("binary", LOGITS[:, 0], CLASSES),
    ("multilabel", LOGITS, CLASSES),
    ("regress", LOGITS, CLASSES),
]


@pytest.mark.parametrize(("name", "outputs", "labels"), MISFITS)
def test_misfits_are_refused(name, outputs, labels):
    shapes = f"Outputs of shape {outputs.shape} and labels of shape {labels.shape}"
    with pytest.raises(DropbnError, match=f"do not fit task='{name}'") as refusal:
        tasks.TASKS[name].score(outputs, labels)
    assert str(refusal.value).startswith(shapes)


def test_other_refusals():
    with pytest.raises(DropbnError, match="Unknown task 'segment'"):
        tasks.find("segment", LOGITS, CLASSES)
    with pytest.raises(DropbnError, match="wants one logit for each example"):
        tasks.TASKS["binary"].predict(LOGITS)
    for name, task in tasks.TASKS.items():
        outputs = np.full((7, 1) if name == "binary" else (7, 3), np.nan)
        with pytest.raises(DropbnError, match="are not finite"):
            task.predict(outputs)


class Coin(nn.Module):
    """Each logit or value is 4 or 0, as its unit falls."""

    outputs: int

    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dropout(0.5)(2 * x[:, : self.outputs], deterministic=not train)


NUMBER, DRAWS = 300, 40
COINS = np.ones((NUMBER, 2), np.float32)


def _sampled(model, **options):
    return uncertainty.sample(model, {}, [COINS[:200], COINS[200:]], num_samples=DRAWS, **options)


def _entropy(p):
    return -(p * np.log(p) + (1 - p) * np.log(1 - p))


@pytest.mark.parametrize(("outputs", "task"), [(1, "binary"), (2, "multilabel")])
def test_draws_of_logits_of_two_classes(outputs, task):
    """A probability is sigmoid(4) or 1/2, by a fair coin for each draw."""
    found = _sampled(Coin(outputs), task=task)
    sure = _sigmoid(4)
    mean, spread = (sure + 0.5) / 2, (sure - 0.5) / 2
    shape = (NUMBER, 2) if task == "binary" else (NUMBER, outputs, 2)
    assert found.mean.shape == found.spread.shape == shape
    assert found.mean[..., 1].mean() == pytest.approx(mean, abs=5 * spread / (NUMBER * DRAWS) ** 0.5)
    np.testing.assert_allclose(found.mean.sum(-1), 1)
    # The variance within T draws is (1 - 1 / T) of the whole.
    assert np.square(found.spread).mean() == pytest.approx(spread**2 * (1 - 1 / DRAWS), rel=0.03)
    information = _entropy(mean) - (_entropy(sure) + np.log(2)) / 2
    assert np.mean([row["mutual_information"] for row in found.rows]) == pytest.approx(information, abs=0.01)
    assert {row["prediction"] for row in found.rows} == ({1} if task == "binary" else {None})


def test_draws_of_values():
    """A value is 4 or 0: mean 2, variance 4."""
    for outputs in (1, 2):
        found = _sampled(Coin(outputs), task="regress")
        number = NUMBER * DRAWS * outputs
        assert found.mean.shape == (NUMBER, outputs)
        assert found.mean.mean() == pytest.approx(2, abs=5 * 2 / number**0.5)
        assert np.square(found.spread).mean() == pytest.approx(4 * (1 - 1 / DRAWS), rel=0.03)
        for row, mean, spread in zip(found.rows, found.mean, found.spread, strict=True):
            assert row["prediction"] == (pytest.approx(mean[0]) if outputs == 1 else None)
            assert row["variance"] == pytest.approx(np.square(spread).mean())
            assert row["spread"] == pytest.approx(row["variance"] ** 0.5)
        assert found.most_uncertain(1)[0]["variance"] == max(row["variance"] for row in found.rows)
        with pytest.raises(DropbnError, match="A regression has no entropy to plot"):
            found.plot()


class Inflated(nn.Module):
    """A value that the variance shift of its BN halves (rate 0.75): a regression with a known gap."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dropout(0.75)(x, deterministic=not train)
        x = nn.BatchNorm(use_bias=False, use_scale=False, name="bn")(x, use_running_average=not train)
        return 3 * x.mean(-1)


def test_the_gap_of_a_regression_is_in_loss():
    """E[x^2] = 1 and 4 with the dropout: in test mode the output is 3/2, recalibrated it is 3."""
    signs = np.where(np.arange(400) % 2, 1.0, -1.0)
    x = np.repeat(signs[:, None], 600, -1).astype(np.float32)
    batches = [
        (part, (3 * y).astype(np.float32)) for part, y in zip(np.split(x, 4), np.split(signs, 4), strict=True)
    ]
    variables = {"batch_stats": {"bn": {"mean": np.zeros(600, "f"), "var": np.full(600, 4, "f")}}}
    found = gap.explain(Inflated(), variables, batches, batches)
    assert {row["accuracy"] for row in found.rows} == {None}
    row = next(row for row in found.rows if list(row.values())[:3] == ["off", "running", "test"])
    assert row["loss"] == pytest.approx(1.5**2, rel=1e-4)
    shift = next(row for row in found.shares.rows if row["cause"] == "variance shift")
    # The converged variance of 100 images is 1 % below 4, and 1 / sqrt of one from 400 is too large.
    assert shift["accuracy"] is None and shift["loss"] == pytest.approx(1.5**2, rel=0.03)
    best = next(row for row in found.remedies.rows if row["remedy"] == "recalibrated statistics")
    assert best["loss"] == pytest.approx(0, abs=1e-6) and best["gain"] == pytest.approx(1.5**2, rel=1e-4)
    assert "loss 2.25 to" in found.advice and found.flips.share is None
