"""Several processes on one machine train what one process does."""

import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from dropbn import checkpoint, data, parallel, training, workdir
from dropbn.plan import abstract_state, make_plan
from dropbn.progress import Progress

ROOT = pathlib.Path(__file__).parent.parent


def _together(number, devices, command):
    """What `number` processes print that run a command together, each with so many devices."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = [f"--coordinator_address=127.0.0.1:{port}", f"--num_processes={number}"]
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    processes = [
        subprocess.Popen(
            [sys.executable, *command, *flags, f"--process_id={i}"],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(number)
    ]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == number * [0], outputs
    return [output for output, _ in outputs]


@pytest.mark.parametrize("number", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_train_as_one(tiny_config, tmp_path, number):
    """The same losses, accuracies and parameters as one process with as many devices.

    Noise is on: the devices count through the processes, so that its keys are the same. What differs is the
    order of additions between devices and between processes, a few units in the last place a step.
    """
    tiny_config.duration, tiny_config.eval.train_examples = "1 epochs", 100
    # Small, because each process compiles it: BN over all devices behind dropout.
    tiny_config.model.name, tiny_config.model.depth, tiny_config.model.width = "mlp", 1, 16
    tiny_config.model.block, tiny_config.model.head = "dense drop bn relu", "dense"
    dataset = data.load(tiny_config.data)
    plan = make_plan(tiny_config, dataset, parallel.Layout(tuple(jax.local_devices()[: 2 * number])))
    with Progress("", plan.total_steps, tiny_config.batch_size) as progress:
        [alone] = training.train([tiny_config], [tmp_path / "one"], dataset, plan, progress)
    command = [
        "train.py",
        f"--workdir={tmp_path}/several",
        "--config.model.name=mlp",
        "--config.model.depth=1",
        "--config.model.width=16",
        "--config.model.block=dense drop bn relu",
        "--config.model.head=dense",
        "--config.duration=1 epochs",
        "--config.eval.train_examples=100",
    ]
    first, *others = _together(number, 2, command)
    [record], [wanted] = (workdir.read_metrics(tmp_path / name) for name in ("several", "one"))
    for key in wanted.keys() - {"images_per_second"}:
        assert record[key] == pytest.approx(wanted[key], rel=1e-6), key
    with checkpoint.manager(tmp_path / "several" / "checkpoints", read_only=True) as saved:
        state = checkpoint.restore(saved, abstract_state(tiny_config, dataset, plan))
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.variables):
        expected = dict(jax.tree_util.tree_leaves_with_path(alone.variables))[path]
        np.testing.assert_allclose(leaf, expected, rtol=1e-5, atol=1e-6, err_msg=str(path))
    assert "epoch     1" in first and not any("epoch" in output for output in others)
    workdir.claim(tmp_path / "several", tiny_config)  # It is a run of this config.


def test_a_batch_that_processes_cannot_share_is_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    with pytest.raises(ValueError, match="batch_size=64 cannot be divided among 3 processes"):
        parallel.together(64)
    assert len(parallel.together(48).devices) == 8
    assert parallel.together(48).share == 24
