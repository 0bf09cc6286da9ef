"""The files that a study publishes, and what a run leaves that is not finished."""

import json
import re

import numpy as np
import pytest

from configs import small
from dropbn.errors import DropbnError
from dropbn.study import command, finished_runs, members, table
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


def _member(directory, seed=0, **changes):
    """A finished member in seedN of a directory, written by hand; a change of None leaves a field out."""
    config = small.get_config()
    config.seed = seed
    path = workdir.claim(directory / f"seed{seed}", config)
    record = {"step": 2, "epoch": 1.0, "test/accuracy": 0.5, "test/loss": 1.0, "train/loss": 1.5}
    (path / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    summary = {"accuracy": 0.5, "loss": 1.0, "train_accuracy": 0.75, "train_accuracy_test_mode": 0.25}
    summary |= {"recalibrated": {"li2018": 0.5}, "correct": {}, "shift": [{"ratio": 0.5}], **changes}
    (path / "eval").mkdir()
    text = json.dumps({key: value for key, value in summary.items() if value is not None})
    (path / "eval" / "summary.json").write_text(text)
    return path


@pytest.mark.parametrize(
    "changes",
    [
        {"accuracy": None},
        {"train_accuracy_test_mode": None},
        {"accuracy": "0.5"},
        {"loss": float("nan")},
        {"recalibrated": {"li2018": "x"}},
        {"correct": {"running": {"images": 9, "bits": "!"}}},
        {"correct": {"running": 1}},
        {"correct": {"running": {"images": -1, "bits": ""}}},
        {"shift": [{"ratio": 0}]},
        {"shift": [{"layer": "bn1"}]},
        {"shift": {"ratio": 1}},
    ],
)
def test_a_member_with_a_bad_summary_does_not_count_and_is_named(tmp_path, changes):
    good, bad = _member(tmp_path), _member(tmp_path, 1, **changes)
    found = finished_runs.cell("net", None, tmp_path.glob("seed*"))
    assert [one.seed for one in found.members] == [0] and found.members[0].numbers["shift"] == 2
    assert finished_runs.unreadable(good) == "" and "seed1/eval/summary.json" in finished_runs.unreadable(bad)


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "eval/summary.json"])
@pytest.mark.parametrize("content", [b"\xff", b"[1]\n", b"{}\n", b"[" * 100_000 + b"\n"])
def test_a_member_whose_files_cannot_be_read_does_not_count(tmp_path, name, content):
    bad = _member(tmp_path)
    (bad / name).write_bytes(content)
    assert finished_runs.cell("net", None, [bad]).members == []
    assert name in finished_runs.unreadable(bad)


def test_a_study_names_the_member_that_does_not_count(tmp_path):
    cells = [{"arg": "a,b"}, {"arg": "c"}]
    for cell in cells:
        _member(members.directory_of(cell["arg"], tmp_path))
    _member(members.directory_of("a,b", tmp_path), 12, accuracy=None)
    named = command._unreadable(cells, tmp_path)
    assert list(named) == ["a,b, seed 12"] and "has no field 'accuracy'" in named["a,b, seed 12"]


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[]", b"{}", b'{"config": 1}'])
def test_a_table_that_cannot_be_read_is_named(tmp_path, content):
    (tmp_path / "table.json").write_bytes(content)
    with pytest.raises(DropbnError, match=r"table\.json"):
        table.refuse_another(tmp_path, "configs/small.py:digits")
