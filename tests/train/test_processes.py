"""Several processes on one machine train what one process does."""

import contextlib
import copy
import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image

from dropbn import data
from dropbn.errors import Preempted
from dropbn.train import checkpoint, evaluation, loop, parallel, preemption, workdir
from dropbn.train.plan import abstract_state, make_plan
from dropbn.train.progress import Progress

ROOT = pathlib.Path(__file__).parents[2]


def _port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _start(commands, devices):
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    environment["PYTHONPATH"] = str(ROOT)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [
        subprocess.Popen([sys.executable, *command], cwd=ROOT, env=environment, **pipes)
        for command in commands
    ]


def _wait(processes):
    """What they print; all of them end well, and where one hangs, all are ended and say how far they came."""
    deadline = time.monotonic() + 300
    outputs = []
    for process in processes:
        try:
            outputs.append(process.communicate(timeout=max(deadline - time.monotonic(), 1)))
        except subprocess.TimeoutExpired:
            for hung in processes:
                hung.kill()
            outputs.append(process.communicate())
    assert [process.returncode for process in processes] == len(processes) * [0], outputs
    return [output for output, _ in outputs]


def _commands(number, command):
    flags = [*command, f"--coordinator_address=127.0.0.1:{_port()}", f"--num_processes={number}"]
    return [[*flags, f"--process_id={i}"] for i in range(number)]


def _alone(config, directory, devices):
    """Trains in this process; returns (dataset, plan, final state)."""
    dataset = data.load(config.data)
    plan = make_plan(config, dataset, parallel.Layout(tuple(jax.local_devices()[:devices])))
    with Progress("", plan.total_steps, config.batch_size) as progress:
        [outcome] = loop.train_together([plan], [directory], [dataset], progress)
    return dataset, plan, outcome


@pytest.mark.parametrize("number", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_train_as_one(mlp_config, mlp_flags, tmp_path, number):
    """The same losses, accuracies and parameters as one process with as many devices.

    Noise is on: the devices count through the processes, so that its keys are the same. What differs is the
    order of additions between devices and between processes, a few units in the last place a step.
    """
    mlp_config.duration = "1 epochs"
    dataset, plan, alone = _alone(mlp_config, tmp_path / "one", 2 * number)
    command = ["train.py", f"--workdir={tmp_path}/several", *mlp_flags, "--config.duration=1 epochs"]
    first, *others = _wait(_start(_commands(number, command), 2))
    [record], [wanted] = (workdir.read_metrics(tmp_path / name) for name in ("several", "one"))
    for key in wanted.keys() - {"images_per_second"}:
        assert record[key] == pytest.approx(wanted[key], rel=1e-6), key
    with checkpoint.manager(tmp_path / "several" / "checkpoints", read_only=True) as saved:
        state = checkpoint.restore(saved, abstract_state(plan, dataset))
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.variables):
        expected = dict(jax.tree_util.tree_leaves_with_path(alone.variables))[path]
        np.testing.assert_allclose(leaf, expected, rtol=1e-5, atol=1e-6, err_msg=str(path))
    assert "epoch     1" in first and not any("epoch" in output for output in others)
    workdir.claim(tmp_path / "several", plan.config)  # It is a run of this config.


def test_a_batch_that_processes_cannot_share_is_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    with pytest.raises(ValueError, match="batch_size=64 cannot be divided among 3 processes"):
        parallel.together(64)
    assert len(parallel.together(48).devices) == 8
    assert parallel.together(48).share == 24


def _images(root, rng):
    """48 training and 20 test images of 8 x 8 pixels in two classes."""
    for split, number in (("train", 48), ("test", 20)):
        for i in range(number):
            folder = root / split / "ab"[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / f"{i}.png")


def _equal(directory, other, rel=1e-6):
    records, wanted = (workdir.read_metrics(place) for place in (directory, other))
    assert len(records) == len(wanted) > 0
    for record, of_other in zip(records, wanted, strict=True):
        for key in of_other.keys() - {"images_per_second"}:
            assert record[key] == pytest.approx(of_other[key], rel=rel, abs=1e-9), key


