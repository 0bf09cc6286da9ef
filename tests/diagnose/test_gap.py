"""The table against the model itself, and each cause alone in a network made for it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linen_models import Scanned

from dropbn.diagnose import gap, modes, shares
from dropbn.errors import DropbnError

NUMBER = 400


class Energy(nn.Module):
    """Tells whether the mean square of its normalized input is above a threshold."""

    rate: float = 0.5

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dropout(self.rate)(x, deterministic=not train)
        x = nn.BatchNorm(use_bias=False, use_scale=False, name="bn")(x, use_running_average=not train)
        energy = jnp.square(x).mean(-1, keepdims=True)
        return 20 * jnp.concatenate([jnp.ones_like(energy), energy], -1)


def _data(seed, label_noise=0.0):
    """Inputs of energy well below or above 1, four batches."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, NUMBER)
    x = rng.choice([-1, 1], (NUMBER, 300)) * np.where(labels, 1.3, 0.55)[:, None]
    flipped = rng.random(NUMBER) < label_noise
    labels = np.where(flipped, 1 - labels, labels)
    return [(x[i : i + 100].astype(np.float32), labels[i : i + 100]) for i in range(0, NUMBER, 100)]


TRAIN = _data(0)
# E[x^2], which is the variance of test mode; half of that of train mode with dropout 0.5.
ENERGY = np.mean([np.square(x).mean() for x, _ in TRAIN])


def _variables(var):
    return {"batch_stats": {"bn": {"mean": jnp.zeros(300), "var": jnp.full(300, var, jnp.float32)}}}


def _cell(found, *cell):
    return next(row for row in found.rows if (row["noise"], row["batch_norm"], row["data"]) == cell)


def _shares(found):
    return {row["cause"]: row["accuracy"] for row in found.shares.rows}


def test_a_variance_shift_alone():
    found = gap.explain(Energy(), _variables(2 * ENERGY), TRAIN, TRAIN)
    shares = _shares(found)
    # Energies of class 1 are 1.3^2 / (2 ENERGY) < 1 in test mode: all of it is called class 0.
    assert shares["variance shift"] == pytest.approx(np.mean([y.mean() for _, y in TRAIN]), abs=1e-9)
    assert all(abs(share) < 0.02 for cause, share in shares.items() if cause not in _BIG)
    # What repairs it is tested with the remedies, in test_remedies.py.
    lost = next(row for row in found.shares.rows if row["cause"] == "variance shift")
    size = f"{100 * lost['accuracy']:.1f} +- {100 * lost['error']:.1f} points"
    where = "from (off, recalibrated, train) to (off, converged, train)"
    assert f"The largest share of the gap is variance shift: {size} {where}." in found.advice
    assert _cell(found, "off", "recalibrated", "test")["accuracy"] > 0.98


_BIG = {"variance shift", "the whole gap"}


def test_lagging_statistics_alone():
    without_noise = Energy(rate=0.0)
    for model, var in ((without_noise, 3 * ENERGY), (Energy(rate=0.01), 3 * ENERGY)):
        found = gap.explain(model, _variables(var), TRAIN, TRAIN)
        assert max(_shares(found), key=_shares(found).get) in ("lagging statistics", "the whole gap")
        assert "The largest share of the gap is lagging statistics" in found.advice


def test_generalisation_alone():
    found = gap.explain(Energy(rate=0.01), _variables(ENERGY), TRAIN, _data(1, label_noise=0.3))
    shares = _shares(found)
    assert shares["generalisation"] == pytest.approx(0.3, abs=5 * (0.3 * 0.7 / NUMBER) ** 0.5)
    assert found.advice.startswith("No remedy gains more than its error on test images: ")
    assert "The largest share of the gap is generalisation" in found.advice
    row = found.shares.rows[-2]
    test = np.concatenate([y for _, y in _data(1, label_noise=0.3)])
    accuracy = _cell(found, "off", "running", "test")["accuracy"]
    assert row["error"] == pytest.approx((accuracy * (1 - accuracy) / (len(test) - 1)) ** 0.5, rel=1e-6)


