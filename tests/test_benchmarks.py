"""The benchmarks' own parts: turns, rows, networks that agree, and the arithmetic of scaling on paper."""

import time

import jax
import numpy as np
import pytest

from benchmarks import all as everything
from benchmarks import gpu_bytes, networks, scaling, side_by_side
from benchmarks.side_by_side import Entrant, Row

SMALL = (
    networks.PRERESNET._replace(depth=8, width=4, batch_size=4, rate=0.3),
    networks.WRN._replace(depth=10, width=8, batch_size=4),
    networks.Settings("preresnet", 11, 4, batch_size=4, bottleneck=True),
)


def _sleeper(seconds):
    return lambda: time.sleep(seconds), {"parameters": 7}


@pytest.mark.slow
def test_a_race_takes_turns_in_processes_of_their_own():
    entrants = [
        Entrant("fast", _sleeper, (0.0,)),
        Entrant("slow", _sleeper, (0.05,), {"OMP_NUM_THREADS": "1"}),
    ]
    seconds, facts = side_by_side.race(entrants, 2, starts=2)
    assert facts == {"fast": {"parameters": 7}, "slow": {"parameters": 7}}
    assert [len(of_entrant) for of_entrant in seconds.values()] == [4, 4]
    assert np.median(seconds["slow"]) > 0.04 > np.median(seconds["fast"])


@pytest.mark.parametrize("settings", SMALL, ids=lambda settings: settings.label)
def test_all_rivals_train_networks_of_one_size(settings):
    batch = networks.images(settings.batch_size)

    def after(make):
        step, state = make(settings)
        return step(state, batch)[0]

    state, plain_state = (
        jax.eval_shape(lambda make=make: after(make)) for make in (networks.ours, networks.plain)
    )
    number = networks.size(state.params)
    assert networks.size(plain_state[1]) == number
    pytest.importorskip("torch")
    torch_step, parameters = networks.torch_step(settings)
    assert parameters == number
    assert np.isfinite(torch_step().item())


def test_the_page_says_what_was_missed_and_what_was_not_run():
    found = {
        "gpu": [Row("a", "1", "at least 2", False), Row("b", "not run"), Row("c", "3", "at least 2", True)]
    }
    page = everything.page(found, "a machine", "jax 1", "1 May 2026", 3.2)
    assert "| a | 1 | at least 2 | **missed** |" in page
    assert "| b | not run |  |  |" in page
    assert "| c | 3 | at least 2 | met |" in page
    assert "`python -m benchmarks.gpu`" in page


def test_an_all_reduce_by_a_ring():
    machine = scaling.Machine(devices=8, flops=1e12, bandwidth=1e9, latency=1e-3, memory=1e12)
    assert scaling.all_reduce(machine, 1e9, times=2) == pytest.approx(2 * 7 / 8 * 4 + 2e-3)


def test_efficiency_counts_what_is_not_hidden():
    step = scaling.Step(compute=3.0, gradients=2.5, norms=1.0)
    assert step.efficiency() == pytest.approx(3 / 4.5)
    assert step.efficiency(synced=False) == pytest.approx(3 / 3.5)


_PROGRAM = """
%fused_a (p.0: f32[4,8], p.1: bf16[8]) -> bf16[4,8] {
  %p.0 = f32[4,8]{1,0} parameter(0)
  %p.1 = bf16[8]{0} parameter(1)
  ROOT %add.1 = bf16[4,8]{1,0} add(%p.0, %p.1)
}

%fused_b (p.2: f32[4,8]) -> f32[1,8] {
  %p.2 = f32[4,8]{1,0} parameter(0)
  %convert.1 = f32[4,8]{1,0} convert(%p.2)
  ROOT %slice.1 = f32[1,8]{1,0} slice(%convert.1), slice={[0:1], [0:8]}
}

ENTRY %main (x: f32[4,8], b: bf16[8]) -> (bf16[4,8], f32[1,8]) {
  %x = f32[4,8]{1,0} parameter(0)
  %b = bf16[8]{0} parameter(1)
  %sum = bf16[4,8]{1,0} fusion(%x, %b), kind=kLoop, calls=%fused_a
  %first = f32[1,8]{1,0} fusion(%x), kind=kLoop, calls=%fused_b
  %conv = (bf16[4,8]{1,0}, s8[1000]{0}) custom-call(%sum, %sum), custom_call_target="__cudnn$convForward"
  ROOT %out = (bf16[4,8]{1,0}, f32[1,8]{1,0}) tuple(%sum, %first)
}
"""


def test_the_bytes_of_a_program_for_a_gpu_by_hand():
    assert gpu_bytes.kernels(_PROGRAM) == [
        gpu_bytes.Kernel("fusion", 4 * 32 + 2 * 8 + 2 * 32),
        gpu_bytes.Kernel("fusion", 4 * 8 + 4 * 8),  # of x it takes a slice
        gpu_bytes.Kernel("convolution", 2 * 32 + 2 * 32),  # one operand twice, and no working space
    ]
    assert gpu_bytes.size("(u32[2]{0}, pred[3,5]{1,0}, f32[])") == 4 * 2 + 15 + 4
