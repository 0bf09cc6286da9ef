"""Devices: the only file that says pmap."""

from collections.abc import Callable, Sequence

import jax
import numpy as np

AXIS = "batch"


def devices_for(batch_size: int) -> list[jax.Device]:
    """The largest number of local devices that divides the batch."""
    devices = jax.local_devices()
    number = max(n for n in range(1, len(devices) + 1) if batch_size % n == 0)
    return devices[:number]


def on_each(
    function: Callable, devices: Sequence[jax.Device], *, in_axes=0, donate: int | None = None
) -> Callable:
    """`function` run on every device at once, its collectives over the axis `AXIS`.

    Args:
      function: takes and returns one device's share.
      devices: where it runs; arguments and results carry them as their first axis.
      in_axes: 0 or None for each argument; None hands every device the same value.
      donate: the argument whose memory the result takes over; it cannot be used again.
    """
    donated = () if donate is None else (donate,)
    mapped = jax.pmap(function, AXIS, devices=devices, in_axes=in_axes, donate_argnums=donated)
    if len(devices) == 1 or devices[0].platform != "cpu":
        return mapped

    def one_at_a_time(*arguments):
        # CPU devices share the threads of one pool: programs in flight together can starve each other's
        # collectives, until XLA aborts the process.
        return jax.block_until_ready(mapped(*arguments))

    return one_at_a_time


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
