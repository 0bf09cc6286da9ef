"""Members that train together as they would alone, even if one of them fails."""

import jax
import numpy as np
import pytest
from small_members import CELL, PERCEPTRON, members_of, records_of, run

from configs import small
from dropbn import data
from dropbn.data import sampling
from dropbn.study import finished_runs, progress, work_items
from dropbn.train import checkpoint, loop, measurements, parallel, plan, workdir


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two members that differ only in numbers, side by side; and the second of them alone."""
    directories = [tmp_path_factory.mktemp(name) for name in ("beside", "alone")]
    other = "preresnet8,digits,place=a,rate=0.5"
    beside, alone = (
        [*members_of(d), *members_of(d, other, overrides=["--config.optimizer.learning_rate=0.05"])]
        for d in directories
    )
    assert run(beside) == {}
    [item], _ = work_items.create(alone[1:])
    alone_plan = item.plan._replace(layout=parallel.Layout(tuple(jax.local_devices()[:1])))
    with progress.StudyProgress(1, 0, 1.0) as shown, shown.group(["it"], 1.0, alone_plan.total_steps) as bar:
        loop.train_together([alone_plan], [alone[1].directory], [item.dataset], bar)
    return beside, alone


@pytest.mark.xdist_group("finished")
def test_a_finished_run_of_another_config_is_no_member(finished):
    """It may come from a quick study in the same workdir."""
    directory = finished[0][0].directory.parents[2]
    longer = members_of(directory, overrides=["--config.duration=3 epochs"])
    todo, refused = work_items.create(longer)
    assert not todo and "duration: '2 epochs' there, '3 epochs' now" in refused[longer[0].name]


@pytest.mark.slow
def test_members_with_images_of_their_own_train_side_by_side_as_alone(tmp_path):
    few = ("preresnet8_few,digits",)
    overrides = (*PERCEPTRON, "--config.batch_size=25", "--config.optimizer.learning_rate=0.01")

    def made(name, seeds=2):
        return members_of(tmp_path / name, *few, seeds=seeds, overrides=overrides)

    beside, alone = made("beside"), made("alone")[1:]
    [group] = work_items.groups(work_items.create(beside)[0])
    assert len(group) == 2 and group[0].dataset.fingerprint != group[1].dataset.fingerprint
    assert not run(beside) and not run(alone)
    for record, wanted in zip(records_of(beside[1]), records_of(alone[0]), strict=True):
        assert record == pytest.approx(wanted, rel=1e-5)
    assert records_of(beside[0]) != records_of(beside[1])

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
    left, refused = work_items.create(made("elsewhere", 3), published=finished_runs.published(elsewhere))
    assert [item.member.config.seed for item in left] == [2] and not refused
    other = members_of(elsewhere, *few, overrides=(*overrides, "--config.duration=3 epochs"))
    todo, refused = work_items.create(other, published=finished_runs.published(elsewhere))
    assert not todo and "another config" in refused[other[0].name]


@pytest.mark.xdist_group("finished")
def test_side_by_side_is_as_alone(finished):
    (first, beside), (_, alone) = finished
    records, expected = records_of(beside), records_of(alone)
    assert len(records) == 2
    for record, wanted in zip(records, expected, strict=True):
        assert record == pytest.approx(wanted, rel=1e-5)
    assert records_of(first)[-1]["train/loss"] != records[-1]["train/loss"]


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
    dataset = data.load(finished[0][0].config.data)
    its_plan = plan.make_plan(finished[0][0].config, dataset)
    config, like = its_plan.config, plan.abstract_state(its_plan, dataset)
    with checkpoint.manager(finished[0][0].directory / "checkpoints", read_only=True) as saved:
        state = checkpoint.restore(saved, like)
    shift = measurements.measure_shift(config, dataset, state)
    assert [row["ratio"] for row in member.summary["shift"]] == pytest.approx(
        [row["ratio"] for row in shift.rows], rel=1e-6
    )
    for recipe, accuracy in member.summary["recalibrated"].items():
        again, _ = measurements.recalibrate_run(config, dataset, state, recipe)
        after = {(row["statistics"], row["data"]): row["accuracy"] for row in again.rows}
        assert accuracy == pytest.approx(after[recipe, "test"], abs=1e-9)
        assert member.correct[recipe].mean() == pytest.approx(accuracy, abs=1e-9)
    assert set(member.summary["recalibrated"]) == {"li2018_torch", "li2018", "dropout_off"}
    outputs = its_plan.model.apply(
        state.variables, sampling.normalize(dataset.test.images, dataset.mean, dataset.std)
    )
    np.testing.assert_array_equal(member.correct["running"], outputs.argmax(-1) == dataset.test.labels)
    assert finished_runs.cell(cell, None, [finished[1][1].directory]).members == []  # trained, not summarized


def test_a_failing_member_does_not_stop_the_others(tmp_path, capsys):
    """One diverges, one has another run in its workdir, one has no data; the one beside them succeeds."""

    def make(directory, cell=CELL, *flags, seeds=1):
        return members_of(directory, cell, seeds=seeds, overrides=(*PERCEPTRON, *flags))

    good, taken = make(tmp_path, seeds=2)
    diverges = make(tmp_path, f"{CELL},seed=5", "--config.optimizer.learning_rate=1e30")
    lacking = make(tmp_path, f"{CELL},seed=6", "--config.data.name=folder:nowhere")
    workdir.claim(taken.directory, small.get_config("preresnet8,digits"))
    failed = run([good, taken, *diverges, *lacking])
    reasons = {member.directory.parent.name: failed.get(member.name, "") for member in (*diverges, *lacking)}
    assert "place=P4" in failed[taken.name] and "another config" in failed[taken.name]
    assert "not finite at step" in reasons["preresnet8-digits-place=P4-seed=5"]
    assert "nowhere" in reasons["preresnet8-digits-place=P4-seed=6"]
    assert finished_runs.finished(good.directory) and good.name not in failed
    assert len(failed) == 3
    assert "not finite" in (diverges[0].directory / "error.txt").read_text()
    assert "another config" in (taken.directory / "error.txt").read_text()

    alone = make(tmp_path / "alone")
    assert run(alone) == {}
    assert records_of(good)[-1] == pytest.approx(records_of(alone[0])[-1], rel=1e-5)
    printed = capsys.readouterr().out
    assert "failed: " in printed and "error.txt" in printed
