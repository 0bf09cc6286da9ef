"""Splits that are too large for memory: an image is read and prepared when it is asked for."""

import concurrent.futures
import dataclasses
from collections.abc import Iterator, Sequence

import absl.logging
import numpy as np
from absl import flags

from dropbn.data.photos import View
from dropbn.data.splits import Split
from dropbn.errors import extra


@dataclasses.dataclass(frozen=True)
class Stream:
    """A split that is used like a `Split`, with its images in `source`.

    Attributes:
      source: examples by row, {"image": uint8 (height, width, 1 or 3), "label": int}.
      rows: the rows of `source` that belong to the split, in its order.
      view: how an image becomes a square.
    """

    source: Sequence[dict]
    rows: np.ndarray
    view: View

    @property
    def num_examples(self) -> int:
        return len(self.rows)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (self.view.size, self.view.size, 3)

    @property
    def fingerprint(self) -> str:
        """Like a `Split`'s, but of 64 images at equal distances: reading all would take an epoch."""
        sample = np.unique(np.linspace(0, self.num_examples - 1, 64).astype(int))
        return f"{self.num_examples} images, of which {self.take(sample).fingerprint}"

    def take(self, positions: slice | np.ndarray) -> Split:
        """The examples at some positions (a slice or an array), in memory and without augmentation."""
        with concurrent.futures.ThreadPoolExecutor() as pool:
            images, labels = zip(*pool.map(self._plain, self.rows[positions]), strict=True)
        return Split(np.stack(images), np.array(labels))

    def _plain(self, row):
        example = self.source[int(row)]
        return self.view.test(example["image"]), np.int32(example["label"])

    def epoch(
        self,
        order: np.ndarray,
        positions: np.ndarray,
        batch_size: int,
        *,
        seed: int,
        epoch: int,
        workers: int = 0,
    ) -> Iterator[Split]:
        """Augmented batches of an epoch, read ahead by grain.

        An image's augmentation follows only from seed, epoch and position.

        Args:
          order: the order of the epoch, as positions in this split.
          positions: the wanted places in that order, one batch after another.
          batch_size: images in a batch.
          seed: the run's seed.
          epoch: the epoch.
          workers: processes that read; 0 reads in threads.
        """
        with extra("data"):
            import grain

        read = _Augmented(self, order, seed, epoch)
        batches = grain.MapDataset.source(positions).map(read).batch(batch_size, drop_remainder=True)
        ahead = grain.ReadOptions(num_threads=4, prefetch_buffer_size=4)
        reader = batches.to_iter_dataset(ahead)
        if workers:
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # grain reads flags, which a program without absl never parses.
            reader = reader.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers), _quiet)
        for batch in reader:
            yield Split(batch["image"], batch["label"])


def _quiet(worker, num_workers):
    absl.logging.set_verbosity(absl.logging.ERROR)


@dataclasses.dataclass(frozen=True)
class _Augmented:
    """Reads and augments the example at a position of an epoch; it is sent to worker processes."""

    stream: Stream
    order: np.ndarray
    seed: int
    epoch: int

    def __call__(self, position):
        example = self.stream.source[int(self.stream.rows[self.order[position]])]
        rng = np.random.default_rng((self.seed, self.epoch, int(position)))
        return {
            "image": self.stream.view.train(example["image"], rng),
            "label": np.int32(example["label"]),
        }
