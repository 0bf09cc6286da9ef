"""Devices: the only file that says pmap."""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from dropbn.errors import DropbnError

AXIS = "batch"
_PATIENCE_SECONDS = 7 * 24 * 3600  # for processes whose share of a study takes longer
_waits = itertools.count()


class Layout(NamedTuple):
    """Which runs the devices work on: one on all of them together, or one on each.

    Attributes:
      devices: of this process, where it runs.
      axis_name: the axis of the collectives where all devices share a run; None where each has its own.
      processes: how many processes share the run, each with as many devices.
    """

    devices: tuple[jax.Device, ...]
    axis_name: str | None = AXIS
    processes: int = 1

    @property
    def share(self) -> int:
        """How many devices share a batch."""
        return len(self.devices) * self.processes if self.axis_name else 1

    def put(self, values: list):
        """The runs' values (pytrees) on their devices, stacked along a new first axis.

        Where there are more devices than runs, the last run is there more than once: programs are compiled
        for a number of devices.
        """
        if self.axis_name:
            return replicate(values[0], self.devices)
        values = [*values, *values[-1:] * (len(self.devices) - len(values))]
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *values)
        return jax.device_put(stacked, _sharding(self.devices))

    def take(self, tree, number: int) -> list:
        """The values of the first `number` runs, as NumPy arrays."""
        if self.axis_name:
            return [first(tree)]
        tree = jax.tree.map(np.asarray, tree)
        return [jax.tree.map(lambda leaf, run=run: leaf[run], tree) for run in range(number)]


def together(batch_size: int) -> Layout:
    """One run on the largest number of devices of every process that divides its batch.

    Raises:
      DropbnError: the batch cannot be divided among the processes.
    """
    devices, processes = jax.local_devices(), jax.process_count()
    fitting = [n for n in range(1, len(devices) + 1) if batch_size % (n * processes) == 0]
    if not fitting:
        raise DropbnError(
            f"batch_size={batch_size} cannot be divided among {processes} processes: give a multiple of it."
        )
    return Layout(tuple(devices[: max(fitting)]), processes=processes)


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def own(items: Sequence) -> Sequence:
    """Those of some items that are this process's, where each is one process's."""
    return items[jax.process_index() :: jax.process_count()]


def wait_for_all(where: str) -> None:
    """Returns when every process has come to `where`."""
    if jax.process_count() > 1:
        from orbax.checkpoint import multihost

        # Named processes wait at the coordinator; a collective would give the last one 30 seconds to come.
        processes = set(range(jax.process_count()))
        multihost.sync_global_processes(
            f"{next(_waits)} {where}", timeout=_PATIENCE_SECONDS, processes=processes
        )


def side_by_side(number: int) -> Layout:
    """As many runs as there are local devices, at most `number`."""
    return Layout(tuple(jax.local_devices()[:number]), axis_name=None)


def on_each(function: Callable, layout: Layout, *, in_axes=0, donate: int | None = None) -> Callable:
    """`function` run on every device at once, its collectives over the axis `AXIS`.

    Args:
      function: takes and returns one device's share.
      layout: where it runs; arguments and results carry the devices as their first axis.
      in_axes: 0 or None for each argument; None hands every device the same value.
      donate: the argument whose memory the result takes over where that saves any; it cannot be used again.
    """
    on_cpu = layout.devices[0].platform == "cpu"
    # On a CPU, XLA copies what it is to write over: as much memory, and two more operations a parameter.
    donated = () if donate is None or on_cpu else (donate,)
    devices = _of_all_processes(layout) if layout.axis_name else layout.devices
    mapped = jax.pmap(function, AXIS, devices=devices, in_axes=in_axes, donate_argnums=donated)
    if layout.share == 1 or not on_cpu:
        return mapped

    def one_at_a_time(*arguments):
        # CPU devices share the threads of one pool: programs in flight together can starve each other's
        # collectives, until XLA aborts the process.
        return jax.block_until_ready(mapped(*arguments))

    return one_at_a_time


def _of_all_processes(layout):
    """The devices of every process, process by process; as many of each."""
    if layout.processes == 1:
        return layout.devices
    found = {}
    for device in jax.devices():
        found.setdefault(device.process_index, []).append(device)
    return [device for process in sorted(found) for device in found[process][: len(layout.devices)]]


def replicate(tree, devices: Sequence[jax.Device]):
    """A copy of every leaf on every device, stacked along a new first axis."""
    sharding = _sharding(devices)

    def put(leaf):
        leaf = np.asarray(leaf)
        return jax.device_put(np.broadcast_to(leaf[None], (len(devices), *leaf.shape)), sharding)

    return jax.tree.map(put, tree)


def spread(tree, devices: Sequence[jax.Device]):
    """Each device's share of every leaf's first axis, (devices, share, ...)."""
    sharding = _sharding(devices)
    return jax.tree.map(
        lambda leaf: jax.device_put(leaf.reshape(len(devices), -1, *leaf.shape[1:]), sharding), tree
    )


def first(tree):
    """The first device's value of every leaf, as NumPy arrays; for trees that are equal on all."""
    return jax.tree.map(lambda leaf: np.asarray(leaf.addressable_shards[0].data)[0], tree)


def _sharding(devices):
    mesh = jax.sharding.Mesh(np.array(devices), (AXIS,))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(AXIS))
