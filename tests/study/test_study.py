"""Studies: members that train together as they would alone, whatever is killed or fails in between."""

import functools
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from configs import small
from dropbn import data, models
from dropbn.data import sampling
from dropbn.errors import DropbnError
from dropbn.study import board, claims, command, cost, finished_runs, jobs, members, table
from dropbn.train import checkpoint, evaluation, feeds, loop, parallel, plan, programs, workdir

ROOT = pathlib.Path(__file__).parents[2]
TINY = (
    "--config.model.width=4",
    "--config.duration=2 epochs",
    "--config.checkpoint_every=1 epochs",
    "--config.eval.train_examples=100",
)
CELL = "preresnet8,digits,place=P4"
# Compiled sooner, where the network does not matter.
PERCEPTRON = (
    "--config.model.name=mlp",
    "--config.model.depth=1",
    "--config.model.block=bn relu dense",
    "--config.model.head=dense",
)


def _members(directory, *cells, seeds=1, overrides=()):
    return members.create("configs/small.py", cells or [CELL], seeds, directory, (*TINY, *overrides))


def _run(chosen, together=False):
    todo, refused = jobs.create(chosen, together)
    with board.Board(len(todo), 0, 1.0) as shown:
        return refused | command.train(todo, shown)


def _records(member):
    found = workdir.read_metrics(member.directory)
    return [{k: v for k, v in record.items() if k != "images_per_second"} for record in found]


def test_members_are_what_train_py_would_run(tmp_path):
    found = members.create(
        "configs/small.py",
        ["preresnet8,digits,place=a,rate=0.5"],
        2,
        tmp_path,
        ["--config.batch_size=32"],
        True,
    )
    assert [member.name for member in found] == [
        "preresnet8,digits,place=a,rate=0.5, seed 0",
        "preresnet8,digits,place=a,rate=0.5, seed 1",
    ]
    config = small.get_config("preresnet8,digits,place=a,rate=0.5,quick")
    config.batch_size, config.seed = 32, 1
    assert found[1].config.to_dict() == config.to_dict()
    assert found[1].directory == tmp_path / "members" / "preresnet8-digits-place=a-rate=0.5" / "seed1"


def test_only_numbers_are_shared(tmp_path):
    """One stack for each thing that is compiled, as many members in it as there are devices."""
    cells = [
        "preresnet8,digits,place=P4",
        "preresnet8,digits,place=a,rate=0.5",  # the same place by Li's name
        "preresnet8,digits,place=P5",
        "preresnet8,digits,place=a,beta=0.5",  # another noise
    ]
    chosen = _members(tmp_path, *cells, seeds=5)
    todo, refused = jobs.create(chosen)
    assert not refused
    stacks = [[job.member.name for job in stack] for stack in jobs.stacks(todo)]
    assert list(map(len, stacks)) == [8, 2, 5, 5]
    assert {name.partition(", seed")[0] for name in stacks[0] + stacks[1]} == set(cells[:2])
    devices = [len(stack[0].plan.layout.devices) for stack in jobs.stacks(todo)]
    assert devices == [8, 8, 5, 5]
    one_by_one = [[job.member.name for job in stack] for stack in jobs.stacks(jobs.create(chosen, True)[0])]
    assert list(map(len, one_by_one)) == [1] * 20


def test_stacks_of_one_structure_share_their_programs(tmp_path):
    """Whatever the seeds and rates are; and only those of one structure."""
    cells = (CELL, "preresnet8,digits,place=a,rate=0.5", "preresnet8,digits,place=P5")
    todo, _ = jobs.create(_members(tmp_path, *cells))

    def compiled(job):
        layout = parallel.side_by_side(8)
        feed = feeds.create(
            job.member.config, job.dataset, layout, 8 * [(job.member.config.seed, job.dataset)]
        )
        return programs.create(job.member.config, feed, job.plan._replace(layout=layout))

    one, same, other = map(compiled, todo)
    assert one is same and one is not other and compiled(todo[0]) is one


def test_a_rate_that_also_acts_in_test_mode_is_compiled(tmp_path):
    cells = (CELL, "preresnet8,digits,place=a,rate=0.5")
    chosen = _members(tmp_path, *cells, overrides=["--config.model.noise.scale_at=test"])
    assert len(list(jobs.stacks(jobs.create(chosen)[0]))) == 2


