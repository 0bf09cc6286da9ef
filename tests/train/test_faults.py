"""Bad days: kills, SIGTERM, full disks, damaged checkpoints, changed data, runs that diverge."""

import contextlib
import json
import multiprocessing
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from dropbn.errors import DropbnError, Preempted
from dropbn.train import checkpoint, evaluation, feeds, loop, losses, programs, retention, runs, workdir
from dropbn.train.progress import Progress

ROOT = pathlib.Path(__file__).parents[2]
STEPS_PER_EPOCH = 22


def _records(directory):
    """The records, without how fast they were made."""
    found = workdir.read_metrics(directory)
    return [{k: v for k, v in record.items() if k != "images_per_second"} for record in found]


def _at_step(monkeypatch, step, action):
    """Lets something happen right after a step since the process began to train."""
    taken = []
    show = Progress.step

    def hooked(self, sums):
        taken.append(None)
        if len(taken) == step:
            action()
        show(self, sums)

    monkeypatch.setattr(Progress, "step", hooked)


def _damage(step_directory):
    for file in pathlib.Path(step_directory).rglob("d/*"):
        if file.is_file():
            file.write_bytes(b"garbage")


@contextlib.contextmanager
def _small_disk(path, *options):
    """A file system of 2 MB; only root can mount one."""
    path.mkdir(exist_ok=True)
    options = ",".join(("size=2m", *options))
    mount = shutil.which("mount")
    if (
        not mount
        or subprocess.run(
            [mount, "-t", "tmpfs", "-o", options, "tmpfs", path], capture_output=True
        ).returncode
    ):
        pytest.skip("mounting a small file system needs root")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


def _in_its_own_process(config, directory):
    jax.config.update("jax_threefry_partitionable", False)
    loop.train_and_evaluate(ml_collections.ConfigDict(config), directory)


@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_a_run_killed_at_random_moments_ends_as_if_nothing_had_been(mlp_config, tmp_path, kills):
    """Half of the kills strike while a checkpoint is being written."""
    mlp_config.duration = f"{4 * kills} epochs"
    loop.train_and_evaluate(mlp_config, tmp_path / "whole")
    cut, draw = tmp_path / "cut", random.Random(0)
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["dropbn.train.loop", "tensorflow_datasets", "tensorboardX"])
    struck = lost = 0
    while struck < kills:
        process = processes.Process(target=_in_its_own_process, args=(mlp_config.to_dict(), cut))
        before = len(_records(cut))
        process.start()
        _wait(process, lambda before=before: len(_records(cut)) > before)
        if struck % 2:
            _wait(process, lambda: any("tmp" in path.name for path in (cut / "checkpoints").iterdir()))
        else:
            time.sleep(draw.uniform(0, 0.3))
        process.kill()
        process.join()
        assert process.exitcode in (-signal.SIGKILL, 0)
        struck += 1
        text = (cut / "metrics.jsonl").read_text()
        done = [json.loads(line)["step"] for line in text.split("\n")[:-1]]
        assert done == sorted(set(done)), "a line is there twice"
        saved = [int(path.name) for path in (cut / "checkpoints").iterdir() if path.name.isdecimal()]
        # While one checkpoint is being written the next interval begins, but not the one after it.
        lost = max(lost, done[-1] - max(saved, default=0))
        assert lost <= 2 * STEPS_PER_EPOCH
        if process.exitcode == 0:
            break
    loop.train_and_evaluate(mlp_config, cut)
    assert _records(cut) == _records(tmp_path / "whole")  # Bit for bit.
    assert struck >= min(kills, 5)


