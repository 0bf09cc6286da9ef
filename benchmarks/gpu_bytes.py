"""What a training step moves through a GPU's memory, counted without one: python -m benchmarks.gpu_bytes

XLA compiles the steps of `benchmarks.gpu` for an H100, which takes its compiler (pip install "jax[cuda12]")
but no GPU; only which of cuDNN's algorithms are fastest stays open. A kernel counts with the bytes of its
operands and of its results, each once, and as small where these are less than a megabyte: then it takes
microseconds whatever it moves. Convolutions are cuDNN's; all else are the kernels of BN, noise, activations,
sums and the update. Time is what these bytes alone would take at the memory's speed.
"""

import functools
import math
import re
import sys
from typing import NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from benchmarks import gpu, networks, scaling, side_by_side
from benchmarks.side_by_side import Row
from dropbn import runtime

_BANDWIDTH = scaling.MACHINES["8 H100"].memory
_SMALL = 1e6
_DEVICE = f"""
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info {{ major: 9 minor: 8 }}
runtime_version {{ major: 12 minor: 9 }}
gpu_device_info {{
  cuda_compute_capability {{ major: 9 }}
  core_count: 132
  fpus_per_core: 128
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  clock_rate_ghz: 1.98
  memory_bandwidth: {_BANDWIDTH:.0f}
  l2_cache_size: 52428800
  device_memory_size: 84929347584
}}
"""
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8}
_ARRAY = re.compile(rf"\b({'|'.join(_BYTES)})\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%(\S+) = (\(.*?\)|\S+) ([\w\-]+)\((.*?)\)(.*)")
_NO_KERNELS = ("parameter", "constant", "bitcast", "tuple", "get-tuple-element")


class Kernel(NamedTuple):
    """What the device is told to run.

    Attributes:
      what: "convolution", or else the instruction of the program, such as "fusion".
      bytes: of its operands and results.
    """

    what: str
    bytes: int


def rows(names=tuple(gpu.NETWORKS)) -> list[Row]:
    """Bytes and kernels of a step of every network, dropbn's and that of plain Flax."""
    jax.config.update("jax_platforms", "cpu")  # A GPU that is there is left alone.
    runtime.prepare()
    found = []
    for name in names:
        settings = gpu.NETWORKS[name]
        found += _rows(f"{name}: dropbn", *gpu.ours(settings))
        if settings is not None:
            step, state = networks.plain(settings)
            with jax.threefry_partitionable(True):  # JAX's default, which `runtime.prepare` has changed.
                found += _rows(f"{name}: plain Flax", step, state, networks.images(settings.batch_size))
    return found


def _rows(what, step, state, batch):
    try:
        compiled = compile_for_h100(step, state, batch)
    except NotImplementedError:
        return [Row(what, 'not counted: pip install "jax[cuda12]"')]
    every = kernels(compiled.as_text())
    others = [kernel for kernel in every if kernel.what != "convolution"]
    total, rest = (sum(kernel.bytes for kernel in some) for some in (every, others))
    small = sum(kernel.bytes < _SMALL for kernel in others)
    reserved = compiled.memory_analysis().temp_size_in_bytes
    return [
        Row(
            f"{what}, in all",
            f"{total / 1e9:.1f} GB in {len(every)} kernels; {reserved / 1e9:.2f} GB reserved",
        ),
        Row(
            f"{what}, but for convolutions",
            f"{rest / 1e9:.1f} GB, {1e3 * rest / _BANDWIDTH:.1f} ms, in {len(others)} kernels, {small} small",
        ),
    ]


def compile_for_h100(step, state, batch):
    """A step as XLA compiles it for an H100, its state's memory donated.

    Raises:
      NotImplementedError: JAX's plugin for GPUs is not installed.
    """
    topology = topologies.get_topology_desc("1x1x1", "cuda", topology="1x1x1", target_config=_DEVICE)
    sharding = jax.sharding.SingleDeviceSharding(topology.devices[0])
    arguments = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf), sharding=sharding),
        (state, batch),
    )
    with mock.patch.object(jax, "default_backend", lambda: "gpu"):  # dropbn's convolutions and sums ask.
        traced = jax.jit(step, donate_argnums=0, out_shardings=sharding).trace(*arguments)
    return traced.lower(lowering_platforms=("cuda",)).compile({"xla_gpu_autotune_level": 0})


def kernels(program: str) -> list[Kernel]:
    """The kernels of a compiled program, given as text."""
    computations = dict(
        re.findall(r"^(?:ENTRY )?%(\S+) \(.*?\{\n(.*?)^\}", program, re.MULTILINE | re.DOTALL)
    )
    entry = re.search(r"^ENTRY %(\S+)", program, re.MULTILINE)[1]
    shapes, found = {}, []
    for name, shape, what, operands, rest in map(re.Match.groups, _instructions(computations[entry])):
        shapes[name] = shape
        if what in _NO_KERNELS:
            continue
        convolves = "__cudnn$conv" in rest
        # What cuDNN works in is a vector of bytes among its results.
        written = size(re.sub(r"s8\[\d+\]", "", shape) if convolves else shape)
        calls = re.search(r"calls=%([^\s,]+)", rest)
        body = computations[calls[1]] if calls else None
        operands = re.findall(r"%([^\s,]+)", operands)
        read = sum(
            min(size(shapes[operand]), _sliced(body, i) if body else math.inf)
            for i, operand in enumerate(operands)
            if operands.index(operand) == i
        )
        found.append(Kernel("convolution" if convolves else what, written + read))
    return found


def _sliced(body, number):
    """Bytes that a fusion reads of an operand of which it takes slices alone; infinity where it takes all."""
    instructions = [match.groups() for match in _instructions(body)]
    names = {name for name, _, what, given, _ in instructions if what == "parameter" and given == str(number)}
    read = 0
    for name, shape, what, operands, _ in instructions:
        if names.isdisjoint(re.findall(r"%([^\s,]+)", operands)):
            continue
        if what in ("convert", "bitcast"):
            names.add(name)
        elif what in ("slice", "dynamic-slice", "gather"):
            read += size(shape)
        else:
            return math.inf
    return read


def _instructions(computation):
    return filter(None, map(_INSTRUCTION.match, computation.splitlines()))


@functools.cache
def size(shape: str) -> int:
    """Bytes of an array or of a tuple of arrays, as XLA writes their shapes."""
    return sum(
        _BYTES[dtype] * math.prod(int(side) for side in sides.split(",") if side)
        for dtype, sides in _ARRAY.findall(shape)
    )


if __name__ == "__main__":
    for network in sys.argv[1:] or gpu.NETWORKS:
        side_by_side.show(rows([network]))