@pytest.mark.xdist_group("finished")
def test_a_finished_run_of_another_config_is_no_member(finished):
    """Such as of a quick study in the same workdir."""
    directory = finished[0][0].directory.parents[2]
    longer = _members(directory, overrides=["--config.duration=3 epochs"])
    todo, refused = jobs.create(longer)
    assert not todo and "duration: '2 epochs' there, '3 epochs' now" in refused[longer[0].name]


def test_members_with_images_of_their_own_train_side_by_side_as_alone(tmp_path):
    few = ("preresnet8_few,digits",)
    overrides = (*PERCEPTRON, "--config.batch_size=25", "--config.optimizer.learning_rate=0.01")

    def made(name, seeds=2):
        return _members(tmp_path / name, *few, seeds=seeds, overrides=overrides)

    beside, alone = made("beside"), made("alone")[1:]
    [stack] = jobs.stacks(jobs.create(beside)[0])
    assert len(stack) == 2 and stack[0].dataset.fingerprint != stack[1].dataset.fingerprint
    assert not _run(beside) and not _run(alone)
    for record, wanted in zip(_records(beside[1]), _records(alone[0]), strict=True):
        assert record == pytest.approx(wanted, rel=1e-5)
    assert _records(beside[0]) != _records(beside[1])

    # What the study publishes is what its workdirs say, and stands for them on another machine.
    published = finished_runs.cell(few[0], None, [member.directory for member in beside])
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    finished_runs.publish(elsewhere, [published])
    found = finished_runs.published(elsewhere)[few[0]]
    for one, wanted in zip(found, published.members, strict=True):
        assert (one.seed, one.provenance) == (wanted.seed, wanted.provenance)
        assert one.numbers == wanted.numbers and {"accuracy", "shift"} <= one.numbers.keys()
        assert one.correct.keys() == {"running", "li2018_torch", "li2018", "dropout_off"}
        for name, right in wanted.correct.items():
            np.testing.assert_array_equal(one.correct[name], right)
        assert one.correct["running"].mean() == pytest.approx(one.numbers["accuracy"] / 100, abs=1e-6)
    left, refused = jobs.create(made("elsewhere", 3), published=finished_runs.published(elsewhere))
    assert [job.member.config.seed for job in left] == [2] and not refused
    other = _members(elsewhere, *few, overrides=(*overrides, "--config.duration=3 epochs"))
    todo, refused = jobs.create(other, published=finished_runs.published(elsewhere))
    assert not todo and "another config" in refused[other[0].name]


def test_members_of_several_editions_are_no_table():
    def cell(*editions):
        members = [
            finished_runs.Finished(seed, {}, {}, {"edition": edition} if edition else {}, [], {})
            for seed, edition in enumerate(editions)
        ]
        return finished_runs.Cell("net,digits", {}, None, members)

    finished_runs.refuse_several_editions([cell("2", "2"), cell("2")])
    with pytest.raises(DropbnError, match="edition 1, such as net,digits, seed 1; edition 2"):
        finished_runs.refuse_several_editions([cell("2", None)])
    config = small.get_config()
    with pytest.raises(DropbnError, match="edition 1 of the code, this is edition"):
        finished_runs.refuse_another(cell(None).members[0], config)


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


def test_a_member_names_the_commit_that_trained_it():
    def git(*words):
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    changed = git("status", "--porcelain", "--untracked-files=no")
    wanted = git("rev-parse", "HEAD")[:12] + "+" * bool(changed)
    assert finished_runs.provenance(small.get_config())["commit"] == wanted


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


