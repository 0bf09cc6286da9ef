"""Checkpoints: latest and best kept, strict restore, errors that name the place."""

import random
import shutil

import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.experimental import multihost_utils

from dropbn.errors import DropbnError
from dropbn.train import checkpoint, retention


def _state(step, **extra):
    return {"step": np.int32(step), "params": {"conv1": np.full((3, 2), step, np.float32)}, **extra}


@pytest.fixture
def saved(tmp_path):
    """Five checkpoints, the second the best; the last two and the best are kept."""
    with checkpoint.manager(tmp_path / "c") as opened:
        for step, accuracy in enumerate((0.5, 0.9, 0.6, 0.8, 0.7), 1):
            checkpoint.save(opened, 10 * step, _state(step), accuracy)
    return tmp_path / "c"


def test_latest_and_best_are_kept(saved):
    with checkpoint.manager(saved) as opened:
        for which, step in (("latest", 5), ("best", 2), ("20", 2), (50, 5)):
            state = checkpoint.restore(opened, _state(0), which)
            assert state["step"] == step
            np.testing.assert_array_equal(state["params"]["conv1"], np.full((3, 2), step, np.float32))
        for which in ("30", "bset", -1):
            with pytest.raises(DropbnError, match=r"has \[20, 40, 50\], 'latest' and 'best'"):
                checkpoint.restore(opened, _state(0), which)


@pytest.mark.parametrize(("which", "step"), [("latest", 90), ("best", 80), ("50", None)])
def test_a_checkpoint_that_training_removes_gives_way_to_the_next(saved, monkeypatch, which, step):
    """Right after it was chosen."""
    choose = checkpoint._chosen

    def choose_and_train(opened, which):
        chosen = choose(opened, which)
        monkeypatch.setattr(checkpoint, "_chosen", choose)
        with checkpoint.manager(saved) as training:
            for later, accuracy in ((60, 0.6), (70, 0.95), (80, 0.99), (90, 0.6)):
                checkpoint.save(training, later, _state(later // 10), accuracy)
        return chosen

    monkeypatch.setattr(checkpoint, "_chosen", choose_and_train)
    with checkpoint.manager(saved, read_only=True) as opened:
        if step:
            assert checkpoint.restore(opened, _state(0), which)["step"] == step // 10
        else:
            with pytest.raises(DropbnError, match=r"No checkpoint '50' in .* has \[80, 90\]"):
                checkpoint.restore(opened, _state(0), which)


@pytest.mark.parametrize(("failures", "readable"), [(2, True), (10**6, False)])
def test_steps_that_go_while_they_are_listed(saved, monkeypatch, failures, readable):
    """Orbax lists the steps and then asks for the time of each."""
    left, infos = [None] * failures, ocp.CheckpointManager._load_checkpoint_infos

    def disturbed(self, **given):
        if left:
            left.pop()
            raise FileNotFoundError
        return infos(self, **given)

    monkeypatch.setattr(ocp.CheckpointManager, "_load_checkpoint_infos", disturbed)
    if readable:
        with checkpoint.manager(saved, read_only=True) as opened:
            left += [None] * failures
            assert checkpoint.restore(opened, _state(0), "best")["step"] == 2
    else:
        refused = pytest.raises(DropbnError, match=r"^The checkpoints in .* are removed faster than")
        with refused, checkpoint.manager(saved, read_only=True):
            pass


def test_a_run_that_went_on_is_saved_where_it_is_stopped(saved, monkeypatch):
    """At the step of a preemption, by a manager of a new process; orbax's own cannot."""
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", lambda step: True)
    with checkpoint.manager(saved) as opened:
        checkpoint.save(opened, 60, _state(6), 0.6)
    with checkpoint.manager(saved) as opened:
        assert checkpoint.restore(opened, _state(0))["step"] == 6


def test_another_network_is_refused_with_the_differing_paths(saved):
    other = _state(0)
    other["params"] = {"conv1": np.zeros((3, 4), np.float32), "conv2": np.zeros(5, np.float32)}
    with checkpoint.manager(saved) as opened, pytest.raises(DropbnError) as error:
        checkpoint.restore(opened, other)
    message = str(error.value)
    assert "params/conv1: ((3, 2), 'float32') in the checkpoint, ((3, 4), 'float32') in the model" in message
    assert "params/conv2: missing in the checkpoint" in message
    assert "step" not in message.split("\n", 1)[1]


def test_empty_and_corrupt_directories(saved, tmp_path):
    with (
        checkpoint.manager(tmp_path / "empty") as opened,
        pytest.raises(DropbnError, match="No checkpoint in"),
    ):
        checkpoint.restore(opened, _state(0))
    for file in (saved / "50").rglob("*"):
        if file.is_file() and file.parent.name == "d":
            file.write_bytes(b"garbage")
    with checkpoint.manager(saved) as opened:
        with pytest.raises(DropbnError, match=r"The checkpoint of step 50 in .* cannot be read"):
            checkpoint.restore(opened, _state(0))
        assert checkpoint.restore(opened, _state(0), 20)["step"] == 2


def test_what_was_saved_comes_back_with_it(tmp_path):
    about = {"totals": {"loss": 0.1 + 0.2}, "dataset": {"train": "60000 images"}}
    with checkpoint.manager(tmp_path / "c") as opened:
        checkpoint.save(opened, 7, _state(7), None, about)
    with checkpoint.manager(tmp_path / "c") as opened:
        state, found, notes = checkpoint.resume(opened, _state(0))
        assert retention.best_step(opened) is None
    assert state["step"] == 7 and found == about and notes == []


def _flip(path, at, bit):
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two checkpoints; flips strike copies of them."""
    path = tmp_path_factory.mktemp("saved") / "c"
    with checkpoint.manager(path) as opened:
        for step in (1, 2):
            checkpoint.save(opened, step, _state(step), step / 10, {"totals": {}})
    return path


def _resume_after_a_flip(two, place, draw):
    """Flips a bit of a file of the newest checkpoint: it is restored as it was, or the one before is."""
    shutil.copytree(two, place)
    files = sorted(file for file in (place / "2").rglob("*") if file.is_file() and file.stat().st_size)
    file = files[draw.randrange(len(files))]
    _flip(file, draw.randrange(file.stat().st_size), draw.randrange(8))
    with checkpoint.manager(place) as opened:
        state, about, notes = checkpoint.resume(opened, _state(0))
    step = 1 if notes else 2
    assert state["step"] == step and about == {"totals": {}}
    np.testing.assert_array_equal(state["params"]["conv1"], np.full((3, 2), step, np.float32))
    return bool(notes)


@pytest.mark.parametrize("cases", [20, pytest.param(2000, marks=pytest.mark.slow)])
def test_flipped_bits_are_noticed(two, tmp_path, cases):
    draw = random.Random(0)
    noticed = 0
    for case in range(cases):
        noticed += _resume_after_a_flip(two, tmp_path / str(case), draw)
        shutil.rmtree(tmp_path / str(case))
    assert 0 < noticed < cases  # Some bits mean nothing, such as those of a file's time.
