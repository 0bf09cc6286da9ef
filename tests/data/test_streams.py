"""Photographs: crops against NumPy, and streams that show every image once, the same on any host."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

from configs import base, digits
from dropbn import data
from dropbn.data import files, sampling
from dropbn.data.photos import View
from dropbn.data.streams import Stream
from dropbn.errors import DropbnError
from dropbn.train import checkpoint, eval_batches, evaluation, feeds, loop, parallel, runs
from dropbn.train.plan import make_plan

RNG = np.random.default_rng(0)


def _photo(height, width):
    """An image whose pixels tell their place: red the column, green the row."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([columns, rows, np.full_like(rows, 7)], -1).astype(np.uint8)


def test_the_middle_in_test():
    np.testing.assert_array_equal(View(4, 6).test(_photo(6, 10)), _photo(6, 10)[1:5, 3:7])
    # The shorter side goes from 20 to 10: every pixel is the mean around twice its place.
    half = View(10, 10).test(_photo(20, 40))
    np.testing.assert_allclose(half[5, :, 0], 2 * np.arange(5, 15) + 0.5, atol=1.01)
    grey = View(4, 4).test(np.full((4, 4, 1), 9, np.uint8))
    np.testing.assert_array_equal(grey, np.full((4, 4, 3), 9))


@pytest.mark.parametrize("shape", [(4, 400), (400, 4), (2, 66), (66, 2)])
def test_the_middle_of_a_long_image(shape, monkeypatch):
    """The pixels of the whole image where that is resized by a whole number, without making a large one."""
    pixels = RNG.integers(0, 256, (*shape, 3)).astype(np.uint8)
    factor = 32 / min(shape)
    size = [max(32, round(side * factor)) for side in (shape[1], shape[0])]
    whole = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)).astype(int)
    top, left = (round((side - 24) / 2) for side in whole.shape[:2])
    made, resize = [], Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda image, size, *given: made.append(size) or resize(image, size, *given)
    )
    found = View(24, 32).test(pixels)
    assert np.abs(found - whole[top : top + 24, left : left + 24]).max() <= 1
    View(24, 32, rotation=15.0, jitter=0.1, flip=True).train(pixels, np.random.default_rng(0))
    assert len(made) == 2 and all(width * height <= 16 * 32**2 for width, height in made)


@pytest.mark.parametrize("shape", [(4, 64), (64, 4), (30, 40)])
def test_no_other_image_is_cut(shape):
    pixels = RNG.integers(0, 256, (*shape, 3)).astype(np.uint8)
    size = [max(8, round(side * 8 / min(shape))) for side in (shape[1], shape[0])]
    whole = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
    top, left = (round((side - 8) / 2) for side in whole.shape[:2])
    np.testing.assert_array_equal(View(8, 8).test(pixels), whole[top : top + 8, left : left + 8])


def test_random_crops_and_flips_of_the_whole_image():
    view, photo = View(4, 8, flip=True), _photo(8, 10)
    seen = set()
    for i in range(200):
        crop = view.train(photo, np.random.default_rng(i)).astype(int)
        columns, rows = crop[0, :, 0], crop[:, 0, 1]
        step = columns[1] - columns[0]
        np.testing.assert_array_equal(columns, columns[0] + step * np.arange(4))
        np.testing.assert_array_equal(rows, rows[0] + np.arange(4))
        seen.add((columns.min(), rows[0], step))
    assert {s[0] for s in seen} == set(range(7)) and {s[1] for s in seen} == set(range(5))
    assert {s[2] for s in seen} == {1, -1}


def test_random_parts_have_the_wanted_area_and_sides():
    view, photo = View(32, 32, scale=(0.2, 0.8)), _photo(200, 250)
    areas = []
    for i in range(300):
        crop = view.train(photo, np.random.default_rng(i)).astype(float)
        # Between the first and the last pixel's centres lie 31 of 32 parts of a side.
        width, height = ((crop[..., c].max() - crop[..., c].min()) * 32 / 31 for c in (0, 1))
        areas.append(width * height / photo[..., 0].size)
        assert 0.7 < width / height < 1.43
    assert 0.17 < min(areas) < 0.25 and 0.7 < max(areas) < 0.83


def test_a_random_part_is_cropped_in_its_middle():
    """Of a square the whole area fits as the square alone; 16 of its 32 pixels begin at 8."""
    crop = View(16, 16, part_size=32, scale=(1.0, 1.0)).train(_photo(32, 32), np.random.default_rng(0))
    np.testing.assert_array_equal(crop, _photo(32, 32)[8:24, 8:24])


def test_rotation_and_jitter():
    photo = np.full((40, 40, 3), 100, np.uint8)
    turned = View(40, 40, rotation=15.0).train(photo, np.random.default_rng(0))
    assert turned[20, 20, 0] == 100 and turned[0, 0, 0] == 0
    levels = [View(8, 8, jitter=0.4).train(photo, np.random.default_rng(i)).mean() for i in range(300)]
    assert 60 - 2 <= min(levels) < 65 and 135 < max(levels) <= 140 + 2  # brightness alone moves a flat grey