@pytest.mark.parametrize(
    ("only", "chosen"),
    [
        ("", 3),
        ("cifar10", 2),
        ("net,cifar10", 2),
        ("place=P1", 1),
        ("place=P1,cifar10", 1),
        ("*cifar10*", 3),
        ("*P[01]", 1),
        ("P", 0),
    ],
)
def test_only(only, chosen):
    cells = ["net,cifar10", "net,cifar10,place=P1", "net,cifar100"]
    assert sum(command._is_chosen(cell, only) for cell in cells) == chosen


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two members that differ in numbers alone, side by side; and the second of them alone."""
    directories = [tmp_path_factory.mktemp(name) for name in ("beside", "alone")]
    other = "preresnet8,digits,place=a,rate=0.5"
    beside, alone = (
        [*_members(d), *_members(d, other, overrides=["--config.optimizer.learning_rate=0.05"])]
        for d in directories
    )
    assert _run(beside) == {}
    [job], _ = jobs.create(alone[1:])
    alone_plan = job.plan._replace(layout=parallel.Layout(tuple(jax.local_devices()[:1])))
    with board.Board(1, 0, 1.0) as shown, shown.stack(["it"], 1.0, alone_plan.total_steps) as progress:
        loop.train([alone[1].config], [alone[1].directory], [job.dataset], alone_plan, progress)
    return beside, alone


@pytest.mark.xdist_group("finished")
def test_side_by_side_is_as_alone(finished):
    (first, beside), (_, alone) = finished
    records, expected = _records(beside), _records(alone)
    assert len(records) == 2
    for record, wanted in zip(records, expected, strict=True):
        assert record == pytest.approx(wanted, rel=1e-5)
    assert _records(first)[-1]["train/loss"] != records[-1]["train/loss"]


@pytest.mark.xdist_group("finished")
def test_a_finished_member_says_what_it_found(finished):
    [cell] = {member.cell for member in finished[0][:1]}
    found = finished_runs.cell(cell, 94.0, [finished[0][0].directory])
    [member] = found.members
    assert (found.arg, found.paper, member.seed) == (CELL, 94.0, 0)
    assert found.config["model"]["width"] == 4
    assert member.summary["accuracy"] == member.records[-1]["test/accuracy"]
    assert len(member.summary["shift"]) == len(member.summary["shift_li2018"]) == 7
    assert len(member.summary["weights"]) == 10  # seven in branches and stem, two shortcuts, the classifier
    # The same as eval.py finds, by programs of its own.
    config, dataset = finished[0][0].config, data.load(finished[0][0].config.data)
    like = plan.abstract_state(config, dataset, plan.make_plan(config, dataset))
    with checkpoint.manager(finished[0][0].directory / "checkpoints", read_only=True) as saved:
        state = checkpoint.restore(saved, like)
    shift = evaluation.measure_shift(config, dataset, state)
    assert [row["ratio"] for row in member.summary["shift"]] == pytest.approx(
        [row["ratio"] for row in shift.rows], rel=1e-6
    )
    for recipe, accuracy in member.summary["recalibrated"].items():
        again, _ = evaluation.recalibrate_run(config, dataset, state, recipe)
        after = {(row["statistics"], row["data"]): row["accuracy"] for row in again.rows}
        assert accuracy == pytest.approx(after[recipe, "test"], abs=1e-9)
        assert member.correct[recipe].mean() == pytest.approx(accuracy, abs=1e-9)
    assert set(member.summary["recalibrated"]) == {"li2018_torch", "li2018", "dropout_off"}
    outputs = plan.make_plan(config, dataset).model.apply(
        state.variables, sampling.normalize(dataset.test.images, dataset.mean, dataset.std)
    )
    np.testing.assert_array_equal(member.correct["running"], outputs.argmax(-1) == dataset.test.labels)
    assert finished_runs.cell(cell, None, [finished[1][1].directory]).members == []  # trained, not summarized


def test_a_failing_member_does_not_stop_the_others(tmp_path, capsys):
    """One diverges, one has another run in its workdir, one no data; the one beside them comes through."""

    def make(directory, cell=CELL, *flags, seeds=1):
        return _members(directory, cell, seeds=seeds, overrides=(*PERCEPTRON, *flags))

    good, taken = make(tmp_path, seeds=2)
    diverges = make(tmp_path, f"{CELL},seed=5", "--config.optimizer.learning_rate=1e30")
    lacking = make(tmp_path, f"{CELL},seed=6", "--config.data.name=folder:nowhere")
    workdir.claim(taken.directory, small.get_config("preresnet8,digits"))
    failed = _run([good, taken, *diverges, *lacking])
    reasons = {member.directory.parent.name: failed.get(member.name, "") for member in (*diverges, *lacking)}
    assert "place=P4" in failed[taken.name] and "another config" in failed[taken.name]
    assert "not finite at step" in reasons["preresnet8-digits-place=P4-seed=5"]
    assert "nowhere" in reasons["preresnet8-digits-place=P4-seed=6"]
    assert finished_runs.finished(good.directory) and good.name not in failed
    assert len(failed) == 3
    assert "not finite" in (diverges[0].directory / "error.txt").read_text()
    assert "another config" in (taken.directory / "error.txt").read_text()

    alone = make(tmp_path / "alone")
    assert _run(alone) == {}
    assert _records(good)[-1] == pytest.approx(_records(alone[0])[-1], rel=1e-5)
    printed = capsys.readouterr().out
    assert "failed: " in printed and "error.txt" in printed


def _command(directory, *flags):
    words = [
        "-m",
        "dropbn",
        "study",
        "--config=configs/small.py:digits",
        f"--workdir={directory}",
        "--seeds=3",
    ]
    return [sys.executable, *words, "--only=place=P4", *TINY, "--config.duration=6 epochs", *flags]


def _table(directory):
    found = json.loads((directory / "table.json").read_text())
    return {key: value for key, value in found.items() if key != "date"}


def _killed_until_done(directory, times, rng):
    """Runs a study, killing it at random moments; returns how often its members were trained in part."""
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    launch = functools.partial(
        subprocess.Popen, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    kills = 0
    while True:
        process = launch(_command(directory))
        if kills < times:
            lines = _lines(directory) + rng.randint(0, 8)
            while process.poll() is None and _lines(directory) < lines:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.5))
            process.send_signal(signal.SIGKILL)
            kills += 1
        output = process.communicate()[0].decode()
        if process.returncode == 0:
            return output
        assert process.returncode == -signal.SIGKILL, output


def _lines(directory):
    """Records written by all members."""
    return sum(file.read_text().count("\n") for file in directory.glob("members/*/*/metrics.jsonl"))


@pytest.mark.slow  # By default test_faults.py kills one run, and members are runs.
@pytest.mark.parametrize("kills", [1, 10])
def test_a_killed_study_ends_with_the_same_table(tmp_path, kills):
    rng = random.Random(kills)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    _killed_until_done(whole, 0, rng)
    _killed_until_done(cut, kills, rng)
    wanted, found = _table(whole), _table(cut)
    assert found == wanted
    [row] = [row for row in wanted["rows"] if row["seeds"]]
    assert (row["cell"], row["seeds"]) == ("preresnet8,digits,place=P4", 3) and row["value"] > 30
    assert wanted["unfinished"] == 16 * 3  # The table's other cells.
    for seed in range(3):
        one, other = (
            workdir.read_metrics(directory / f"members/preresnet8-digits-place=P4/seed{seed}")
            for directory in (whole, cut)
        )
        assert [record["train/loss"] for record in one] == [record["train/loss"] for record in other]
    todo, refused = jobs.create(_members(whole, seeds=3, overrides=["--config.duration=6 epochs"]))
    assert not todo and not refused  # No finished member is trained again.


def test_a_table_by_hand(tmp_path):
    def member(seed, accuracy, adjusted, ratios):
        rows = [{"layer": "bn", "ratio": ratio} for ratio in ratios]
        records = [{"epoch": 1.0, "train/accuracy": 0.9, "train/accuracy_test_mode": 0.8}]
        summary = {"accuracy": accuracy, "shift": rows, "weights": []}
        summary["recalibrated"] = {"li2018_torch": adjusted}
        return finished_runs.member(seed, records, summary)

    config = small.get_config("preresnet8,digits").to_dict()
    plain = finished_runs.Cell(
        "plain", config, 95.0, [member(0, 0.9, 0.9, [1.0]), member(1, 0.94, 0.93, [0.8, 1.1])]
    )
    noisy = finished_runs.Cell(
        "noisy", config, None, [member(0, 0.8, 0.9, [0.5]), member(1, 0.85, 0.9, [0.4, 1.0])]
    )
    row = table.row(plain, "accuracy", 96.5)
    # t_{0.975, 1} = 12.7062; s of (90, 94) is 2.8284, so the half width is 12.7062 * 2.8284 / sqrt(2).
    assert (row["seeds"], row["value"]) == (2, pytest.approx(92))
    assert row["value_interval"] == pytest.approx(25.4124, abs=1e-3)
    assert (row["paper"], row["difference"], row["paper_adjusted"]) == (95.0, pytest.approx(-3), 96.5)
    assert row["shift"] == pytest.approx((1 + 1.25) / 2)
    assert table.row(plain, "error")["value"] == pytest.approx(8)
    assert row.keys() - table.row(plain, "accuracy", 96.5, comparable=False).keys() == {
        "paper",
        "difference",
        "paper_adjusted",
    }
    empty = table.row(plain._replace(members=[]), "accuracy")
    assert (empty["seeds"], empty["value"], empty["difference"], empty["shift"]) == (0, None, None, None)

    claim = claims.Claim("plain above noisy", "plain", "noisy", "accuracy", "a source", 3.0)
    facts = {
        "command": "python -m dropbn study",
        "seeds": [0, 1],
        "failed": [],
        "unfinished": 1,
        "config": "",
    }
    found = table.collect(
        tmp_path, "A title", "accuracy", [plain, noisy], True, {"plain": 96.5}, [claim], **facts
    )
    [judged] = found["claims"]
    assert (judged["difference"], judged["seeds"]) == (pytest.approx(9.5), 2)
    # 10 and 9 points: s = 0.7071, half width 12.7062 * 0.7071 / sqrt(2) = 6.3531.
    assert judged["interval"] == pytest.approx(6.3531, abs=1e-3)
    assert judged["verdict"] == "confirmed"
    assert json.loads((tmp_path / "table.json").read_text()) == found
    text = (tmp_path / "table.md").read_text()
    assert "| plain | 2 | 92.00 +- 25.41 | 95.00 | -3.00 |" in text
    assert "Not run: 1 members." in text and "recalibrated |" not in text
    assert (
        (tmp_path / "table.csv")
        .read_text()
        .splitlines()[0]
        .startswith("cell,seeds,value,value_interval,paper")
    )
    # One claim is its own family. t = 9.5 / 0.5 of one degree of freedom: p = 1 - 2 atan(t) / pi = 0.0335.
    assert "| plain above noisy | confirmed | 9.50 +- 6.35 | 3.00 | a source | accuracy |" in text
    assert "| seeds, images unknown | 2 | 0.50 | 0.033 | 0.033 | 0.033 |" in text
    assert "intervals, which are not adjusted for the number of claims" in text
    assert "| claim | verdict | difference | paper | source | metric |" in text

    other = tmp_path / "other"
    table.collect(other, "A title", "accuracy", [plain, noisy], False, {"plain": 96.5}, [claim], **facts)
    text = (other / "table.md").read_text()
    assert "| cell | seeds | value | adjusted | shift |" in text and "96.50" not in text
    assert "| difference | paper (other network and data) | source | metric |" in text
    assert "paper" not in (other / "table.csv").read_text()


def test_the_cost_of_networks_is_the_published_one():
    """Multiply-adds of Zagoruyko & Komodakis (2016), Table 5, and of ResNet-50 by torchvision."""
    from configs import kim2023, li2018

    for config, size, wanted in (
        (li2018.get_config("wrn28_10,cifar10"), 32, 5.2e9),
        (kim2023.get_config("resnet50_imagenet,imagenet2012"), 224, 4.1e9),
    ):
        config.model.num_classes = 1000 if size == 224 else 10
        model, image = models.create(config.model), jax.ShapeDtypeStruct((1, size, size, 3), "float32")
        variables = jax.eval_shape(model.init, jax.random.key(0), image)
        assert cost.flops(model.apply, variables, image) / 2 == pytest.approx(wanted, rel=0.02)


def test_operations_are_counted_through_loops_and_calls():
    x = np.ones((4, 4), np.float32)

    def looped(x):
        x, _ = jax.lax.scan(lambda carry, _: (jax.jit(lambda a: a @ a)(carry), None), x, None, length=5)
        return jax.checkpoint(lambda a: a @ a)(x)

    assert cost.flops(looped, x) == 6 * 2 * 4**3


MISTAKES = {
    "no table": ("--config=configs/kim2023.py", "Say which table"),
    "override": ("--config=configs/small.py:digits --config.modle.depth=8", "no field 'modle'"),
}


@pytest.mark.parametrize(("flags", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_end_in_a_sentence(flags, message, tmp_path):
    command = [sys.executable, "-m", "dropbn", "study", f"--workdir={tmp_path}/w", *flags.split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (1, 2) and message in done.stderr, done.stderr
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    assert not (tmp_path / "w").exists()


def test_files_that_are_no_studies_are_refused():
    with pytest.raises(DropbnError, match=r"no config file configs/nothing\.py"):
        members.load("configs/nothing.py")
    with pytest.raises(DropbnError, match="no sweep"):
        members.load("configs/digits.py")


def test_a_dry_run_trains_nothing(tmp_path):
    command = [
        sys.executable,
        "-m",
        "dropbn",
        "study",
        f"--workdir={tmp_path}/w",
        "--dry_run",
        "--quick",
    ]
    done = subprocess.run(
        [*command, "--config=configs/small.py:digits", "--seeds=2", "--only=*P[0-3]"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "8 members, 8 to be trained" in done.stdout and "place=P3" in done.stdout
    assert not (tmp_path / "w").exists()