def test_small_batch_noise_alone():
    """The classes differ only relative to their batch: remembered statistics cannot tell them apart."""
    x = np.concatenate([x for x, _ in TRAIN])
    labels = np.arange(NUMBER) % 2
    center = np.where(np.arange(NUMBER) // 100 % 2, 4.0, -4.0)[:, None]
    x = (x / np.abs(x) * np.where(labels, 1.3, 0.55)[:, None] + center).astype(np.float32)
    batches = [(x[i : i + 100], labels[i : i + 100]) for i in range(0, NUMBER, 100)]
    found = gap.explain(Energy(rate=0.0), _variables(1.0), batches, batches)
    assert "The largest share of the gap is small-batch noise" in found.advice
    assert _cell(found, "off", "batch", "train")["accuracy"] > 0.98


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(8)(x.reshape(len(x), -1))
        x = nn.Dropout(0.5)(x, deterministic=not train)
        x = nn.relu(nn.BatchNorm(name="bn")(x, use_running_average=not train))
        return nn.Dense(3)(x)


@pytest.fixture(scope="module")
def trained():
    """An untrained net whose labels are what it says in train mode, mostly; images of 3 x 3 pixels."""
    images = np.asarray(jax.random.normal(jax.random.key(0), (90, 3, 3, 1)))
    variables = Net().init(jax.random.key(1), images)
    labels = np.random.default_rng(2).integers(0, 3, 90)
    for i in range(3):
        part = slice(32 * i, 32 * i + 32)
        rngs = {"dropout": jax.random.fold_in(jax.random.key(7), i)}
        logits, _ = modes.apply(
            Net(), variables, images[part], mode=modes.Mode(True, "batch", False), rngs=rngs
        )
        labels[part][:20] = logits.argmax(-1)[:20]
    batches = [(images[i : i + 32], labels[i : i + 32]) for i in (0, 32, 64)]
    before = jax.tree.map(np.array, variables)
    found = gap.explain(Net(), variables, batches, batches[:2], rngs={"dropout": jax.random.key(7)})
    jax.tree.map(np.testing.assert_array_equal, variables, before)
    return variables, batches, found


KEY = jax.random.key(7)


def _by_hand(variables, batches, noise, key=KEY):
    """(logits, labels) of every batch with batch statistics, and the averaged statistics."""
    statistics, outputs = [], []
    for i, (x, labels) in enumerate(batches):
        rngs = {"dropout": jax.random.fold_in(key, i)}
        seen = {}
        logits, _ = modes.apply(
            Net(),
            variables,
            x,
            mode=modes.Mode(noise, "batch", False),
            rngs=rngs,
            observe=lambda norm, h, seen=seen: seen.update(h=np.asarray(h, np.float64)),
        )
        statistics.append((seen["h"].mean(0), seen["h"].var(0)))
        outputs.append((np.asarray(logits, np.float64), labels))
    mean, var = (np.mean([statistic[k] for statistic in statistics], 0) for k in (0, 1))
    return outputs, {"bn": {"mean": jnp.asarray(mean, jnp.float32), "var": jnp.asarray(var, jnp.float32)}}


def _loss_and_accuracy(outputs):
    logits, labels = (np.concatenate(parts) for parts in zip(*outputs, strict=True))
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -log_p[np.arange(len(labels)), labels].mean(), (logits.argmax(-1) == labels).mean()


def test_every_cell_on_training_images_is_the_models_own(trained):
    variables, batches, found = trained
    assert len(found.rows) == 16
    for noise, name in ((False, "off"), (True, "on")):
        cells = {"batch": _by_hand(variables, batches, noise)[0]}
        sources = {"running": variables["batch_stats"], "converged": _by_hand(variables, batches, True)[1]}
        sources["recalibrated"] = _by_hand(variables, batches, False)[1]
        for source, stats in sources.items():
            given = {**variables, "batch_stats": stats}
            mode = modes.Mode(noise, "running", False)
            cells[source] = []
            for i, (x, labels) in enumerate(batches):
                # A batch shorter than the first is padded, and its masks are those of the padded one.
                padded = np.concatenate([x, np.repeat(x[-1:], 32 - len(x), 0)])
                rngs = {"dropout": jax.random.fold_in(jax.random.key(7), i)}
                logits = modes.apply(Net(), given, padded, mode=mode, rngs=rngs)[0][: len(x)]
                cells[source].append((np.asarray(logits, np.float64), labels))
        for source, outputs in cells.items():
            row = _cell(found, name, source, "train")
            loss, accuracy = _loss_and_accuracy(outputs)
            assert row["loss"] == pytest.approx(loss, rel=1e-5)
            assert row["accuracy"] == pytest.approx(accuracy, abs=1e-9)


def test_shares_add_up_and_their_errors_are_of_images_and_of_statistics(trained):
    variables, batches, found = trained
    *causes, whole = found.shares.rows
    absent = ("shared statistics", "augmentation")
    assert [row["cause"] for row in causes] == [cause for cause in shares.CAUSES if cause not in absent]
    for key in ("accuracy", "loss"):
        assert sum(row[key] for row in causes) == pytest.approx(whole[key], abs=1e-9)
    before, after = causes[0]["before"], causes[-1]["after"]
    assert (before, after) == ("on, batch, train", "off, running, test")

    def lost(batches_of_statistics, key=KEY):
        """By image, what the variance shift takes in test mode."""
        right = []
        for noise in (False, True):
            given = {**variables, "batch_stats": _by_hand(variables, batches_of_statistics, noise, key)[1]}
            logits = [modes.apply(Net(), given, x, mode=modes.TEST)[0] for x, _ in batches]
            right.append(np.concatenate(logits).argmax(-1) == np.concatenate([y for _, y in batches]))
        return right[0].astype(float) - right[1]

    of_parts = [lost([batch], jax.random.fold_in(KEY, i)).mean() for i, batch in enumerate(batches)]
    variance = lost(batches).var(ddof=1) / 90 + np.var(of_parts, ddof=1) / 3
    assert causes[2]["accuracy"] == pytest.approx(lost(batches).mean(), abs=1e-9)
    assert causes[2]["error"] == pytest.approx(variance**0.5, abs=1e-9)


def test_augmentation_is_a_cause_between_as_trained_and_plain(trained):
    variables, batches, without = trained
    plain = [(x[:, :, ::-1], labels) for x, labels in batches]
    rngs = {"dropout": KEY}
    found = gap.explain(Net(), variables, batches, batches[:2], plain_batches=plain, rngs=rngs)
    right = [
        np.concatenate([np.asarray(Net().apply(variables, x)).argmax(-1) == y for x, y in given])
        for given in (batches, plain)
    ]
    causes = [row["cause"] for row in found.shares.rows[:-1]]
    assert causes == [cause for cause in shares.CAUSES if cause != "shared statistics"]
    row = found.shares.rows[4]
    assert (row["before"], row["after"]) == ("off, running, train", "off, running, train plain")
    difference = right[0].astype(float) - right[1]
    assert row["accuracy"] == pytest.approx(difference.mean(), abs=1e-9) and row["accuracy"] != 0
    assert row["error"] == pytest.approx(difference.std(ddof=1) / 90**0.5, abs=1e-9)
    *causes, whole = found.shares.rows
    assert sum(row["accuracy"] for row in causes) == pytest.approx(whole["accuracy"], abs=1e-9)
    # Nothing else changes: not the other rows of the table, and not the flips.
    assert [row for row in found.rows if row["data"] != "train plain"] == without.rows
    assert found.flips.rows == without.flips.rows
    assert len(found.rows) == len(without.rows) + 1


def test_one_batch_does_not_tell_every_error(trained):
    variables, batches, _ = trained
    found = gap.explain(Net(), variables, batches[:1], batches[:1])
    errors = {row["cause"]: row["error"] for row in found.shares.rows}
    known = {cause for cause, error in errors.items() if error is not None}
    assert known == {"generalisation"}
    assert {row["remedy"] for row in found.remedies.rows if row["error"] is None} == {
        "recalibrated statistics",
        "precise BN with noise",
        "batch statistics",
    }
    assert found.advice.startswith("One batch is too few to know the error of these gains on test images: ")


def test_a_score_of_losses_alone():
    """A regression has no right and wrong: rows, shares and remedies go by the loss."""

    def squared(outputs, batch):
        return {"loss": np.square(outputs[:, 1] / 20 - np.square(batch[0]).mean(-1) / ENERGY)}

    found = gap.explain(Energy(), _variables(2 * ENERGY), TRAIN, TRAIN, score=squared)
    energy = np.concatenate([np.square(x).mean(-1) for x, _ in TRAIN]) / ENERGY
    # In test mode the output is half of what it should be; recalibrated statistics make it right.
    row = found.remedies.rows[0]
    assert row["loss_before"] == pytest.approx(np.mean((energy / 2) ** 2), rel=1e-4)
    assert row["gain"] == pytest.approx(row["loss_before"], rel=1e-3)
    assert row["accuracy"] is None and found.rows[0]["accuracy"] is None and found.flips.share is None
    gain = f"{row['gain']:.3g} +- {row['error']:.3g}"
    assert f"exceeds its error comes from recalibrated statistics: {gain} (loss " in found.advice
    assert "The largest share of the gap is variance shift" in found.advice
    assert found.plot() is not None


def test_flips_and_their_figure(trained, tmp_path):
    variables, batches, found = trained
    on, _ = _by_hand(variables, batches, True)
    logits, labels = (np.concatenate(parts) for parts in zip(*on, strict=True))
    images = np.concatenate([x for x, _ in batches])
    test = np.asarray(modes.apply(Net(), variables, images, mode=modes.TEST)[0])
    flipped = np.flatnonzero((logits.argmax(-1) == labels) & (test.argmax(-1) != labels))
    assert len(flipped) > 6 and {row["image"] for row in found.flips.rows} == set(flipped)
    gains = [row["loss_test_mode"] - row["loss_train_mode"] for row in found.flips.rows]
    assert gains == sorted(gains, reverse=True)
    for image, response, row in zip(
        found.flips.images, found.flips.responses, found.flips.rows, strict=False
    ):
        np.testing.assert_array_equal(image, images[row["image"]])
        np.testing.assert_allclose(response[0], logits[row["image"]], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(response[1], test[row["image"]], rtol=1e-4, atol=1e-5)
    figure = found.plot(tmp_path / "f.png")
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
    bars = figure.axes[1].patches
    np.testing.assert_allclose(
        [bar.get_height() for bar in bars], found.flips.responses[0].ravel(), rtol=1e-6
    )


def test_without_noise_no_share_is_given_to_it(trained):
    found = gap.explain(Energy(rate=0.0), _variables(ENERGY), TRAIN, TRAIN)
    causes = [row["cause"] for row in found.shares.rows]
    assert causes == ["small-batch noise", "lagging statistics", "generalisation", "the whole gap"]
    assert {(row["noise"], row["batch_norm"]) for row in found.rows} == {
        ("off", source) for source in ("running", "batch", "converged")
    }
    assert found.advice.startswith(
        "No noise was found, so no share of the gap is attributed to it. No remedy"
    )
    assert "largest share" not in found.advice
    assert found.flips.rows == [] and found.plot() is not None


def test_without_batch_normalization_there_are_two_causes():
    x = np.asarray(jax.random.normal(jax.random.key(0), (50, 4)))

    class Plain(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return nn.Dropout(0.9)(x, deterministic=not train)

    labels = x.argmax(-1)
    found = gap.explain(Plain(), {}, [(x, labels)], [(x, (labels + 1) % 4)])
    assert [row["cause"] for row in found.shares.rows] == ["dropout noise", "generalisation", "the whole gap"]
    assert found.shares.rows[1]["accuracy"] == found.shares.rows[1]["accuracy"] == 1
    assert "No BN takes statistics in training" in found.advice and len(found.rows) == 4
    assert [row["remedy"] for row in found.remedies.rows] == ["mean of 10 draws"]


def test_noise_that_is_on_in_test_mode_too_is_named():
    class Sampled(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            x = nn.Dropout(0.5, name="drop")(x, deterministic=False)
            return x + jax.random.normal(self.make_rng("code"), x.shape)

    batches = [(x, np.arange(len(x)) % 3) for x in np.ones((2, 6, 3), np.float32)]
    found = gap.explain(Sampled(), {}, batches, batches, num_samples=0)
    assert found.never_off[0] == "drop" and found.never_off[1].startswith("test_gap.py:")
    assert found.advice.startswith("Noise that is on in test mode too has no share: drop; test_gap.py:")
    assert "No noise was found" not in found.advice


@pytest.mark.slow
def test_a_scanned_model():
    model = Scanned()
    x = 1 + jax.random.normal(jax.random.key(0), (12, 4, 4, 2))
    variables = model.init(jax.random.key(1), x, train=False)
    labels = np.arange(12) % 3
    found = gap.explain(model, variables, [(x, labels)], [(x[:5], labels[:5])])
    logits = np.asarray(model.apply(variables, x), np.float32)
    assert _cell(found, "off", "running", "train")["accuracy"] == np.mean(logits.argmax(-1) == labels)


def test_another_score_and_refusals():
    def energy(outputs, batch):
        return {"loss": np.square(outputs - 20).mean(-1), "correct": outputs[:, 1] > 20}

    inputs = [x for x, _ in TRAIN]
    found = gap.explain(Energy(), _variables(ENERGY), inputs, inputs, score=energy)
    above = np.mean([np.square(x).mean(-1) > ENERGY for x in inputs])
    assert _cell(found, "off", "running", "train")["accuracy"] == pytest.approx(above, abs=1e-9)

    def refused(match, *batches, model=None, **given):
        with pytest.raises(DropbnError, match=match):
            gap.explain(model or Energy(), _variables(ENERGY), *batches, **given)

    x, y = TRAIN[0]
    refused("arrays without labels", [x], [x])
    refused(
        "other images than train_batches: give the same images in the same order",
        [(x, y)],
        [(x, y)],
        plain_batches=[(x[:50], y[:50])],
    )
    refused("keys .* say with labels=", [{"image": x, "y": y}], [(x, y)])
    refused("from 1 to 2 do not fit task='classify'", [(x, y + 1)], [(x, y)])
    refused("one image has no batch statistics", [(x[:1], y[:1]), (x, y)], [(x, y)])
    refused("Outputs for the test batches are not finite", [(x, y)], [(x * np.nan, y)])
    refused("'bn' is not finite in batch 0", [(x * np.nan, y)], [(x, y)])
    refused("no batch normalization", [(x, y)], [(x, y)], model=nn.Dropout(0.5))