def _stream(number=50, **view):
    images = RNG.integers(0, 256, (number, 6, 7, 3)).astype(np.uint8)
    source = files.Arrays(images, np.arange(number))
    return Stream(source, np.arange(number)[::-1], View(4, 5, flip=True, **view))


def _epoch(stream, positions, batch_size=10, workers=0):
    order = np.asarray(sampling.epoch_order(3, 1, stream.num_examples))
    found = list(stream.epoch(order, positions, batch_size, seed=3, epoch=1, workers=workers))
    return [np.concatenate([getattr(part, field) for part in found]) for field in ("images", "labels")]


def test_an_epoch_is_the_same_on_any_number_of_hosts():
    stream = _stream()
    images, labels = _epoch(stream, np.arange(50))
    order = np.asarray(sampling.epoch_order(3, 1, 50))
    np.testing.assert_array_equal(labels, (49 - np.arange(50))[order])
    for hosts in (2, 5):
        share = 10 // hosts
        positions = np.arange(50).reshape(5, hosts, share)
        parts = [_epoch(stream, positions[:, host].ravel(), share) for host in range(hosts)]
        for whole, part in ((images, 0), (labels, 1)):
            together = np.stack([p[part].reshape(5, share, *whole.shape[1:]) for p in parts], 1)
            np.testing.assert_array_equal(together.reshape(whole.shape), whole)
    plain = dataclasses.replace(stream, view=View(6, 6))
    middles = stream.source.images[labels][:, :, :6]
    assert (np.abs(_epoch(plain, np.arange(50))[0] - middles).max((1, 2, 3)) == 0).mean() > 0.3
    same = dataclasses.replace(
        stream, source=files.Arrays(stream.source.images[:1].repeat(50, 0), np.arange(50))
    )
    assert len(np.unique(_epoch(same, np.arange(50))[0], axis=0)) >= 4  # crops, flipped or not
    # From the middle, as a resumed run.
    np.testing.assert_array_equal(_epoch(stream, np.arange(20, 50))[0], images[20:])
    assert (_epoch(dataclasses.replace(stream, view=View(4, 5)), np.arange(50))[0] != images).any()


def _feed(stream, devices):
    """Batches of 16 images."""
    config = base.get_config()
    config.batch_size = 16
    dataset = data.Dataset(stream, stream, 50, data.PHOTO_MEAN, data.PHOTO_STD)
    layout = parallel.Layout(tuple(jax.local_devices()[:devices]))
    return feeds.create([make_plan(config, dataset, layout)], [dataset])


def test_a_streamed_evaluation_counts_every_image_once():
    stream = _stream()
    feed = _feed(stream, devices=8)
    batches = [jax.tree.map(np.asarray, inputs) for inputs in feed.eval_inputs(stream)]
    assert [batch["image"].shape for batch in batches] == [(8, 2, 4, 4, 3)] * 4
    labels, masks = (np.concatenate([batch[key].ravel() for batch in batches]) for key in ("label", "mask"))
    np.testing.assert_array_equal(labels[masks], 49 - np.arange(50))


def test_a_stream_as_in_training():
    """The augmented images of the first epoch, those of the plain ones' order, each time the same."""
    stream = _stream()
    config = base.get_config()
    config.batch_size, config.eval.train_examples, config.data.workers = 16, 20, 0
    dataset = data.Dataset(stream, stream, 50, data.PHOTO_MEAN, data.PHOTO_STD)
    order = np.asarray(sampling.epoch_order(config.seed, 0, 50))
    [epoch] = stream.epoch(order, np.arange(50), 50, seed=config.seed, epoch=0)
    wanted = dict(zip(epoch.labels, sampling.normalize(epoch.images, dataset.mean, dataset.std), strict=True))
    plain = list(eval_batches.plain(config, dataset, "train"))
    seen = eval_batches.AsInTraining(config, dataset)
    assert seen.is_augmented
    for _ in range(2):
        for batch, of_plain in zip(seen, plain, strict=True):
            np.testing.assert_array_equal(batch["label"], of_plain["label"])
            np.testing.assert_array_equal(batch["image"], [wanted[label] for label in batch["label"]])
            assert (batch["image"] != of_plain["image"]).any()
    assert [len(batch["label"]) for batch in seen] == [16, 4]
    whole = [batch["label"] for batch in eval_batches.augmented_epoch(config, dataset)]
    np.testing.assert_array_equal(np.concatenate(whole), epoch.labels[:48])


def test_a_feed_begins_at_any_step():
    feed = _feed(_stream(), devices=2)
    whole, tail = (list(feed.train_inputs(1, range(start, 3))) for start in (0, 1))
    for a, b in zip(whole[1:], tail, strict=True):
        np.testing.assert_array_equal(a["image"], b["image"])
    assert (np.asarray(whole[0]["image"]) != whole[1]["image"]).any()


