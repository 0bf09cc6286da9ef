"""Data: the digits themselves, and batches that do not depend on the number of devices."""

import dataclasses
import functools
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits

from configs import base
from dropbn import data
from dropbn.data import prepare, sampling, stock
from dropbn.errors import DropbnError

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def digits():
    return data.load(base.get_config().data)


def test_digits_are_scikit_learns(digits):
    source = load_digits()
    pixels = np.round(source.images * (255 / 16)).astype(np.uint8)
    is_test = np.arange(1797) % 5 == 0
    for split, rows in ((digits.train, ~is_test), (digits.test, is_test)):
        assert split.images.shape == (rows.sum(), 8, 8, 1) and split.images.dtype == np.uint8
        found = sorted((image.tobytes(), int(label)) for image, label in zip(*split, strict=True))
        wanted = sorted((p.tobytes(), int(t)) for p, t in zip(pixels[rows], source.target[rows], strict=True))
        assert found == wanted
    assert digits.num_classes == 10
    assert digits.mean == pytest.approx(pixels[~is_test].mean() / 255, rel=1e-6)
    assert digits.std == pytest.approx(pixels[~is_test].std() / 255, rel=1e-6)


def test_digits_are_decoded_once(tmp_path, monkeypatch):
    """From then on they are read from the file that was kept, unless it is damaged or cannot be written."""
    config = base.get_config().data
    config.dir = str(tmp_path)
    wanted = data.load(config).fingerprint
    [kept] = tmp_path.rglob("decoded.npz")

    def is_read():
        with monkeypatch.context() as patch:
            patch.setattr(stock, "_decode", lambda source: pytest.fail("decoded again"))
            return data.load(config).fingerprint == wanted

    assert is_read()
    content = bytearray(kept.read_bytes())
    content[len(content) // 2] ^= 1
    kept.write_bytes(content)
    assert data.load(config).fingerprint == wanted
    assert is_read()
    kept.unlink()
    kept.mkdir()
    assert data.load(config).fingerprint == wanted
    assert [path.name for path in kept.parent.glob("decoded*")] == ["decoded.npz"]


def test_arrays_that_were_not_decoded_from_the_records_are_decoded_again(tmp_path):
    """Labels that were permuted in the kept file, and records that changed under it."""
    config = base.get_config().data
    config.dir = str(tmp_path)
    wanted = data.load(config).fingerprint
    [kept] = tmp_path.rglob("decoded.npz")
    with np.load(kept) as file:
        arrays = dict(file)
    np.savez(kept, **arrays | {"train_labels": arrays["train_labels"][::-1]})
    assert data.load(config).fingerprint == wanted
    with np.load(kept) as file:
        np.testing.assert_array_equal(file["train_labels"], arrays["train_labels"])
    [records] = tmp_path.rglob("digits-test.array_record*")
    content, before = records.read_bytes(), kept.read_bytes()
    records.write_bytes(content[: len(content) // 2])
    with pytest.raises(DropbnError, match=r"digits.*(Remove that folder|Riegeli)"):
        data.load(config)
    assert kept.read_bytes() == before


def _edited(name, old, new):
    def edit(folder):
        [file] = folder.glob(name)
        text = file.read_bytes()
        assert old in text
        file.write_bytes(text.replace(old, new))

    return edit


def _cut(name, share):
    def cut(folder):
        [file] = folder.glob(name)
        file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])

    return cut


def _flipped(folder):
    [file] = folder.glob("digits-train.*")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)


BROKEN = {
    "cut": (_cut("digits-train.*", 0.5), "Riegeli"),
    "emptied": (_cut("digits-train.*", 0), "at least 64KB"),
    "flipped": (_flipped, "cannot be read: Corrupted .*Remove that folder"),
    "info cut": (_cut("dataset_info.json", 0.5), "Failed to load JSON"),
    "info emptied": (_cut("dataset_info.json", 0), "Cannot prepare or read dataset 'digits'"),
    "fewer": (_edited("dataset_info.json", b'"1437"', b'"100"'), "100 examples .* and 1437 in its files"),
    "more": (_edited("dataset_info.json", b'"1437"', b'"2000"'), "2000 examples .* and 1437 in its files"),
    "none": (_edited("dataset_info.json", b'"1437"', b'"0"'), "Cannot prepare or read dataset 'digits'"),
    "nothing": (lambda folder: [file.unlink() for file in folder.iterdir()], "is not prepared"),
}


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize(
    "image_size", [0, pytest.param(8, marks=pytest.mark.slow)], ids=["in memory", "streamed"]
)
def test_a_prepared_folder_that_was_cut_or_edited(change, message, image_size, digits, tmp_path, monkeypatch):
    prepared = pathlib.Path(stock.prepare("digits").data_dir)
    folder = tmp_path / "digits" / prepared.name
    shutil.copytree(prepared, folder, ignore=shutil.ignore_patterns("decoded.npz"))
    change(folder)
    if message == "is not prepared":
        monkeypatch.setattr(stock, "prepare", stock._builder)  # Else digits would be prepared again.
    config = base.get_config().data
    config.dir, config.image_size, config.resize = str(tmp_path), image_size, 8
    with pytest.raises(DropbnError, match=message):
        data.load(config).train.take(slice(None))


