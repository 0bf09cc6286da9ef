"""The numbers of the papers' figures, read from their vector graphics.

They come from Li, Chen, Hu and Yang 2018, "Understanding the disharmony between dropout and batch
normalization by variance shift", arXiv:1801.05134v1. `dataset` is C10 or C100 (CIFAR), `network` PreResNet
(PreResNet-110), ResNeXt (ResNeXt-29, 8x64d), WRN (WRN-28-10) or DenseNet (DenseNet-BC, 100 layers, growth
12), and `drop` a drop probability:

- `li2018_figure1`: `shift` by `bn_index` for DenseNet on C100, without dropout and with 0.5 in (a).
- `li2018_figure3`: `panel` "cos2 by layer" (x: layer, y: mean cos^2 theta) and "d cos2 by d" (x: d).
- `li2018_figure4`: `shift`, the larger of real / moving variance and its inverse, by BN index `x`;
  `placement` Dropout-(a) or Dropout-(b).
- `li2018_figure4_errors`: the bars of Fig. 4, `error_pct` on the test images. The file has them in full, even
  where print cuts them.
- `li2018_figure5`: `train_acc`, in %, by `epoch`; `mode` train or test. C10 begins at epoch 30.

Indices and epochs are rounded to whole numbers, values to two to four decimals. The paths in the graphics
leave out points on a straight line between their neighbors, so some indices and epochs are missing. The
curves of Fig. 4 are cut at the top of the axis: where a curve leaves the axis, the data hold the crossing,
whose `x` is not whole, and nothing above it. This happens to PreResNet (a) 0.7 at 3.094, to PreResNet (b) 0.7
(and 0.5 on C10) at 1.209, and to ResNeXt (b) 0.7 at 1.449; their means and maxima are lower bounds.
"""

import csv
import functools
from importlib import resources

from dropbn.errors import unknown

NAMES = (
    "li2018_figure1",
    "li2018_figure3",
    "li2018_figure4",
    "li2018_figure4_errors",
    "li2018_figure5",
)


def rows(name: str, **columns: str | float) -> list[dict]:
    """The rows of a figure of a paper.

    Args:
      name: the figure, one of `NAMES`.
      **columns: values that rows must have, by column; without any, all rows are returned.

    Returns:
      A dict for each row, in the order of the curves; numbers are floats. Empty if the paper has no such row.

    Raises:
      DropbnError: the figure or a column is unknown.

    >>> rows("li2018_figure4_errors", dataset="C10", network="PreResNet", placement="Dropout-(a)", drop=0.5)
    [{'placement': 'Dropout-(a)', 'dataset': 'C10', 'network': 'PreResNet', 'drop': 0.5, 'error_pct': 8.43}]
    """
    if name not in NAMES:
        raise unknown("figure", name, NAMES)
    table = _table(name)
    for column in columns:
        if column not in table[0]:
            raise unknown(f"column of {name}", column, table[0])
    return [dict(row) for row in table if all(row[key] == value for key, value in columns.items())]


@functools.cache
def _table(name):
    text = (resources.files(__name__) / f"{name}.csv").read_text(encoding="utf-8")
    return [{key: _number(value) for key, value in row.items()} for row in csv.DictReader(text.splitlines())]


def _number(text):
    try:
        return float(text)
    except ValueError:
        return text