def _wait(process, happened):
    deadline = time.monotonic() + 60
    while process.is_alive() and not happened():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_sigterm_saves_within_an_epoch_and_nothing_is_lost(mlp_config, tmp_path, monkeypatch):
    loop.train_and_evaluate(mlp_config, tmp_path / "whole")
    _at_step(monkeypatch, 30, lambda: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)  # Of a test that has run a command in this process, its own.
    with pytest.raises(Preempted, match="0") as stop:
        loop.train_and_evaluate(mlp_config, tmp_path / "cut")
    assert stop.value.code == 0 and stop.value.message == "stopped by SIGTERM at step 30 of 44, saved"
    assert signal.getsignal(signal.SIGTERM) is before
    with checkpoint.manager(tmp_path / "cut" / "checkpoints", read_only=True) as saved:
        assert saved.latest_step() == 30 and retention.best_step(saved) == 22
    loop.train_and_evaluate(mlp_config, tmp_path / "cut")
    assert _records(tmp_path / "cut") == _records(tmp_path / "whole")  # Bit for bit.


def test_the_command_ends_with_0_on_sigterm_and_says_how_to_go_on(mlp_flags, tmp_path):
    flags = [f"--workdir={tmp_path / 'a run'}", *mlp_flags, "--config.duration=1000 epochs"]
    command = [sys.executable, "train.py", *flags]
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not workdir.read_metrics(tmp_path / "a run"):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.terminate()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    last, said = output.splitlines()[-1], output.splitlines()[-2]
    assert said.startswith("stopped by SIGTERM at step ") and said.endswith("; resume with")
    assert f"train.py '--workdir={tmp_path}/a run' --config.model.name=mlp" in last


def test_checkpoints_within_an_epoch(mlp_config, tmp_path, monkeypatch):
    """An interval that is shorter than an epoch is kept, and the epoch's sums survive with it."""
    mlp_config.checkpoint_every = "10 steps"
    loop.train_and_evaluate(mlp_config, tmp_path / "whole")
    saved, save = [], runs.Run.save

    def spied(run):
        saved.append(run.step)
        save(run)
        if run.step == 32:
            raise KeyboardInterrupt

    monkeypatch.setattr(runs.Run, "save", spied)
    with pytest.raises(KeyboardInterrupt):
        loop.train_and_evaluate(mlp_config, tmp_path / "cut")
    assert saved == [10, 20, 22, 32]
    monkeypatch.undo()
    loop.train_and_evaluate(mlp_config, tmp_path / "cut")
    assert _records(tmp_path / "cut") == _records(tmp_path / "whole")


@pytest.mark.parametrize(
    ("before", "after"),
    [(1, 8), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in ((8, 1), (2, 8)))],
)
def test_a_checkpoint_of_some_devices_resumes_on_others(mlp_config, tmp_path, monkeypatch, before, after):
    """The batches are the same, and without noise the trajectory, but for the order of additions."""

    def train(directory, devices, stop_at=0):
        monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:devices])
        with monkeypatch.context() as patch, contextlib.suppress(Preempted):
            if stop_at:
                _at_step(patch, stop_at, lambda: os.kill(os.getpid(), signal.SIGTERM))
            loop.train_and_evaluate(mlp_config, directory)
        return _records(directory)

    for name, rate in (("noise off", 0.0), ("noise on", 0.5)):
        mlp_config.model.noise.rate = rate
        whole = train(tmp_path / name / "whole", before)
        train(tmp_path / name / "cut", before, stop_at=30)
        resumed = train(tmp_path / name / "cut", after)
        assert resumed[0] == whole[0]
        for key in ("train/loss", "test/loss"):
            same = resumed[1][key] == pytest.approx(whole[1][key], rel=1e-4)
            assert same == (rate == 0), f"{name}: {key}"


def test_a_damaged_checkpoint_gives_way_to_the_one_before(mlp_config, tmp_path, capsys):
    mlp_config.duration = "3 epochs"
    directory = tmp_path / "run"
    loop.train_and_evaluate(mlp_config, directory)
    records = _records(directory)
    _damage(directory / "checkpoints" / "66")
    capsys.readouterr()
    loop.train_and_evaluate(mlp_config, directory)
    said = " ".join(capsys.readouterr().out.split())
    assert "The checkpoint of step 66 in" in said and "Going on from that of step 44" in said
    assert _records(directory) == records
    assert (directory / "checkpoints" / "unreadable" / "66").is_dir()
    for step in (44, 66):
        _damage(directory / "checkpoints" / str(step))
    for path in (directory / "checkpoints").iterdir():
        if path.name == "22":
            _damage(path)
    before = (directory / "metrics.jsonl").read_bytes()
    with pytest.raises(DropbnError, match=r"The checkpoint of step 66 in .* cannot be read"):
        loop.train_and_evaluate(mlp_config, directory)
    shutil.rmtree(directory / "checkpoints")
    with pytest.raises(DropbnError, match="records up to step 66 but no checkpoint"):
        loop.train_and_evaluate(mlp_config, directory)
    assert (directory / "metrics.jsonl").read_bytes() == before