@pytest.mark.slow
@pytest.mark.parametrize("group_sizes", [(8, 0), (16, 32)])
def test_groups_streams_and_resumed_runs_of_processes(mlp_config, tmp_path, group_sizes):
    """Two processes of two devices and one of four: each run of a list has the same records.

    BN groups smaller than a device's batch of 16, as large, larger, and global; streamed images, of which
    each process reads its own rows; runs that were stopped by SIGTERM within an epoch, and went on with
    another number of processes.
    """
    configs = {}

    def add(name, **fields):
        config = copy.deepcopy(mlp_config)
        config.update_from_flattened_dict({"data.train_examples": 256, "duration": "2 epochs"} | fields)
        configs[name] = make_plan(config, data.load(config.data)).config

    for group_size in group_sizes:
        add(f"group {group_size}", **{"model.bn.group_size": group_size})
    add("from one to two", **{"model.noise.rate": 0.0})
    _images(tmp_path / "images", np.random.default_rng(0))
    stream = {"data.name": f"folder:{tmp_path}/images", "data.train_examples": 0, "data.image_size": 8}
    add("stream", **stream, **{"data.resize": 8, "batch_size": 16, "eval.train_examples": 16})
    # The last: the processes, which go on here, would stop the others at its step too.
    add("from two to one", **{"model.noise.rate": 0.0, "duration": "20 epochs"})
    # Noise is on but where the number of devices changes: its masks are drawn device by device.
    for name, config in configs.items():
        _alone(config, tmp_path / "one" / name, 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preemption, "watched", lambda shared: contextlib.nullcontext(lambda step: step == 6))
        with pytest.raises(Preempted):
            _alone(configs["from one to two"], tmp_path / "two" / "from one to two", 1)
    jobs = [
        {
            "config": config.to_dict(),
            "directory": f"{tmp_path}/two/{name}",
            "stop_at": 5 if name == "from two to one" else 0,
        }
        for name, config in configs.items()
    ]
    (tmp_path / "jobs").write_text(json.dumps(jobs))
    worker = ["tests/process_worker.py", str(tmp_path / "jobs"), str(_port()), "2"]
    _wait(_start([[*worker, str(i)] for i in range(2)], 2))
    name = "from two to one"
    assert 0 < len(workdir.read_metrics(tmp_path / "two" / name)) < 20
    _alone(configs[name], tmp_path / "two" / name, 8)
    for name in configs:
        _equal(tmp_path / "two" / name, tmp_path / "one" / name, rel=1e-4 if "from" in name else 1e-6)
    read = [json.loads((tmp_path / f"jobs.{i}").read_text()) for i in range(2)]
    # Each reads all 48 + 20 images once for the fingerprint and the 16 that are measured; then, in each of
    # two epochs, its half of the 48 training images and of the 20 test images, which are padded to 32.
    assert list(map(len, read)) == 2 * [68 + 16 + 2 * (24 + 16)]


# train.py, which here takes a process for dead after 5 seconds, not 30.
IMPATIENT = """
import runpy
from dropbn import processes
processes.HEARTBEAT_SECONDS = 5
runpy.run_path("train.py", run_name="__main__")
"""


def test_the_others_end_when_a_process_is_killed(mlp_flags, tmp_path):
    command = ["-c", IMPATIENT, f"--workdir={tmp_path}/run", *mlp_flags, "--config.duration=100000 epochs"]
    processes = _start(_commands(2, command), 1)
    deadline = time.monotonic() + 120
    while not workdir.read_metrics(tmp_path / "run"):
        assert all(process.poll() is None for process in processes) and time.monotonic() < deadline
        time.sleep(0.1)
    processes[1].kill()
    started = time.monotonic()
    _, errors = processes[0].communicate(timeout=60)
    assert processes[0].returncode == 1
    assert errors.endswith("error: lost process 1: it died; run the command again on all\n")
    assert time.monotonic() - started < 20


def test_items_are_shared_by_processes(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    shares = []
    for index in range(3):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        shares.append(parallel.my_share("abcde"))
    assert shares == ["ad", "be", "c"]


@pytest.mark.slow
def test_processes_evaluate_their_share_of_runs(mlp_config, tmp_path):
    mlp_config.duration = "1 epochs"
    for name in "abc":
        _alone(mlp_config, tmp_path / name, 1)
    command = ["eval.py", *(f"--workdir={tmp_path / name}" for name in "abc")]
    first, second = _wait(_start(_commands(2, command), 1))
    assert first.count("Written to") == 2 and second == ""
    reports = [evaluation.read_report(tmp_path / name) for name in "abc"]
    assert reports[0] == reports[1] == reports[2]  # The same run three times.
    assert (tmp_path / "a" / "eval" / "shift_overlay.png").exists()
