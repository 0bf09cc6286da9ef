"""Devices: the only file that says pmap."""

import contextlib
import itertools
import os
import pathlib
import secrets
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import jax
import numpy as np

from dropbn import processes
from dropbn.errors import DropbnError

AXIS = "batch"
Tree = TypeVar("Tree")  # A pytree of arrays and numbers.
_PATIENCE_SECONDS = 7 * 24 * 3600  # A process may wait for others whose share of a study takes longer.
_LATE_SECONDS = 10
_waits = itertools.count()


class Layout(NamedTuple):
    """How runs lie on the devices: one run on all of them together, or one run on each.

    Attributes:
      devices: this process's devices.
      axis_name: the axis of the collectives if all devices share a run; None if each has its own run.
      processes: how many processes share the run, each with the same number of devices.
    """

    devices: tuple[jax.Device, ...]
    axis_name: str | None = AXIS
    processes: int = 1

    @property
    def share(self) -> int:
        """How many devices share a batch."""
        return len(self.devices) * self.processes if self.axis_name else 1

    def put(self, values: list[Tree]) -> Tree:
        """Puts the runs' values (pytrees) on their devices, stacked along a new first axis.

        If there are more devices than runs, the last run is repeated: programs are compiled for a fixed
        number of devices.
        """
        if self.axis_name:
            return replicate(values[0], self.devices)
        values = [*values, *values[-1:] * (len(self.devices) - len(values))]
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *values)
        return jax.device_put(stacked, _sharding(self.devices))

    def get(self, tree: Tree, number: int) -> list[Tree]:
        """The values of the first `number` runs, as NumPy arrays."""
        if self.axis_name:
            return [unreplicate(tree)]
        tree = jax.tree.map(np.asarray, tree)
        return [jax.tree.map(lambda leaf, run=run: leaf[run], tree) for run in range(number)]


def together(batch_size: int) -> Layout:
    """One run on as many devices of every process as its batch can be divided among.

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


def my_share(items: Sequence) -> Sequence:
    """This process's items, where every process takes some of them."""
    return items[jax.process_index() :: jax.process_count()]


def wait_for_all(where: str) -> None:
    """Waits until every process has come to `where`."""
    if jax.process_count() > 1:
        from orbax.checkpoint import multihost

        # Processes that are named wait at the coordinator; a collective would time out after 30 seconds.
        everyone = set(range(jax.process_count()))
        multihost.sync_global_processes(
            f"{next(_waits)} {where}", timeout=_PATIENCE_SECONDS, processes=everyone
        )


def share(directory: str | os.PathLike) -> None:
    """Raises in all processes unless all of them see the same directory; returns when all have come here.

    Process 0 leaves a file there for as long as that takes. If it cannot, it says why itself, and the others
    go on until they notice that it has ended.
    """
    if jax.process_count() == 1:
        return
    topic, file = f"workdir {next(_waits)}", pathlib.Path(directory, f".seen-by-all-{secrets.token_hex(8)}")
    told, heading = None, "the processes do not see the same workdir"
    try:
        if is_first():
            with contextlib.suppress(OSError):
                file.touch()
            told = file.name if file.exists() else ""
        name = processes.tell(topic, told, _PATIENCE_SECONDS)
        is_same = not name or _appears(file.with_name(name))
        seen = "that of process 0" if is_same else f"another one, on {os.uname().nodename},"
        processes.agree({f"{directory} is": seen}, topic, heading, _PATIENCE_SECONDS)
    finally:
        if is_first():
            file.unlink(missing_ok=True)


def _appears(file):
    """Whether a file is there; a network's file system may show it some seconds late."""
    deadline = time.monotonic() + _LATE_SECONDS
    while not file.exists():
        if time.monotonic() > deadline:
            return False
        with contextlib.suppress(OSError):
            os.listdir(file.parent)  # Such a system looks again.
        time.sleep(0.2)
    return True


def side_by_side(number: int) -> Layout:
    """One run on each local device, at most `number` runs."""
    return Layout(tuple(jax.local_devices()[:number]), axis_name=None)


def on_each(
    function: Callable,
    layout: Layout,
    *,
    in_axes: int | tuple[int | None, ...] = 0,
    donate: int | None = None,
) -> Callable:
    """Compiles `function` to run on every device at once, with collectives over the axis `AXIS`.

    Args:
      function: takes and returns one device's share.
      layout: the devices; they are the first axis of arguments and results.
      in_axes: 0 or None for each argument; None gives every device the same value.
      donate: the argument whose memory the result may take over; it cannot be used again.
    """
    on_cpu = layout.devices[0].platform == "cpu"
    # On CPUs, donation costs a copy: no memory is saved, and each parameter takes two more operations.
    donated = () if donate is None or on_cpu else (donate,)
    devices = _of_all_processes(layout) if layout.axis_name else layout.devices
    mapped = jax.pmap(function, AXIS, devices=devices, in_axes=in_axes, donate_argnums=donated)
    if layout.share == 1 or not on_cpu:
        return mapped

    def one_at_a_time(*arguments):
        # CPU devices share one pool of threads: two programs in flight can starve each other's collectives
        # until XLA aborts the process.
        return jax.block_until_ready(mapped(*arguments))

    return one_at_a_time


def _of_all_processes(layout):
    """The devices of every process, process by process, the same number of each."""
    if layout.processes == 1:
        return layout.devices
    found: dict[int, list[jax.Device]] = {}
    for device in jax.devices():
        found.setdefault(device.process_index, []).append(device)
    return [device for process in sorted(found) for device in found[process][: len(layout.devices)]]


def replicate(tree: Tree, devices: Sequence[jax.Device]) -> Tree:
    """Copies every leaf to every device, stacked along a new first axis."""
    sharding = _sharding(devices)

    def put(leaf):
        leaf = np.asarray(leaf)
        return jax.device_put(np.broadcast_to(leaf[None], (len(devices), *leaf.shape)), sharding)

    return jax.tree.map(put, tree)


def shard(tree: Tree, devices: Sequence[jax.Device]) -> Tree:
    """Splits every leaf's first axis among the devices: (devices, share, ...)."""
    sharding = _sharding(devices)
    return jax.tree.map(
        lambda leaf: jax.device_put(leaf.reshape(len(devices), -1, *leaf.shape[1:]), sharding), tree
    )


def unreplicate(tree: Tree) -> Tree:
    """The first device's value of every leaf, as NumPy arrays; for trees that are equal on all devices."""
    return jax.tree.map(lambda leaf: np.asarray(leaf.addressable_shards[0].data)[0], tree)


def _sharding(devices):
    mesh = jax.sharding.Mesh(np.array(devices), (AXIS,))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(AXIS))