def test_a_stream_without_a_size_is_refused_before_anything_is_decoded(tmp_path, monkeypatch):
    config = base.get_config().data
    config.dir, config.rotation = str(tmp_path), 10.0
    monkeypatch.setattr(stock, "arrays", lambda *_: pytest.fail("decoded"))
    with pytest.raises(DropbnError, match=r"'rotation': 10\.0\} is a stream: give data\.image_size"):
        data.load(config)


def test_processes_that_prepare_the_data_at_once(tmp_path):
    code = (
        "from configs import base; from dropbn import data; c = base.get_config().data; "
        f"c.dir = {str(tmp_path)!r}; print(len(data.load(c).train.labels))"
    )
    command = [sys.executable, "-c", code]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, cwd=ROOT, **pipes) for _ in range(2)]
    for process in both:
        printed, errors = process.communicate()
        assert printed.strip() == "1437", errors


def test_unknown_dataset_and_unwritable_directory(tmp_path):
    config = base.get_config().data
    config.name = "digit"
    with pytest.raises(DropbnError, match=r"Unknown dataset 'digit'\. Did you mean 'digits'"):
        data.load(config)
    config.name, config.dir = "digits", str(tmp_path / "file" / "below")
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(DropbnError, match="Cannot prepare or read dataset 'digits'"):
        data.load(config)


def test_the_command_that_prepares_a_dataset(tmp_path, capsys, monkeypatch):
    prepare.main("digits", str(tmp_path))
    assert capsys.readouterr().out == f"digits is prepared in {tmp_path}/digits/1.0.0\n"
    config = base.get_config().data
    config.dir = str(tmp_path)
    assert data.load(config).train.num_examples == 1437

    def fails(error):
        def download_and_prepare(builder, **_):
            raise error

        monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", download_and_prepare)

    for arguments, error, message in (
        (["cifar1"], None, "Did you mean 'cifar10'"),
        (["cifar10", str(tmp_path)], OSError("no network"), "cifar10 cannot be prepared: no network"),
        (["cifar10", str(tmp_path)], ImportError(name="tensorflow"), "needs tensorflow: pip install"),
    ):
        fails(error)
        with pytest.raises(DropbnError, match=message):
            prepare.main(*arguments)


def _prepare_synthetic(stock_builder, given, directory):
    """Writes examples, split -> [(image or file, label)], in the layout of a stock dataset."""
    features = stock_builder.info.features
    fillers = {"coarse_label": 0, "species": 0, "head_bbox": tfds.features.BBox(0.0, 0.0, 1.0, 1.0)}
    fillers |= dict.fromkeys(("id", "file_name", "image/file_name"), "name")
    fillers["segmentation_mask"] = Image.fromarray(np.zeros((4, 4), np.uint8))

    class Synthetic(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = stock_builder.version

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in given}

        def _generate_examples(self, split):
            for i, (image, label) in enumerate(given[split]):
                others = {key: value for key, value in fillers.items() if key in features}
                yield i, {"image": image, "label": label, **others}

    Synthetic.name = stock_builder.name
    Synthetic(data_dir=directory, file_format="array_record").download_and_prepare()


@pytest.mark.parametrize("name", stock.PHOTOS)
def test_prepared_photographs_are_read_without_tensorflow(name, tmp_path):
    """Photographs of random sizes, each the JPEG file that was given, in the split that is tested on."""
    stock_builder = tfds.builder(name, data_dir=tmp_path, file_format="array_record")
    rng, given, config = np.random.default_rng(0), {}, base.get_config().data
    config.name, config.dir, config.image_size, config.resize = name, str(tmp_path), 8, 10
    with pytest.raises(DropbnError, match=f"'{name}' is not prepared .*\n  pip install tensorflow-cpu"):
        data.load(config)
    for split, number in (("train", 6), (stock.NAMES[name], 3)):
        given[split] = [(tmp_path / f"{split}{i}.jpg", int(rng.integers(30))) for i in range(number)]
        for file, _ in given[split]:
            pixels = rng.integers(0, 256, (*rng.integers(9, 30, 2), 3)).astype(np.uint8)
            Image.fromarray(pixels).save(file)
    _prepare_synthetic(stock_builder, given, tmp_path)
    found = data.load(config)
    assert "tensorflow" not in sys.modules
    assert found.num_classes == {"caltech101": 102, "oxford_iiit_pet": 37, "imagenet2012": 1000}[name]
    for split, theirs in (("train", "train"), ("test", stock.NAMES[name])):
        part = getattr(found, split).take(slice(None))
        wanted = [(found.train.view.test(np.asarray(Image.open(f))).tobytes(), n) for f, n in given[theirs]]
        assert sorted((x.tobytes(), int(n)) for x, n in zip(*part, strict=True)) == sorted(wanted)


