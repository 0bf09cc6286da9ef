"""The files that a study publishes, and what a run leaves that is not finished."""

import re

import numpy as np
import pytest

from configs import small
from dropbn.errors import DropbnError
from dropbn.study import finished_runs
from dropbn.train import workdir


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("members.csv", "cell,seed\na,x\n"),
        ("correct.csv", "cell,seed,statistics,images,bits\na,0,running,9,!\n"),
    ],
)
def test_published_files_that_cannot_be_read(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(DropbnError, match=re.escape(str(tmp_path))):
        finished_runs.published(tmp_path)


@pytest.mark.parametrize("images", [0, 1, 7, 8, 9, 800])
def test_bits_are_packed_and_unpacked(images):
    right = np.random.default_rng(images).random(images) < 0.7
    packed = finished_runs.pack(right)
    assert len(packed["bits"]) <= 4 * (images // 24 + 1)
    np.testing.assert_array_equal(finished_runs.unpack(**packed), right)


@pytest.mark.parametrize("left", ["config.json.tmp", "error.txt"])
def test_what_an_early_end_leaves_behind_is_no_run(tmp_path, left):
    (tmp_path / left).write_text("half")
    workdir.claim(tmp_path, small.get_config())
    assert workdir.read_config(tmp_path).model.depth == 8