def test_a_full_disk_is_said_and_the_run_goes_on_when_there_is_room(mlp_config, tmp_path, monkeypatch):
    mlp_config.duration = "4 epochs"
    loop.train_and_evaluate(mlp_config, tmp_path / "whole")
    with _small_disk(tmp_path / "disk") as disk:
        filler = disk / "filler"

        def fill():
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))

        _at_step(monkeypatch, 60, fill)
        with pytest.raises(
            DropbnError, match=r"Cannot write (checkpoints )?to .*(No space|space left|ENOSPC)"
        ):
            loop.train_and_evaluate(mlp_config, disk / "run")
        monkeypatch.undo()
        filler.unlink()
        with checkpoint.manager(disk / "run" / "checkpoints", read_only=True) as saved:
            assert saved.latest_step() >= 22
        loop.train_and_evaluate(mlp_config, disk / "run")
        assert _records(disk / "run") == _records(tmp_path / "whole")


def test_a_workdir_that_cannot_be_written_is_refused(mlp_config, tmp_path):
    mlp_config.duration = "1 epochs"
    with _small_disk(tmp_path / "disk") as disk:
        loop.train_and_evaluate(mlp_config, disk / "run")
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(DropbnError, match=r"Cannot write to workdir .*run: Read-only file system"):
            loop.train_and_evaluate(mlp_config, disk / "run")
        with pytest.raises(DropbnError, match=r"Cannot write to workdir .*new: Read-only file system"):
            loop.train_and_evaluate(mlp_config, disk / "new")


def test_a_workdir_in_use_is_refused(mlp_config, tmp_path):
    mlp_config.model.num_classes = 10
    directory = workdir.claim(tmp_path / "run", mlp_config)
    with workdir.lock(directory), pytest.raises(DropbnError, match="Another process is training in"):
        loop.train_and_evaluate(mlp_config, directory)


def _images(rng, number):
    return rng.integers(0, 256, (number, 4, 4, 1), np.uint8), np.arange(number) % 3


def test_data_that_changed_under_a_run_is_refused_with_the_difference(mlp_config, tmp_path):
    rng = np.random.default_rng(0)
    arrays = dict(zip(("train_images", "train_labels"), _images(rng, 64), strict=True))
    arrays |= dict(zip(("test_images", "test_labels"), _images(rng, 16), strict=True))
    np.savez(tmp_path / "data.npz", **arrays)
    mlp_config.data.name, mlp_config.batch_size = f"npz:{tmp_path}/data.npz", 16
    loop.train_and_evaluate(mlp_config, tmp_path / "run")
    arrays["train_images"][3, 1, 2, 0] ^= 1
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(DropbnError, match="The dataset has changed") as error:
        loop.train_and_evaluate(mlp_config, tmp_path / "run")
    message = str(error.value)
    assert "train: 64 images 4x4x1, digest" in message and "test:" not in message
    with pytest.raises(DropbnError, match="The dataset has changed"):
        evaluation.evaluate(tmp_path / "run")
    assert not (tmp_path / "run" / "eval").exists()


