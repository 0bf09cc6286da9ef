"""Training: device counts, random streams, compilations, resume, refusals, and the digits themselves."""

import functools
import os
import pathlib
import signal
import subprocess
import sys
import time

import flax.linen as nn
import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import rich.console

from dropbn import data
from dropbn.errors import DropbnError
from dropbn.nn import noise
from dropbn.train import console, evaluation, feeds, loop, measurements, parallel, programs, steps, workdir
from dropbn.train.plan import make_plan

ROOT = pathlib.Path(__file__).parents[2]
TINY = (
    "--config.model.depth=8",
    "--config.model.width=4",
    "--config.data.crop_padding=1",
    "--config.eval.train_examples=300",
)


def _train_command(directory, *flags):
    return [sys.executable, "train.py", f"--workdir={directory}", *flags]


def _environment():
    """A user's process: one CPU device, the tests' data."""
    return {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}


def _few_steps(config, devices, number=3, amount=None):
    """State and sums after some steps on the first `devices` devices, by the run's own programs."""
    dataset = data.load(config.data)
    plan = make_plan(config, dataset)._replace(layout=parallel.Layout(tuple(jax.devices()[:devices])))
    feed = feeds.create([plan], [dataset])
    run = programs.create(plan, feed)
    replicate = functools.partial(parallel.replicate, devices=plan.layout.devices)
    amount = plan.architecture.amount if amount is None else amount
    hyper = replicate(steps.Hyper(config.seed, amount, 1.0))
    state = replicate(steps.create_state(plan.model, plan.tx, config.seed, dataset.train.images.shape[1:]))
    sums = []
    for inputs in feed.train_inputs(0, range(number)):
        state, new = run.train_step(state, inputs, hyper)
        sums.append(parallel.unreplicate(new))
    return parallel.unreplicate(state), sums


