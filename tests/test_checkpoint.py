"""Checkpoints: latest and best kept, strict restore, errors that name the place."""

import numpy as np
import pytest

from dropbn import checkpoint
from dropbn.errors import DropbnError


def _state(step, **extra):
    return {"step": np.int32(step), "params": {"conv1": np.full((3, 2), step, np.float32)}, **extra}


@pytest.fixture
def saved(tmp_path):
    """Five checkpoints, the second the best."""
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
            with pytest.raises(DropbnError, match=r"has \[20, 50\], 'latest' and 'best'"):
                checkpoint.restore(opened, _state(0), which)


def test_another_network_is_refused_with_the_differing_paths(saved):
    other = _state(0)
    other["params"] = {"conv1": np.zeros((3, 4), np.float32), "conv2": np.zeros(5, np.float32)}
    with checkpoint.manager(saved) as opened, pytest.raises(DropbnError) as error:
        checkpoint.restore(opened, other)
    message = str(error.value)
    assert "params/conv1: ((3, 2), 'float32') in the checkpoint, ((3, 4), 'float32') in the model" in message
    assert "params/conv2: missing in the checkpoint" in message
    assert "step" not in message.replace("Checkpoint", "").split("\n", 1)[1]


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
        with pytest.raises(DropbnError, match=r"Checkpoint 50 in .* cannot be read"):
            checkpoint.restore(opened, _state(0))
        assert checkpoint.restore(opened, _state(0), 20)["step"] == 2