@pytest.mark.parametrize("name", [name for name in stock.NAMES if name not in ("digits", *stock.PHOTOS)])
def test_a_prepared_stock_dataset_is_read_without_tensorflow(name, tmp_path):
    """Random images in the layout and version of tensorflow-datasets stand in for the real archive."""
    stock_builder = tfds.builder(name, data_dir=tmp_path, file_format="array_record")
    features, config = stock_builder.info.features, base.get_config().data
    config.name, config.dir = name, str(tmp_path)
    with pytest.raises(DropbnError, match=f"'{name}' is not prepared .*\n  pip install tensorflow-cpu"):
        data.load(config)

    rng = np.random.default_rng(0)
    given = {
        split: [
            (rng.integers(0, 256, features["image"].shape).astype(np.uint8), int(rng.integers(10)))
            for _ in range(number)
        ]
        for split, number in (("train", 12), ("test", 5))
    }

    examples = {
        split: [(Image.fromarray(pixels.squeeze()), label) for pixels, label in pairs]
        for split, pairs in given.items()
    }
    _prepare_synthetic(stock_builder, examples, tmp_path)
    found = data.load(config)
    assert "tensorflow" not in sys.modules
    assert found.num_classes == features["label"].num_classes
    for split, examples in given.items():
        images, labels = getattr(found, split)
        assert sorted((image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)) == (
            sorted((pixels.tobytes(), label) for pixels, label in examples)
        )


def test_plain_images_are_spread_over_the_split(digits):
    for number in (0, 1437, 10_000):
        np.testing.assert_array_equal(digits.plain(number).images, digits.train.images)
    by_class = data.Split(np.arange(100).reshape(100, 1, 1, 1).astype(np.uint8), np.repeat(np.arange(10), 10))
    found = dataclasses.replace(digits, train=by_class).plain(30)
    np.testing.assert_array_equal(np.bincount(found.labels), np.full(10, 3))
    np.testing.assert_array_equal(found.images.squeeze() // 10, found.labels)


SPLIT = data.Split(  # on the host
    np.random.default_rng(0).integers(0, 256, (50, 6, 6, 3)).astype(np.uint8), np.arange(50, dtype=np.int32)
)
ON_DEVICE = jax.device_put(SPLIT)
MEAN, STD = np.float32([0.5, 0.4, 0.3]), np.float32([0.2, 0.3, 0.4])


def _on_devices(function, devices):
    """The global batch that `function(axis_name)` makes on so many devices."""
    mapped = jax.pmap(lambda _: function("batch"), "batch", devices=jax.devices()[:devices])
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), mapped(jnp.arange(devices)))


