"""The jobs of a study: what its members are for this machine, which train at once, and what they cost."""

import functools
import itertools
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import ml_collections

from dropbn import data
from dropbn.data.splits import Split
from dropbn.errors import DropbnError
from dropbn.results import Result
from dropbn.study import cost, finished_runs
from dropbn.study.members import Member
from dropbn.train import checkpoint, evaluation, parallel, workdir
from dropbn.train.plan import Plan, make_plan, structure


class Job(NamedTuple):
    """A member that is to be trained.

    Attributes:
      member: it.
      dataset: its data.
      plan: what its config means for them.
      flops: of its training, about: three times those of the forward passes.
    """

    member: Member
    dataset: data.Dataset
    plan: Plan
    flops: float


def create(
    chosen: Sequence[Member], together: bool = False, published: dict[str, list] | None = None
) -> tuple[list[Job], dict[str, str]]:
    """What there is to do for members that are not finished.

    Args:
      chosen: the members; their configs get their number of classes.
      together: whether all devices share a run; they do for streamed data anyway.
      published: members that are finished elsewhere, of `finished_runs.published`.

    Returns:
      (jobs, {name of a member that cannot run: why}). A finished run of another config, such as of a quick
      study in the same workdir, or of another edition, cannot run either.
    """
    found, refused, datasets = [], {}, {}
    elsewhere = {(cell, one.seed): one for cell, members in (published or {}).items() for one in members}
    for member in chosen:
        try:
            key = member.config.data.to_json()
            if key not in datasets:
                datasets[key] = data.load(member.config.data)
            dataset = datasets[key]
            apart = not together and isinstance(dataset.train, Split)
            plan = make_plan(member.config, dataset, parallel.side_by_side(1) if apart else None)
            finished = elsewhere.get((member.cell, member.config.seed))
            if finished_runs.finished(member.directory):
                workdir.refuse_another(member.directory, member.config)
                finished = finished_runs.read(member.directory)
            if finished:
                finished_runs.refuse_another(finished, member.config)
            else:
                found.append(Job(member, dataset, plan, _flops(member.config, dataset, plan)))
        except DropbnError as error:
            refused[member.name] = str(error)
    return found, refused


def of_this_process(todo: Sequence[Job]) -> list[Job]:
    """This process's jobs: all that all processes share, and its part of the others."""
    shared = [job for job in todo if job.plan.layout.processes > 1]
    apart = [job for job in todo if job.plan.layout.processes == 1]
    return shared + parallel.own(apart)


def stacks(todo: Sequence[Job]) -> Iterator[list[Job]]:
    """Jobs that train at once: of equal configs but for numbers, at the same step, one for each device."""
    groups = {}
    for job in todo:
        groups.setdefault((structure(job.member.config), _step(job.member.directory)), []).append(job)
    for group in groups.values():
        layout = group[0].plan.layout
        if not layout.axis_name:
            layout = parallel.side_by_side(len(group))
        size = 1 if layout.axis_name else len(layout.devices)
        for start in range(0, len(group), size):
            yield [job._replace(plan=job.plan._replace(layout=layout)) for job in group[start : start + size]]


def estimate(chosen: Sequence[Member], todo: Sequence[Job], refused: dict[str, str]) -> Result:
    """What a study will do: a row for each cell, and the time that it takes at least on this machine.

    Args:
      chosen: the members.
      todo: what of them is to be done.
      refused: why others cannot run, by name.
    """
    rows = []
    for cell, of_cell in itertools.groupby(chosen, lambda member: member.cell):
        names = {member.name for member in of_cell}
        left = [job for job in todo if job.member.name in names]
        rows.append(
            {
                "cell": cell,
                "members": len(names),
                "finished": len(names) - len(left) - len(names & refused.keys()),
                "steps": max((job.plan.total_steps for job in left), default=None),
                "TFLOP": sum(job.flops for job in left) / 1e12,
            }
        )
    speed, total = cost.speed(), sum(job.flops for job in todo)
    hours = total / speed / 3600
    title = (
        f"{len(chosen)} members, {len(todo)} to be trained: {total / 1e12:,.4g} TFLOP in convolutions and "
        f"products, {round(hours, 0 if hours > 10 else 3):,g} hours at the {speed / 1e9:,.0f} GFLOP/s of a "
        "3x3 convolution here; count on several times that"
    )
    return Result(rows, title)


def model(config: str) -> nn.Module:
    """The network of a `structure` on one device, for evaluation."""
    return evaluation.model_of_groups(ml_collections.ConfigDict(json.loads(config)))


def _step(directory):
    """The step of the last checkpoint, 0 without one."""
    saved = pathlib.Path(directory, "checkpoints")
    if not saved.is_dir():
        return 0
    with checkpoint.manager(saved, read_only=True) as checkpoints:
        return checkpoints.latest_step() or 0


def _flops(config, dataset, plan):
    return 3 * plan.total_steps * config.batch_size * _forward(structure(config), dataset.train.image_shape)


@functools.cache
def _forward(config, image_shape):
    """Floating-point operations of an image's forward pass, of the network of a `structure`."""
    network, image = model(config), jax.ShapeDtypeStruct((1, *image_shape), "float32")
    variables = jax.eval_shape(network.init, jax.random.key(0), image)
    return cost.flops(network.apply, variables, image)
