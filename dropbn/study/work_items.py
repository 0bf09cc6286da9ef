"""The work items of a study: the members that are left to train, which train together, and what they cost."""

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
from dropbn.study import cost, finished_runs, provenance
from dropbn.study.members import Member
from dropbn.train import checkpoint, fields, measurements, parallel, workdir
from dropbn.train.plan import Plan, make_plan


class WorkItem(NamedTuple):
    """A member that is to be trained.

    Attributes:
      member: the cell, its seed and its workdir.
      dataset: the data that it trains on.
      plan: its config, resolved for this dataset and these devices.
      flops: floating-point operations of its training, estimated as three times those of the forward passes.
    """

    member: Member
    dataset: data.Dataset
    plan: Plan
    flops: float


def create(
    chosen: Sequence[Member], together: bool = False, published: dict[str, list] | None = None
) -> tuple[list[WorkItem], dict[str, str]]:
    """The work items of all members that are not finished.

    Args:
      chosen: the members; the number of classes is set in their configs.
      together: whether all devices share one run; for streamed data they always do.
      published: members that were finished elsewhere, as `finished_runs.published` reads them.

    Returns:
      (work items, {name of a member that cannot run: why}). A member whose workdir holds a finished run of
      another config (such as a quick study's) or of another edition cannot run either.
    """
    found, refused, datasets = [], {}, {}
    elsewhere = {(cell, one.seed): one for cell, members in (published or {}).items() for one in members}
    for member in chosen:
        try:
            fields.check(member.config)
            key = member.config.data.to_json()
            if key not in datasets:
                datasets[key] = data.load(member.config.data)
            dataset = datasets[key]
            apart = not together and isinstance(dataset.train, Split)
            plan = make_plan(member.config, dataset, parallel.side_by_side(1) if apart else None)
            finished = elsewhere.get((member.cell, member.config.seed))
            if finished_runs.finished(member.directory):
                workdir.refuse_another(member.directory, plan.config)
                finished = finished_runs.read(member.directory)
            if finished:
                provenance.refuse_another(finished, plan.config)
            else:
                found.append(WorkItem(member, dataset, plan, _flops(plan, dataset)))
        except DropbnError as error:
            refused[member.name] = str(error)
    return found, refused


def of_this_process(todo: Sequence[WorkItem]) -> list[WorkItem]:
    """The work items of this process: those that all processes share, and its part of the others."""
    shared = [item for item in todo if item.plan.layout.processes > 1]
    apart = [item for item in todo if item.plan.layout.processes == 1]
    return [*shared, *parallel.my_share(apart)]


def groups(todo: Sequence[WorkItem]) -> Iterator[list[WorkItem]]:
    """Groups of work items that train together, at most one for each device.

    Their configs differ in numbers alone, so that they share one compilation, and they go on from the same
    step.
    """
    alike: dict[tuple[str, int], list[WorkItem]] = {}
    for item in todo:
        alike.setdefault((item.plan.structure, _step(item.member.directory)), []).append(item)
    for group in alike.values():
        layout = group[0].plan.layout
        if not layout.axis_name:
            layout = parallel.side_by_side(len(group))
        size = 1 if layout.axis_name else len(layout.devices)
        for start in range(0, len(group), size):
            together = group[start : start + size]
            yield [item._replace(plan=item.plan._replace(layout=layout)) for item in together]


def estimate(chosen: Sequence[Member], todo: Sequence[WorkItem], refused: dict[str, str]) -> Result:
    """What a study will do: a row for each cell, and the least time that it can take on this machine.

    Args:
      chosen: the members.
      todo: the work items among them.
      refused: {name of a member that cannot run: why}.
    """
    rows = []
    for cell, of_cell in itertools.groupby(chosen, lambda member: member.cell):
        names = {member.name for member in of_cell}
        left = [item for item in todo if item.member.name in names]
        rows.append(
            {
                "cell": cell,
                "members": len(names),
                "finished": len(names) - len(left) - len(names & refused.keys()),
                "steps": max((item.plan.total_steps for item in left), default=None),
                "TFLOP": sum(item.flops for item in left) / 1e12,
            }
        )
    speed, total = cost.speed(), sum(item.flops for item in todo)
    hours = total / speed / 3600
    title = (
        f"{len(chosen)} members, {len(todo)} to be trained: {total / 1e12:,.4g} TFLOP in convolutions and "
        f"products, {round(hours, 0 if hours > 10 else 3):,g} hours at the {speed / 1e9:,.0f} GFLOP/s of a "
        "3x3 convolution here; count on several times that"
    )
    return Result(rows, title)


def model(config: str) -> nn.Module:
    """The network of a `structure` on one device, for evaluation."""
    return measurements.model_of_groups(ml_collections.ConfigDict(json.loads(config)))


def _step(directory):
    """The step of the last checkpoint; 0 if there is none."""
    saved = pathlib.Path(directory, "checkpoints")
    if not saved.is_dir():
        return 0
    with checkpoint.manager(saved, read_only=True) as checkpoints:
        return checkpoints.latest_step() or 0


def _flops(plan, dataset):
    return 3 * plan.total_steps * plan.batch_size * _forward(plan.structure, dataset.train.image_shape)


@functools.cache
def _forward(config, image_shape):
    """Floating-point operations of one image's forward pass through the network of a `structure`."""
    network, image = model(config), jax.ShapeDtypeStruct((1, *image_shape), "float32")
    variables = jax.eval_shape(network.init, jax.random.key(0), image)
    return cost.flops(network.apply, variables, image)