def _folder(root, number=10):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for i in range(number):
                height, width = RNG.integers(20, 40, 2)
                pixels = RNG.integers(0, 256, (height, width, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")


def test_worker_processes_read_the_same():
    stream = _stream(20)
    for ours, theirs in zip(
        _epoch(stream, np.arange(20)), _epoch(stream, np.arange(20), workers=2), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_a_folder_of_photographs_trains_stops_and_goes_on(tmp_path, monkeypatch):
    _folder(tmp_path / "photos")
    config = digits.get_config()
    config.data.update({"name": f"folder:{tmp_path / 'photos'}", "image_size": 16, "resize": 18})
    config.data.update({"crop_scale": (0.5, 1.0), "split": "21:5:14", "rotation": 10.0, "flip": True})
    config.model.update({"name": "lenet", "depth": 1, "block": "conv bn relu drop maxpool", "init": "lsuv"})
    config.batch_size, config.duration = 8, "2 epochs"
    _, records = loop.train_and_evaluate(config, tmp_path / "run")
    dataset = data.load(config.data)
    parts = [dataset.train, dataset.validation, dataset.test]
    assert [split.num_examples for split in parts] == [21, 5, 14]
    assert sorted(np.concatenate([split.rows for split in parts])) == list(range(40))
    assert [record["step"] for record in records] == [2, 4]
    assert all(round(record["validation/accuracy"] * 5, 4) % 1 == 0 for record in records)

    with checkpoint.manager(tmp_path / "run" / "checkpoints", read_only=True) as saved:
        chosen_by = saved.metadata(4).custom_metadata["accuracy"]
    assert chosen_by == records[-1]["validation/accuracy"] != records[-1]["test/accuracy"]
    kernel = runs.initial_state(make_plan(config, dataset), dataset).params["block1"]["conv1"]["kernel"]
    columns = np.asarray(kernel).reshape(-1, kernel.shape[-1])
    squared = columns.T @ columns  # LSUV scales an orthogonal kernel.
    np.testing.assert_allclose(squared, squared[0, 0] * np.eye(len(squared)), atol=1e-4)
    assert abs(squared[0, 0] - 1) > 0.1

    found = evaluation.evaluate(tmp_path / "run")
    assert found.shift_li2018.rows[0]["count"] == 2 * 8 * 16 * 16
    assert "augmentation" in [row["cause"] for row in found.gap.shares.rows]
    assert found.shift.rows[0]["count"] == 21 * 16 * 16
    by_mode = {(r["noise"], r["batch_norm"], r["data"]): r["accuracy"] for r in found.gap.rows}
    assert by_mode["off", "running", "test"] == pytest.approx(records[-1]["test/accuracy"])

    # A run that is stopped after its first epoch sees the same images in its second.
    whole = feeds.Streamed.train_inputs

    def stops(feed, epoch, steps):
        if epoch:
            raise KeyboardInterrupt
        return whole(feed, epoch, steps)

    monkeypatch.setattr(feeds.Streamed, "train_inputs", stops)
    with pytest.raises(KeyboardInterrupt):
        loop.train_and_evaluate(config, tmp_path / "stopped")
    monkeypatch.undo()
    _, resumed = loop.train_and_evaluate(config, tmp_path / "stopped")
    assert [record["train/loss"] for record in resumed] == [record["train/loss"] for record in records]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "caltech101", "image_size": 0}, "is not prepared|give data.image_size"),
        ({"image_size": 0, "rotation": 10.0}, "give data.image_size"),
        ({"image_size": 0, "jitter": 0.4}, "'jitter': 0.4.* give data.image_size"),
        ({"split": "70:30"}, "give train:validation:test"),
        ({"crop_scale": (0.5,)}, r"data.crop_scale=\(0.5,\): give the least and largest"),
        ({"crop_scale": (0.5, 2.0)}, "give the least and largest"),
        ({"crop_padding": 4}, "data.crop_padding=4 is for images in memory"),
        ({"part_size": 8}, "data.part_size=8 is less than data.image_size=16"),
        ({"image_size": 0, "crop_scale": (0.5, 1.0)}, "give data.image_size"),
        ({"split": "9997:1:2"}, "of 1797 images leaves a part empty"),
        ({"resize": 8}, "data.resize=8 is less than data.image_size=16"),
    ],
)
def test_what_does_not_fit(fields, message):
    config = base.get_config().data
    config.image_size, config.resize = 16, 18
    config.update(fields)
    with pytest.raises(DropbnError, match=message):
        data.load(config)


def test_a_broken_photograph_is_named(tmp_path):
    _folder(tmp_path, number=2)
    broken = tmp_path / "train" / "cat" / "0.png"
    broken.write_bytes(broken.read_bytes()[:60])
    config = base.get_config().data
    config.name, config.image_size, config.resize = f"folder:{tmp_path}", 16, 16
    dataset = data.load(config)
    with pytest.raises(DropbnError, match=r"cat/0.png cannot be read as an image"):
        dataset.plain(0)
    with pytest.raises(DropbnError, match=r"cat/0.png cannot be read as an image"):
        list(dataset.train.epoch(np.arange(4), np.arange(4), 2, seed=0, epoch=0))