def test_checkpoints_of_another_run_are_refused(mlp_config, tmp_path):
    mlp_config.duration, mlp_config.model.block, mlp_config.model.noise.rate = "1 epochs", "dense relu", 0.0
    loop.train_and_evaluate(mlp_config, tmp_path / "run", checkpoint_dir=f"{tmp_path}/elsewhere")
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert evaluation.evaluate(tmp_path / "run").checkpoint_step == 22
    with pytest.raises(DropbnError, match=r"has its checkpoints in .*elsewhere, not in .*other"):
        loop.train_and_evaluate(mlp_config, tmp_path / "run", checkpoint_dir=f"{tmp_path}/other")
    mlp_config.seed = 1
    with pytest.raises(DropbnError, match="are of a run of another config"):
        loop.train_and_evaluate(mlp_config, tmp_path / "new", checkpoint_dir=f"{tmp_path}/elsewhere")
    with pytest.raises(DropbnError, match="gs://bucket/run cannot be a workdir"):
        loop.train_and_evaluate(mlp_config, "gs://bucket/run")


def _diverges(config, directory):
    with pytest.raises(DropbnError) as error:
        loop.train_and_evaluate(config, directory)
    return str(error.value)


def test_a_run_that_diverges_says_where_first(mlp_config, tmp_path):
    """Without BN, weights of 1e25 after the first step: in the head they meet inputs of 1e25."""
    mlp_config.model.block, mlp_config.optimizer.learning_rate = "dense relu", 1e25
    mlp_config.model.noise.rate = 0.0
    said = _diverges(mlp_config, tmp_path / "run")
    assert said.startswith("The output of head/dense1 is not finite at step 2; there is no checkpoint yet.")
    assert workdir.read_metrics(tmp_path / "run") == []
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_an_update_that_overflows_is_named(mlp_config, tmp_path, monkeypatch):
    def scaled(outputs, batch):
        sums = classify(outputs, batch)
        return sums | {"loss": 1e4 * sums["loss"]}

    classify = losses.classify
    monkeypatch.setitem(losses.TASKS, "classify", scaled)
    monkeypatch.setattr(programs, "_CACHED", {})
    mlp_config.duration = "1 steps"  # whose loss is finite: it is the state after it that must not be kept
    mlp_config.optimizer.learning_rate = 3e38  # times a gradient that is above 2: more than float32 holds
    said = _diverges(mlp_config, tmp_path / "run")
    assert said.startswith("The update of params/head/dense1/bias is not finite at step 1")


def test_a_gradient_that_is_not_finite_is_named_from_the_loss_on(mlp_config, tmp_path, monkeypatch):
    def rooted(outputs, batch):
        """The loss, to which the root of 0 adds 0 with an infinite slope, times 0 in the chain rule: nan."""
        sums = classify(outputs, batch)
        return sums | {"loss": sums["loss"] + jnp.sqrt(0 * outputs.sum())}

    classify = losses.classify
    monkeypatch.setitem(losses.TASKS, "classify", rooted)
    monkeypatch.setattr(programs, "_CACHED", {})
    mlp_config.log_every, mlp_config.checkpoint_every = "5 steps", "10 epochs"
    steps = []
    monkeypatch.setattr(Progress, "step", lambda progress, sums: steps.append(len(sums)))
    said = _diverges(mlp_config, tmp_path / "run")
    assert said.startswith("The gradient of head/dense1/bias is not finite at step 1")
    assert steps == [1, 2, 3, 4, 5]


def test_the_last_good_checkpoint_is_named_and_kept(mlp_config, tmp_path, monkeypatch):
    """From the second epoch on the images are not numbers."""
    train = feeds.Gather.train_batch

    def poisoned(batches, inputs, step, seed):
        batch = train(batches, inputs, step, seed)
        return batch | {"image": jnp.where(step < STEPS_PER_EPOCH + 8, batch["image"], jnp.nan)}

    monkeypatch.setattr(feeds.Gather, "train_batch", poisoned)
    monkeypatch.setattr(programs, "_CACHED", {})
    said = _diverges(mlp_config, tmp_path / "run")
    assert said.startswith("The output of input is not finite at step 31; the last good checkpoint is")
    assert "is that of step 22." in said
    assert [record["step"] for record in workdir.read_metrics(tmp_path / "run")] == [22]
    with checkpoint.manager(tmp_path / "run" / "checkpoints", read_only=True) as saved:
        assert saved.all_steps() == [22]
