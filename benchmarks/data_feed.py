"""What the input costs: python -m benchmarks.data_feed

Images on the device: the step of the training loop alternates with the same step on a batch that is already
there. The loop's step gathers, crops and flips its batch on the device and is called with what the host's
feed yields.

Photographs: JPEG files are read, decoded and augmented by the grain path. The images per second and core are
compared with the images per second that a ResNet-50 of 224 pixels takes on this machine.
"""

import pathlib
import tempfile

import jax
import numpy as np
import PIL.Image

from benchmarks import networks, side_by_side
from benchmarks.side_by_side import Row
from configs import base
from dropbn import data, runtime
from dropbn.data import splits
from dropbn.train import feeds, parallel, plan, programs, runs, steps

ROUNDS, STEPS = 7, 3
PHOTOS, SIDE, BATCH = 32, 224, 8


def rows() -> list[Row]:
    """The input's share of a step, and the rate of the streamed path beside the device's."""
    runtime.prepare()
    return [*_resident(), *_streamed()]


def _resident():
    config, layout = base.get_config(), parallel.Layout(tuple(jax.local_devices()[:1]))
    config.data.crop_padding, config.data.flip = 4, True
    rng = np.random.default_rng(0)
    split = splits.Split(
        rng.integers(0, 256, (1280, 32, 32, 3), dtype=np.uint8), rng.integers(0, 10, 1280).astype(np.int32)
    )
    half = np.full(3, 0.5, np.float32)
    dataset = data.Dataset(split, split, 10, half, half)
    step, state, feed, hyper = _training(config, dataset, layout)
    inputs = feed.train_inputs(0, range(10**6))
    given = next(inputs)
    batch = parallel.on_each(lambda inputs: feed.batcher.train_batch(inputs, 0, 0), layout)(given)
    fixed, fixed_state = networks.ours_on_devices(networks.PRERESNET, 1)[:2]

    def whole():
        nonlocal state
        for _ in range(STEPS):
            state, sums = step(state, next(inputs), hyper)
        jax.block_until_ready((state, sums))

    def alone():
        nonlocal fixed_state
        for _ in range(STEPS):
            fixed_state, sums = fixed(fixed_state, batch)
        jax.block_until_ready((fixed_state, sums))

    def host():
        for _ in range(100):
            next(inputs)

    seconds = side_by_side.turns({"whole": whole, "alone": alone, "host": host}, ROUNDS)
    of_step = np.median(seconds["alone"]) / STEPS
    share = side_by_side.spread(100 * seconds["host"] / 100 / of_step)
    ratio = side_by_side.spread(seconds["whole"] / seconds["alone"])
    return [
        Row(
            "images on the device: host's work for a step, % of the step (PreResNet-20)",
            str(share),
            "at most 2",
            share.median <= 2,
        ),
        Row("images on the device: step with gather, crop and flip / step on a ready batch", str(ratio)),
    ]


def _streamed():
    with tempfile.TemporaryDirectory() as directory:
        _write_photos(pathlib.Path(directory))
        config = base.get_config()
        config.data.name, config.data.image_size, config.data.flip = f"folder:{directory}", SIDE, True
        config.batch_size = BATCH
        config.model.update({"name": "resnet_imagenet", "depth": 50, "width": 64})
        dataset = data.load(config.data)
        step, state, feed, hyper = _training(config, dataset)
        number = PHOTOS // BATCH

        def read():
            return list(feed.train_inputs(0, range(number)))

        given = read()[0]

        def train():
            nonlocal state
            state, sums = step(state, given, hyper)
            jax.block_until_ready((state, sums))

        seconds = side_by_side.turns({"read": read, "train": train}, 3)
    decoded, eaten = PHOTOS / seconds["read"], BATCH / seconds["train"]
    ratio = side_by_side.spread(decoded / eaten)
    return [
        Row("photographs: decoded and augmented, images/s", str(side_by_side.spread(decoded))),
        Row(
            f"photographs: taken by ResNet-50 in training, batch {BATCH}, images/s",
            str(side_by_side.spread(eaten)),
        ),
        side_by_side.at_least("photographs: decoded / taken", ratio, 1.0),
    ]


def _training(config, dataset, layout=None):
    """(step, state, feed, hyper) of a config's training."""
    planned = plan.make_plan(config, dataset, layout)
    feed = feeds.create([planned], [dataset])
    step = programs.create(planned, feed).train_step
    state = planned.layout.put([runs.initial_state(planned, dataset)])
    hyper = planned.layout.put([steps.Hyper(planned.seed, planned.architecture.amount, 1.0)])
    return step, state, feed, hyper


def _write_photos(directory):
    """Smooth images of 500 x 375 pixels as JPEG, of two classes."""
    rng = np.random.default_rng(0)
    for split, number in (("train", PHOTOS), ("test", 2)):
        for i in range(number):
            path = directory / split / f"class{i % 2}" / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            small = PIL.Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
            small.resize((500, 375), PIL.Image.Resampling.BICUBIC).save(path, quality=90)


if __name__ == "__main__":
    side_by_side.show(rows())