@pytest.mark.parametrize(
    ("epochs", "flags", "accuracy", "lowest", "highest"),
    [
        pytest.param(
            *(6, ("--config.model.noise.rate=0.7", "--config.model.depth=8"), 0.8, (0.0, 0.5), (0.0, 2.0)),
            id="in short",
        ),
        *(
            pytest.param(30, flags, *wanted, id=name, marks=pytest.mark.slow)
            for name, flags, *wanted in (
                ("none", ("--config.model.noise.rate=0",), 0.98, (0.9, 1.1), (0.9, 1.1)),
                ("dropout 0.7", ("--config.model.noise.rate=0.7",), 0.9, (0.0, 0.5), (0.0, 2.0)),
                (
                    "uout 0.5",
                    ("--config.model.noise.kind=uout", "--config.model.noise.beta=0.5"),
                    *(0.98, (0.8, 1.1), (0.8, 1.1)),
                ),
            )
        ),
    ],
)
def test_digits_show_the_shift(tmp_path, epochs, flags, accuracy, lowest, highest):
    """The default config, in short less deep: the control has no shift, dropout 0.7 has, Uout 0.5 hardly."""
    run = tmp_path / "run"
    done = subprocess.run(
        _train_command(run, *flags, f"--config.duration={epochs} epochs"),
        cwd=ROOT,
        env=_environment(),
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr.decode()
    config = workdir.read_config(run)
    dataset = data.load(config.data)
    state, records = loop.train_and_evaluate(config, run, dataset)  # finished: restores
    assert records[-1]["epoch"] == epochs and records[-1]["test/accuracy"] >= accuracy
    ratios = [row["ratio"] for row in measurements.measure_shift(config, dataset, state).rows]
    assert lowest[0] <= min(ratios) <= lowest[1]
    assert highest[0] <= max(ratios) <= highest[1]


@pytest.mark.parametrize(("config", "group_size"), [("tiny_config", 0), ("mlp_config", 16)])
def test_eight_devices_train_as_one(request, config, group_size):
    config = request.getfixturevalue(config)
    config.model.noise.rate = 0.0
    config.model.bn.group_size = group_size
    config.data.crop_padding, config.data.flip = 1, True
    (one, sums1), (eight, sums8) = (_few_steps(config, devices) for devices in (1, 8))
    for a, b in zip(sums1, sums8, strict=True):
        assert a["count"] == b["count"] == 64
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    # Sums over devices round in another order: three steps at rate 0.1 carry that to about 1e-5.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), one, eight)


class _Recorder(nn.Module):
    """Keeps its dropout mask in batch_stats, which the step averages over devices."""

    amount: float

    @nn.compact
    def __call__(self, x, deterministic=True):
        mask = noise.Dropout(self.amount)(jnp.ones_like(x), deterministic=deterministic)
        self.variable("batch_stats", "mask", lambda: jnp.zeros_like(x)).value = mask
        return nn.Dense(2)(mask * x)


def _masks(seed, step, devices=8):
    """The mask averaged over devices at a step."""
    x = jnp.ones((4, 50))
    model, tx = _Recorder(0.5), optax.sgd(0.1)
    variables = model.init(jax.random.key(0), x)
    state = steps.TrainState(jnp.int32(step), variables["params"], variables["batch_stats"], ())
    state = state.replace(opt_state=tx.init(state.params))
    hyper = steps.Hyper(seed, 0.5, 1.0)
    one = functools.partial(
        steps.train_step, build=lambda hyper: _Recorder(hyper.amount), tx=tx, axis_name="batch"
    )
    batch = {"image": jnp.stack([x] * devices), "label": jnp.zeros((devices, 4), jnp.int32)}
    new, _ = jax.jit(jax.vmap(one, in_axes=(None, 0, None), axis_name="batch"))(state, batch, hyper)
    return np.asarray(new.batch_stats["mask"][0])


@pytest.mark.slow
def test_masks_differ_by_device_step_and_seed_and_repeat():
    first = _masks(0, 3)
    # The average of 8 independent masks of values 0 and 2 is 0 or 2 with probability 2^-7 only.
    assert np.isin(first, (0, 2)).mean() < 0.05
    assert np.isin(_masks(0, 3, devices=1), (0, 2)).all()
    np.testing.assert_array_equal(first, _masks(0, 3))
    for other in (_masks(0, 4), _masks(1, 3)):
        assert (first != other).mean() > 0.5


def test_nothing_compiles_after_the_first_step_whatever_the_amount(mlp_config):
    dataset = data.load(mlp_config.data)
    plan = make_plan(mlp_config, dataset)
    feed = feeds.create([plan], [dataset])
    run = programs.create(plan, feed)
    replicate = functools.partial(parallel.replicate, devices=plan.layout.devices)
    state = replicate(steps.create_state(plan.model, plan.tx, 0, (8, 8, 1)))
    hypers = [replicate(steps.Hyper(seed, rate, 1.0)) for seed, rate in ((0, 0.5), (1, 0.0), (2, 1.0))]
    compiled = []
    losses = []
    for epoch, hyper in enumerate(hypers):
        if epoch == 1:
            jax.monitoring.register_event_duration_secs_listener(
                lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None
            )
        for inputs in feed.train_inputs(epoch, range(2)):
            state, sums = run.train_step(state, inputs, hyper)
        losses.append(parallel.unreplicate(sums)["loss"])
    assert compiled == []
    jax.jit(lambda x: x + 1)(jnp.zeros(3))
    assert compiled, "the listener hears no compilation at all"
    jax.monitoring.clear_event_listeners()
    assert len(set(map(float, losses))) == 3


@pytest.mark.slow  # The killed study of test_study.py shows the same of its members.
def test_a_killed_run_resumes_to_the_same_records(tmp_path):
    flags = (*TINY, "--config.duration=25 epochs", "--config.checkpoint_every=2 epochs")
    launch = functools.partial(
        subprocess.Popen, cwd=ROOT, env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    whole = launch(_train_command(tmp_path / "whole", *flags))
    cut = launch(_train_command(tmp_path / "cut", *flags))
    deadline = time.monotonic() + 120
    while len(workdir.read_metrics(tmp_path / "cut")) < 6:
        assert cut.poll() is None and time.monotonic() < deadline, cut.communicate()[0].decode()
        time.sleep(0.005)
    cut.send_signal(signal.SIGKILL)
    cut.wait()
    survived = len(workdir.read_metrics(tmp_path / "cut"))
    assert 6 <= survived < 25
    rerun = launch(_train_command(tmp_path / "cut", *flags))
    for process in (whole, rerun):
        output = process.communicate()[0].decode()
        assert process.returncode == 0, output

    def records(name):
        found = workdir.read_metrics(tmp_path / name)
        return [{k: v for k, v in record.items() if k != "images_per_second"} for record in found]

    assert len(records("whole")) == 25
    assert records("cut") == records("whole")  # Bit for bit.
    printed = output.count("epoch ")
    assert printed < 25, "the rerun started from scratch"


def test_a_finished_run_is_not_repeated(tiny_config, tmp_path, capsys):
    written = []
    state, records = loop.train_and_evaluate(tiny_config, tmp_path / "run", write=written.append)
    assert [record["epoch"] for record in records] == [1, 2]
    assert [record for record in written if "epoch" in record] == records
    lately = [record for record in written if "epoch" not in record]
    assert lately and all(record.keys() == {"step", "train/loss_lately"} for record in lately)
    assert set(records[0]) == {
        "step",
        "epoch",
        "train/loss",
        "train/accuracy",
        "train/accuracy_test_mode",
        "test/loss",
        "test/accuracy",
        "images_per_second",
    }
    capsys.readouterr()
    again, same = loop.train_and_evaluate(tiny_config, tmp_path / "run")
    assert same == records
    jax.tree.map(np.testing.assert_array_equal, again, state)
    assert "epoch" not in capsys.readouterr().out


def test_a_duration_that_ends_within_an_epoch(mlp_config, tmp_path):
    mlp_config.duration = "30 steps"
    _, records = loop.train_and_evaluate(mlp_config, tmp_path / "run")
    assert [record["step"] for record in records] == [22, 30]
    assert records[-1]["epoch"] == pytest.approx(30 / 22)


def test_a_state_is_not_used_again_after_its_step(mlp_config, tmp_path, monkeypatch):
    """Where its memory is donated it is gone, which on a CPU it would not be: here it is deleted."""
    on_each, deleted = parallel.on_each, []

    def gone(function, layout, *, in_axes=0, donate=None):
        mapped = on_each(function, layout, in_axes=in_axes)

        def run(*arguments):
            found = jax.block_until_ready(mapped(*arguments))
            for leaf in jax.tree.leaves(() if donate is None else arguments[donate]):
                leaf.delete()
                deleted.append(leaf)
            return found

        return run

    monkeypatch.setattr(parallel, "on_each", gone)
    monkeypatch.setattr(programs, "_CACHED", {})
    mlp_config.checkpoint_every = mlp_config.log_every = "5 steps"
    state, records = loop.train_and_evaluate(mlp_config, tmp_path / "run")
    assert [record["step"] for record in records] == [22, 44]
    assert len(deleted) == 44 * len(jax.tree.leaves(state))


@pytest.mark.slow
def test_a_network_without_norms_trains_and_evaluates(tiny_config, tmp_path):
    tiny_config.model.name, tiny_config.model.depth = "mlp", 1
    tiny_config.model.block, tiny_config.model.head = "dense relu drop", "dense"
    _, records = loop.train_and_evaluate(tiny_config, tmp_path / "run")
    found = evaluation.evaluate(tmp_path / "run")
    assert found.shift.rows == [] and len(found.gap.rows) == 4
    terminal = rich.console.Console(width=120, markup=False)
    with terminal.capture() as printed:
        console.print_run(records, found.shift, "runs/[bn relu]", terminal)
        console.print_evaluation(found, "runs/x", terminal)
    assert "--workdir='runs/[bn relu]'" in printed.get()
    assert "Most shifted" not in printed.get()


def test_a_plan_leaves_the_config_alone_and_knows_which_programs_it_shares(mlp_config):
    dataset, given = data.load(mlp_config.data), mlp_config.to_json()
    plan = make_plan(mlp_config, dataset)
    assert mlp_config.to_json() == given
    assert (plan.config.model.num_classes, mlp_config.model.num_classes) == (10, 0)
    assert (plan.steps_per_epoch, plan.total_steps, plan.seed) == (22, 44, mlp_config.seed)
    for changes, shared in (
        ({"seed": 7, "optimizer.learning_rate": 0.01, "model.noise.rate": 0.1}, True),
        ({"model.place": "", "model.num_classes": 10, "model.noise.beta": 0.3}, True),
        ({"optimizer.learning_rate": 0.0}, False),
        ({"model.noise.scale_at": "test"}, False),
        ({"model.block": "dense bn drop relu"}, False),
        ({"model.num_classes": 11}, False),
    ):
        config = mlp_config.copy_and_resolve_references()
        config.update_from_flattened_dict(changes)
        assert (make_plan(config, dataset).structure == plan.structure) is shared, changes


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("data.name", "digit", "Unknown dataset"),
        ("model.name", "resnxt", "Unknown model"),
        ("model.noise.kind", "gauss", "Unknown noise"),
        ("model.noise.rate", 1.5, "rate must lie in"),
        ("model.bn.group_size", 7, "group_size=7 does not fit 8 device"),
        ("model.num_classes", 3, "the data has 10 classes"),
        ("model.head", "bn relu dense", "after gap or flatten"),
        ("batch_size", 5000, "give 1 to 1437"),
        ("batch_size", 0, "give 1 to 1437"),
        ("seed", -1, "seed=-1: give 0 to"),
        ("model.width", 0, "model.width=0: give 1 or more"),
        ("data.crop_padding", -1, "data.crop_padding=-1"),
        ("model.bn.epsilon", -1.0, "model.bn.epsilon=-1.0"),
        ("model.bn.momentum", 1.0, "model.bn.momentum=1.0"),
        ("eval.train_examples", -5, "eval.train_examples=-5"),
        ("duration", "2 weeks", "one number and one unit"),
        ("duration", "0 epochs", "less than one step"),
        ("optimizer.schedule", "cosin", "Unknown schedule"),
    ],
)
def test_bad_configs_are_refused_before_anything_is_written(tiny_config, tmp_path, field, value, message):
    with tiny_config.unlocked():
        tiny_config.update_from_flattened_dict({field: value})
    with pytest.raises(DropbnError, match=message):
        loop.train_and_evaluate(tiny_config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
