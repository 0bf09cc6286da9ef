"""Evaluation recomputes what training logged and what its tables claim."""

import contextlib
import csv
import errno
import functools
import itertools
import json
import os

import flax.traverse_util
import jax
import numpy as np
import optax
import pytest

from dropbn import data, keys, models
from dropbn.data import sampling
from dropbn.diagnose import recalibrate
from dropbn.errors import DropbnError
from dropbn.train import eval_batches, evaluation, loop, measurements

# One worker trains and evaluates the run of all these tests.
pytestmark = pytest.mark.xdist_group("evaluation")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained workdir, its config, final state and records."""
    from configs import digits

    config = digits.get_config()
    config.model.depth, config.model.width, config.model.num_classes = 8, 4, 10
    config.model.bn.group_size, config.data.crop_padding = 32, 1
    config.duration, config.batch_size, config.eval.train_examples = "3 epochs", 64, 200
    directory = tmp_path_factory.mktemp("runs") / "run"
    state, records = loop.train_and_evaluate(config, directory)
    return directory, config, state, records


def _row(found, *cell):
    return next(r for r in found.gap.rows if (r["noise"], r["batch_norm"], r["data"]) == cell)


@pytest.fixture(scope="module")
def found(run):
    return evaluation.evaluate(run[0])


def test_the_report_has_the_promised_fields(run, found):
    directory, config, state, _ = run
    report = json.loads((directory / "eval" / "report.json").read_text())
    assert set(report) == {
        *("evaluation_grid", "gap", "remedies", "advice", "flips", "flipped_images"),
        *("shift", "shift_li2018", "config", "checkpoint_step"),
    }
    assert report["config"] == json.loads(json.dumps(config.to_dict()))
    assert report["checkpoint_step"] == int(state.step) == 66
    cells = [(row["noise"], row["batch_norm"], row["data"]) for row in report["evaluation_grid"]]
    sources = ("running", "batch", "converged", "recalibrated")
    wanted = list(itertools.product(("off", "on"), sources, ("train", "test")))
    assert cells == [wanted[0], ("off", "running", "train plain"), *wanted[1:]]
    assert [row["cause"] for row in report["gap"]][4:6] == ["augmentation", "generalisation"]
    remedies = {row["remedy"]: row for row in report["remedies"]}
    assert list(remedies)[2:] == ["batch statistics", "mean of 10 draws"]
    by_batch = _row(found, "off", "batch", "test")["accuracy"]
    assert remedies["batch statistics"]["accuracy"] == pytest.approx(by_batch, abs=1e-9)
    fields = {"layer", "count", "moving_var", "real_var", "ratio", "mean_shift"}
    order = [f"stage{s}_block1/bn{i}" for s in (1, 2, 3) for i in (1, 2)] + ["head/bn1"]
    for name in ("shift", "shift_li2018"):
        assert [row["layer"] for row in report[name]] == order
        assert all(set(row) == fields for row in report[name])
    read = list(csv.DictReader((directory / "eval" / "shift.csv").open()))
    assert [float(row["ratio"]) for row in read] == [row["ratio"] for row in report["shift"]]
    assert (directory / "eval" / "shift.png").read_bytes().startswith(b"\x89PNG")


def test_test_mode_is_what_training_logged(run, found):
    last = run[3][-1]
    test, train = (_row(found, "off", "running", data) for data in ("test", "train plain"))
    assert test["accuracy"] == pytest.approx(last["test/accuracy"], abs=1e-9)
    assert test["loss"] == pytest.approx(last["test/loss"], rel=1e-4)
    assert train["accuracy"] == pytest.approx(last["train/accuracy_test_mode"], abs=1e-9)


def _shuffled(split, seed):
    return split.take(np.asarray(sampling.epoch_order(seed, 0, split.num_examples)))


def _as_trained(config, dataset, number):
    """Training images, evenly spread and shuffled, as a training step would have them in the first epoch."""
    total = dataset.train.num_examples
    order = np.asarray(sampling.epoch_order(config.seed, 0, total))
    given = {"mean": dataset.mean, "std": dataset.std, "crop_padding": config.data.crop_padding}
    split = jax.device_put(dataset.train)
    epoch = sampling.train_batch(split, order, 0, config.seed, batch_size=total, **given)
    rows = np.arange(number) * total // number
    rows = rows[np.asarray(sampling.epoch_order(config.seed, 0, number))]
    of_row = np.empty_like(epoch["image"])
    of_row[order] = epoch["image"]
    return of_row[rows], dataset.train.labels[rows]


def _in_groups(config, images, apply):
    """Logits of images in groups of 32, the last one shorter."""
    model_config = config.model.copy_and_resolve_references()
    model_config.bn.group_size = 0
    model = models.create(model_config)
    starts = range(0, len(images), 32)
    apply = jax.jit(functools.partial(apply, model))
    logits = [apply(images[start : start + 32], i)[0] for i, start in enumerate(starts)]
    return np.concatenate(logits)


def test_batch_mode_against_the_model_itself(run, found):
    _, config, state, _ = run
    dataset = data.load(config.data)
    split = _shuffled(dataset.test, config.seed)
    flags = {"deterministic": True, "use_running_average": False, "mutable": ["batch_stats"]}
    images = (split.images / np.float32(255) - dataset.mean) / dataset.std
    logits = _in_groups(config, images, lambda model, x, i: model.apply(state.variables, x, **flags))
    row = _row(found, "off", "batch", "test")
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, split.labels)
    assert row["accuracy"] == pytest.approx((logits.argmax(-1) == split.labels).mean(), abs=1e-9)
    assert row["loss"] == pytest.approx(float(losses.mean()), rel=1e-4)


def test_flips_are_right_in_train_mode_and_wrong_in_test_mode(run, found):
    _, config, state, _ = run
    dataset = data.load(config.data)
    images, labels = _as_trained(config, dataset, 200)

    def in_train_mode(model, x, i):
        rngs = {"dropout": keys.key(config.seed, "noise", i)}
        return model.apply(state.variables, x, deterministic=False, rngs=rngs, mutable=["batch_stats"])

    def in_test_mode(model, x, i):
        return (model.apply(state.variables, x),)

    right, right_in_test = (
        _in_groups(config, images, apply).argmax(-1) == labels for apply in (in_train_mode, in_test_mode)
    )
    assert found.gap.flips.share == pytest.approx((right & ~right_in_test).mean(), abs=1e-9)
    assert found.gap.flips.share > 0  # After three epochs of dropout 0.5 some images flip.


def test_recalibration_and_samples_as_in_the_tables(run, tmp_path):
    """Before is test mode; after is test mode with the statistics that were written."""
    directory, config, state, _ = run
    dataset = data.load(config.data)
    found = evaluation.evaluate(directory, recalibration="dropout_off", mc_samples=4)
    rows = {(row["statistics"], row["data"]): row for row in found.recalibrated.rows}
    for split in ("train", "test"):
        assert rows["before", split]["loss"] == pytest.approx(_row(found, "off", "running", split)["loss"])
    with np.load(directory / "eval" / "batch_stats-dropout_off.npz") as stored:
        stats = flax.traverse_util.unflatten_dict({tuple(k.split("/")): stored[k] for k in stored.files})
    given = {"params": state.params, "batch_stats": stats}
    images = (dataset.test.images / np.float32(255) - dataset.mean) / dataset.std
    logits = jax.jit(models.create(config.model).apply)(given, images)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, dataset.test.labels).mean()
    assert rows["dropout_off", "test"]["loss"] == pytest.approx(float(loss), rel=1e-4)
    assert rows["dropout_off", "test"]["loss"] != pytest.approx(rows["before", "test"]["loss"], rel=1e-3)

    plain, sampled = found.sampled.rows
    assert plain["accuracy"] == rows["before", "test"]["accuracy"]
    assert plain["nll"] == pytest.approx(rows["before", "test"]["loss"], rel=1e-5)
    assert sampled["prediction"] == "mean of 4 samples"
    assert 0 < sampled["ece"] < 1 and sampled["nll"] != pytest.approx(plain["nll"], rel=1e-3)
    with pytest.raises(DropbnError, match="Did you mean 'li2018'"):
        evaluation.evaluate(directory, recalibration="li2019")
    batch_stats = measurements.recalibrate_run(config, dataset, state, "li2018")[1]
    moved = batch_stats["stem"] if "stem" in batch_stats else batch_stats["stage1_block1"]
    assert set(moved["bn1"]) == {"mean", "var"}


def test_every_image_counts_in_the_shift(run, found):
    assert found.shift.rows[0]["count"] == 200 * 64
    assert found.shift.rows[-1]["count"] == 200 * 4
    # One epoch of full batches.
    assert found.shift_li2018.rows[0]["count"] == 44 * 32 * 64


def test_li2018_averages_groups_of_augmented_images(run, found):
    """The first BN sees a convolution of the images: its real variance, batch by batch, in NumPy."""
    _, config, state, _ = run
    dataset = data.load(config.data)
    order = sampling.epoch_order(config.seed, 0, 1437)
    split = jax.device_put(dataset.train)
    kernel = state.params["stem"]["conv1"]["kernel"]
    average = None
    for step in range(44):
        batch = sampling.train_batch(
            split,
            order,
            step,
            config.seed,
            mean=dataset.mean,
            std=dataset.std,
            batch_size=32,
            crop_padding=config.data.crop_padding,
        )["image"]
        h = jax.lax.conv_general_dilated(
            batch, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        variance = np.asarray(h, np.float64).var((0, 1, 2))
        average = variance if average is None else 0.9 * average + 0.1 * variance
    row = found.shift_li2018.rows[0]
    assert row["real_var"] == pytest.approx(average.mean(), rel=1e-4)
    assert row["real_var"] != pytest.approx(found.shift.rows[0]["real_var"], rel=1e-3)


def test_a_checkpoint_can_be_chosen(run):
    directory, _, _, records = run
    best = max(records, key=lambda record: record["test/accuracy"])
    found = evaluation.evaluate(directory, "best")
    assert found.checkpoint_step == best["step"]
    row = _row(found, "off", "running", "test")
    assert row["accuracy"] == pytest.approx(best["test/accuracy"], abs=1e-9)
    with pytest.raises(DropbnError, match="No checkpoint '7'"):
        evaluation.evaluate(directory, "7")


def test_evaluation_changes_no_state_and_no_checkpoint(run):
    directory = run[0]
    files = {f: f.read_bytes() for f in (directory / "checkpoints").rglob("*") if f.is_file()}
    evaluation.evaluate(directory)
    assert {f: f.read_bytes() for f in (directory / "checkpoints").rglob("*") if f.is_file()} == files


def test_a_report_is_never_newer_than_the_files_beside_it(run, found, monkeypatch):
    """Whichever write is the last one: here the disk fills, and a kill does the same."""
    monkeypatch.setattr(measurements, "explain_run", lambda *run: found.gap)
    monkeypatch.setattr(measurements, "measure_shift", lambda *run: found.shift)
    to, sync = run[0] / "eval", os.fsync
    for room in (3, 4):
        written = []

        def filling(file, room=room, written=written):
            written.append(file)
            if len(written) > room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            sync(file)

        names = ("report.json", "shift.csv", "shift.png", "flips.png")
        for name in names:
            (to / name).write_text("old")
        monkeypatch.setattr(os, "fsync", filling)
        with contextlib.nullcontext() if room == 4 else pytest.raises(DropbnError, match="No space left"):
            evaluation.evaluate(run[0])
        monkeypatch.setattr(os, "fsync", sync)
        new = {name for name in names if (to / name).read_bytes() != b"old"}
        assert len(new) == room and ("report.json" in new) == (room == 4)


def test_no_run_no_evaluation(tmp_path):
    with pytest.raises(DropbnError, match="holds no run"):
        evaluation.evaluate(tmp_path / "missing")
    assert not (tmp_path / "missing").exists()


def test_images_as_in_training(run):
    """The plain ones in the same order, with training's crops and black borders, each time the same."""
    config = run[1]
    dataset = data.load(config.data)
    seen = eval_batches.AsInTraining(config, dataset)
    assert seen.is_augmented
    for batches, size in ((seen, 64), (eval_batches.AsInTraining(config, dataset, 32), 32)):
        parts = list(batches)
        assert [len(part["image"]) for part in parts[:-1]] == [size] * (200 // size)
        images, labels = (np.concatenate([part[key] for part in parts]) for key in ("image", "label"))
        wanted, wanted_labels = _as_trained(config, dataset, 200)
        np.testing.assert_allclose(images, wanted, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(labels, wanted_labels)
        again = np.concatenate([part["image"] for part in batches])
        np.testing.assert_array_equal(images, again)
    plain = list(eval_batches.plain(config, dataset, "train"))
    np.testing.assert_array_equal(labels, np.concatenate([part["label"] for part in plain]))
    black = sampling.normalize(np.zeros(1, np.uint8), dataset.mean, dataset.std)
    plain = np.concatenate([part["image"] for part in plain])
    cropped, plain = (np.isclose(given, black, atol=1e-5).mean() for given in (images, plain))
    assert cropped > plain + 0.02


def test_images_as_in_training_are_plain_where_training_does_not_augment(run):
    config = run[1].copy_and_resolve_references()
    config.data.crop_padding = 0
    dataset = data.load(config.data)
    seen = eval_batches.AsInTraining(config, dataset, 32)
    assert not seen.is_augmented
    for ours, wanted in zip(seen, eval_batches.plain(config, dataset, "train"), strict=True):
        np.testing.assert_array_equal(ours["image"], wanted["image"])
        np.testing.assert_array_equal(ours["label"], wanted["label"])
    whole = list(eval_batches.augmented_epoch(config, dataset))
    order = np.asarray(sampling.epoch_order(config.seed, 0, 1437))[: 44 * 32]
    labels = np.concatenate([part["label"] for part in whole])
    np.testing.assert_array_equal(labels, dataset.train.labels[order])


def test_recipes_of_papers_go_through_the_epoch_again(run):
    """A pass more moves a moving average further, by the same images."""
    _, config, state, _ = run
    dataset = data.load(config.data)
    model = measurements.model_of_groups(config)
    once, twice = (
        recalibrate.recalibrate(
            model, state.variables, eval_batches.augmented_epoch(config, dataset), "li2018", passes=passes
        )
        for passes in (1, 2)
    )
    assert (once.num_images, twice.num_images, twice.num_passes) == (44 * 32, 44 * 32, 2)
    assert once.rows[0]["new_var"] != twice.rows[0]["new_var"]
