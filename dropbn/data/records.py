"""The records of a dataset that tensorflow-datasets has prepared, in array_record files."""

import dataclasses
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dropbn.errors import DropbnError, shown

if TYPE_CHECKING:
    import tensorflow_datasets as tfds


@dataclasses.dataclass(frozen=True)
class Records:
    """The examples of a split in the files of a prepared dataset.

    Attributes:
      source: what tensorflow-datasets reads them by.
      files: the files.
      num_classes: labels lie in [0, num_classes).
    """

    source: Any
    files: tuple[str, ...]
    num_classes: int

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, row: int) -> dict:
        """The example of a row; raises as `take`."""
        return self._read(lambda: [self.source[row]])[0]

    def take(self, rows: Sequence[int]) -> list[dict]:
        """The examples of some rows.

        Raises:
          DropbnError: the files are damaged, or hold other examples than such a dataset has.
        """
        return self._read(lambda: self.source.__getitems__(rows))

    def _read(self, read):
        try:
            examples = read()
            if not all(0 <= example["label"] < self.num_classes for example in examples):
                raise ValueError(f"a label is not one of its {self.num_classes} classes")
        except Exception as error:  # array_record, Pillow and tensorflow-datasets raise many kinds.
            raise DropbnError(
                f"The prepared data in {os.path.dirname(self.files[0])} cannot be read: "
                f"{first_line(error)}. Remove that folder and prepare it again."
            ) from error
        return examples


def of_split(builder: "tfds.core.DatasetBuilder", split: str) -> Records:
    """The records of a split.

    Raises:
      DropbnError: the files hold another number of records than its dataset_info.json says, or none.
      Exception: whatever tensorflow-datasets and array_record raise for files that were cut or edited.
    """
    from array_record.python.array_record_module import ArrayRecordReader

    source = builder.as_data_source(split=split)
    paths = tuple(map(str, builder.info.splits[split].filepaths))
    held = 0
    for path in paths:
        reader = ArrayRecordReader(path)
        held += reader.num_records()
        reader.close()
    if not len(source) == held > 0:
        raise DropbnError(
            f"Split {split!r} in {builder.data_dir} has {len(source)} examples by its dataset_info.json and "
            f"{held} in its files: remove that folder and prepare it again."
        )
    return Records(source, paths, builder.info.features["label"].num_classes)


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its kind where it has none."""
    return shown((str(error).strip().splitlines() or [type(error).__name__])[0].rstrip("."))
