"""Scaling on paper: python -m benchmarks.scaling

Compute, bytes and all-reduce time of a training step on machines that were not at hand, from floating-point
operations and parameters counted in dropbn's own networks and the makers' numbers. Prints docs/scaling.md's
tables.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from configs import base
from dropbn import models
from dropbn.study import cost
from dropbn.train import steps

# name -> (fields of config.model, side of an image).
NETWORKS = {
    "PreResNet-110": ({"name": "preresnet", "depth": 110, "width": 16, "num_classes": 10}, 32),
    "PreResNet-110 (bottlenecks)": (
        {
            "name": "preresnet",
            "depth": 164,
            "width": 16,
            "num_classes": 10,
            "block": "[bn relu conv bn relu conv bn relu conv | conv]",
        },
        32,
    ),
    "WRN-28-10": ({"name": "wrn", "depth": 28, "width": 160, "num_classes": 10}, 32),
    "ResNet-50": ({"name": "resnet_imagenet", "depth": 50, "width": 64, "num_classes": 1000}, 224),
}


class Machine(NamedTuple):
    """Devices joined by a network.

    Attributes:
      devices: how many.
      flops: peak bfloat16 operations a second of one.
      bandwidth: bytes a second that one can send and receive at once in an all-reduce.
      latency: seconds of an all-reduce of a few bytes, assumed.
      memory: bytes a second of one's memory.
    """

    devices: int
    flops: float
    bandwidth: float
    latency: float
    memory: float


# v5e: 197 TFLOP/s bfloat16, 819 GB/s of memory, 1600 Gbit/s of interconnect a chip each way, in a
# two-dimensional torus ("TPU v5e", Google Cloud documentation). H100 SXM: 989 TFLOP/s dense bfloat16, 3.35
# TB/s of memory, NVLink 900 GB/s, half of it each way (NVIDIA H100 data sheet); between machines of eight,
# one 400 Gbit/s adapter for each GPU (NVIDIA DGX H100 data sheet). Latencies are assumptions: of the torus, a
# microsecond a hop and half a ring there and back in each dimension; of GPUs, a guess that grows with them.
MACHINES = {
    "v5e-8": Machine(8, 197e12, 1600e9 / 8, 6e-6, 819e9),
    "v5e-256": Machine(256, 197e12, 1600e9 / 8, 32e-6, 819e9),
    "8 H100": Machine(8, 989e12, 450e9, 20e-6, 3.35e12),
    "16 H100": Machine(16, 989e12, 50e9, 35e-6, 3.35e12),
    "64 H100": Machine(64, 989e12, 50e9, 60e-6, 3.35e12),
}
# The share of the peak that the convolutions of a network are taken to reach: an assumption, not measured.
SHARES = {"PreResNet-110": 0.05, "PreResNet-110 (bottlenecks)": 0.05, "WRN-28-10": 0.4, "ResNet-50": 0.3}


_IMAGES = 128  # on a device, in the table


class Counted(NamedTuple):
    """What a training step of a network needs.

    Attributes:
      flops: operations for an image, forward and backward.
      parameters: how many.
      norms: batch normalizations.
      channels: of all of them together.
      activations: values of the inputs of its BNs, for an image.
    """

    flops: float
    parameters: int
    norms: int
    channels: int
    activations: int


def count(name: str) -> Counted:
    """Counts a network's step in its jaxpr; nothing is computed."""
    fields, side = NETWORKS[name]
    config = base.get_config().model
    config.update(fields)
    model, tx, number = models.create(config), optax.sgd(0.1, momentum=0.9), 2
    state = jax.eval_shape(lambda: steps.create_state(model, tx, 0, (side, side, 3)))
    batch = {
        "image": jax.ShapeDtypeStruct((number, side, side, 3), jnp.float32),
        "label": jax.ShapeDtypeStruct((number,), jnp.int32),
    }

    def step(state, batch):
        return steps.train_step(state, batch, steps.Hyper(0, 0.0, 1.0), build=lambda _: model, tx=tx)

    statistics = jax.tree.leaves(state.batch_stats)
    return Counted(
        cost.flops(step, state, batch) / number,
        sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        len(statistics) // 2,
        sum(leaf.size for leaf in statistics) // 2,
        _norm_inputs(model, side),
    )


def _norm_inputs(model, side):
    """Values of the inputs of a model's BNs, for an image."""
    sizes = []

    def note(run, args, kwargs, context):
        if isinstance(context.module, nn.BatchNorm):
            sizes.append(args[0].size)
        return run(*args, **kwargs)

    with nn.intercept_methods(note):
        jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, side, side, 3)))
    return sum(sizes)


def all_reduce(machine: Machine, values: float, times: int = 1) -> float:
    """Seconds of `times` all-reduces of `values` float32 in all, by a ring.

    Every device sends 2 (n - 1) / n times the bytes.
    """
    sent = 2 * (machine.devices - 1) / machine.devices * 4 * values
    return sent / machine.bandwidth + times * machine.latency


class Step(NamedTuple):
    """Seconds of a step on one of many devices."""

    compute: float
    gradients: float
    norms: float

    def efficiency(self, synced: bool = True) -> float:
        """Share of the time that computes, gradients hidden behind the backward pass (two thirds of it).

        Without `synced`, every device has BN statistics of its own.
        """
        exposed = max(0.0, self.gradients - 2 / 3 * self.compute)
        return self.compute / (self.compute + exposed + self.norms * synced)


def step(counted: Counted, machine: Machine, share: float, images: int) -> Step:
    """A step with `images` on each device and BN over all of them.

    BN's mean and variance are two all-reduces forward, one after the other, and their gradients two backward;
    nothing hides these.
    """
    arithmetic = images * counted.flops / (share * machine.flops)
    # Each BN input in bfloat16 is written once and read three times forward, and likewise backward.
    moved = images * counted.activations * 2 * 8 / machine.memory
    return Step(
        max(arithmetic, moved),
        all_reduce(machine, counted.parameters),
        all_reduce(machine, 4 * counted.channels, 4 * counted.norms),
    )


def hides_from(counted: Counted, machine: Machine, share: float, synced: bool) -> str:
    """The least power of two of images on a device from which 90 % of the time computes."""
    for power in range(13):
        if step(counted, machine, share, 2**power).efficiency(synced) >= 0.9:
            return str(2**power)
    return "above 4096"


def tables() -> str:
    """The tables of docs/scaling.md in Markdown."""
    counted = {name: count(name) for name in NETWORKS}
    columns = ("network", "GFLOP an image", "parameters", "gradients", "BN layers", "BN channels")
    rows = [
        (
            name,
            f"{of.flops / 1e9:.2f}",
            f"{of.parameters:,}",
            f"{4 * of.parameters / 1e6:.1f} MB",
            of.norms,
            f"{of.channels:,}",
        )
        for name, of in counted.items()
    ]
    parts = (
        "compute",
        "all-reduce of gradients",
        "of BN",
        "efficiency",
        "90 % from",
        "BN per device",
        "90 % from",
    )
    timed = []
    for name, of in counted.items():
        for label, machine in MACHINES.items():
            found = step(of, machine, SHARES[name], _IMAGES)
            shares = []
            for synced in (True, False):
                shares.append(f"{100 * found.efficiency(synced):.0f} %")
                shares.append(hides_from(of, machine, SHARES[name], synced))
            timed.append((name, label, *(f"{1e3 * seconds:.2f} ms" for seconds in found), *shares))
    return _table(columns, rows) + "\n\n" + _table(("network", "machine", *parts), timed)


def _table(columns, rows):
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


if __name__ == "__main__":
    print(tables())