def test_every_seed_draws_its_images_from_those_that_are_not_test_images():
    def load(seed, number=100):
        config = base.get_config().data
        config.split, config.train_examples, config.subset_seed = "997:0:800", number, seed
        return data.load(config)

    def held(split):
        return {image.tobytes() for image in split.images}

    one, again, other, pool = load(3), load(3), load(4), load(-1, 0)
    assert [d.test.num_examples for d in (one, other, pool)] == [800] * 3 and pool.train.num_examples == 997
    assert one.validation is None and one.fingerprint == again.fingerprint != other.fingerprint
    for drawn in (one, other):
        np.testing.assert_array_equal(drawn.test.images, pool.test.images)
        assert drawn.train.num_examples == 100 and held(drawn.train) <= held(pool.train)
        assert drawn.mean == pytest.approx(drawn.train.images.mean() / 255, rel=1e-6)
    # 100 of 997 and again 100 of 997 share about 10: more than 25 have a probability below 1e-5.
    assert len(held(one.train) & held(other.train)) <= 25
    assert not held(pool.train) & held(pool.test)  # No image is there twice.
    assert len(held(pool.train) | held(pool.test)) == 1797
    spread = load(-1)
    np.testing.assert_array_equal(spread.train.images, pool.train.images[np.arange(100) * 997 // 100])


def test_images_of_a_split_have_one_shape(tmp_path):
    for split, side in (("train", 5), ("test", 6)):
        for label in "ab":
            (tmp_path / split / label).mkdir(parents=True)
            Image.fromarray(np.zeros((side, side), np.uint8)).save(tmp_path / split / label / "0.png")
    config = base.get_config().data
    config.name, config.split = f"folder:{tmp_path}", "2:0:2"
    with pytest.raises(DropbnError, match=r"the shapes \[\(5, 5, 1\), \(6, 6, 1\)\]"):
        data.load(config)


@pytest.mark.parametrize("augmented", [False, True])
def test_order_and_augmentation_do_not_depend_on_the_devices(augmented):
    order = sampling.epoch_order(3, 1, 50)
    make = functools.partial(
        sampling.train_batch,
        ON_DEVICE,
        order,
        9,
        3,
        mean=MEAN,
        std=STD,
        batch_size=8,
        crop_padding=2 * augmented,
        flip=augmented,
    )
    alone = make()
    for devices in (2, 8):
        spread = _on_devices(lambda name: make(axis_name=name), devices)
        np.testing.assert_array_equal(spread["label"], alone["label"])
        # Another program may round the last bit; another crop would differ by more than 1 / 255 / std.
        np.testing.assert_allclose(spread["image"], alone["image"], atol=1e-5)


def test_an_epoch_shows_every_image_once_and_epochs_differ():
    orders = [np.asarray(sampling.epoch_order(0, epoch, 50)) for epoch in range(2)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert (orders[0] != orders[1]).any()
    seen = [
        sampling.train_batch(ON_DEVICE, orders[1], 5 + i, 0, mean=MEAN, std=STD, batch_size=10)["label"]
        for i in range(5)
    ]
    np.testing.assert_array_equal(np.concatenate(seen), orders[1])


def test_augmentation_crops_and_flips_each_image_by_its_own_key():
    keys = jax.random.split(jax.random.key(0), 50)
    out = np.asarray(sampling.augment(ON_DEVICE.images, keys, 2, True))
    padded = np.pad(SPLIT.images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    seen = set()
    for i in range(50):
        found = [
            (top, left, flipped)
            for top in range(5)
            for left in range(5)
            for flipped in (1, -1)
            if (padded[i, top : top + 6, left : left + 6][:, ::flipped] == out[i]).all()
        ]
        assert len(found) == 1
        seen.add(found[0])
    assert len({s[0] for s in seen}) == len({s[1] for s in seen}) == 5
    assert 10 <= sum(s[2] == 1 for s in seen) <= 40
    unflipped = np.asarray(sampling.augment(ON_DEVICE.images, keys, 0, False))
    np.testing.assert_array_equal(unflipped, SPLIT.images)


def test_augmentation_differs_from_epoch_to_epoch():
    """The same image at the same position of two epochs, in orders that are one and the same."""
    order = jnp.arange(50)
    make = functools.partial(
        sampling.train_batch, ON_DEVICE, order, seed=0, mean=MEAN, std=STD, batch_size=25, crop_padding=2
    )
    first, second = make(0), make(2)
    np.testing.assert_array_equal(first["label"], second["label"])
    assert (np.abs(first["image"] - second["image"]).max((1, 2, 3)) > 0.1).mean() > 0.8


@pytest.mark.parametrize("devices", [1, 8])
def test_evaluation_counts_every_image_once(devices):
    labels, masks = [], []
    for i in range(4):
        batch = _on_devices(
            lambda name, i=i: sampling.eval_batch(
                ON_DEVICE, i, mean=MEAN, std=STD, batch_size=16, axis_name=name
            ),
            devices,
        )
        labels.append(batch["label"])
        masks.append(batch["mask"])
        wanted = (SPLIT.images[batch["label"]] / 255 - MEAN) / STD
        np.testing.assert_allclose(batch["image"], wanted, rtol=1e-5, atol=1e-6)
    labels, masks = np.concatenate(labels), np.concatenate(masks)
    np.testing.assert_array_equal(labels[masks], np.arange(50))


def test_batches_on_the_host_end_short_and_follow_an_order():
    batches = list(sampling.PlainBatches(SPLIT, 16, MEAN, STD))
    assert [len(batch["label"]) for batch in batches] == [16, 16, 16, 2]
    np.testing.assert_array_equal(np.concatenate([batch["label"] for batch in batches]), SPLIT.labels)
    order = np.asarray(sampling.epoch_order(1, 0, 50))
    mixed = list(sampling.PlainBatches(SPLIT, 16, MEAN, STD, order))
    np.testing.assert_array_equal(np.concatenate([batch["label"] for batch in mixed]), SPLIT.labels[order])
    wanted = sampling.normalize(SPLIT.images[order[:16]], MEAN, STD)
    np.testing.assert_array_equal(mixed[0]["image"], wanted)
