"""Where a run became non-finite."""

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from dropbn.train import parallel, steps
from dropbn.train.programs import Programs


def is_finite(tree: Any) -> bool:
    """Whether all numbers of a pytree of arrays on the host are finite."""
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


def locate(
    program: Programs,
    layout: parallel.Layout,
    states: list[steps.TrainState],
    inputs: Iterable,
    hyper: steps.Hyper,
    index: int,
) -> tuple[int, str] | None:
    """Takes steps of runs again, up to the first that is not finite.

    Args:
      program: their compiled functions.
      layout: their devices.
      states: the runs' states on the host, all finite.
      inputs: the feed's train inputs of the steps that follow.
      hyper: what the steps took.
      index: which of the runs diverged.

    Returns:
      (the step, counted from 1 at the start of training; what is not finite in it). The latter is the output
      of the layer that comes first in the forward pass; else the gradient of the layer that comes first in
      the backward pass; else a parameter or statistic that overflowed in the update. None if all is finite.
    """
    state = layout.put(states)
    for step, given in enumerate(inputs, int(states[index].step) + 1):
        found = layout.get(program.nonfinite(state, given, hyper), len(states))[index]
        modules = [numbered.partition(" ")[2] for numbered in sorted(found["output"])]
        outputs = [modules[i] for i, key in enumerate(sorted(found["output"])) if found["output"][key]]
        if outputs:
            return step, f"the output of {outputs[0] or 'the network'}"
        gradients = [name for name, flag in found["gradient"].items() if flag]
        if gradients:
            latest = max(gradients, key=lambda name: modules.index(name.rpartition("/")[0]))
            return step, f"the gradient of {latest}"
        state, _ = program.train_step(state, given, hyper)
        after = layout.get(state, len(states))[index].variables
        for path, leaf in jax.tree.leaves_with_path(after):
            if not is_finite(leaf):
                return step, f"the update of {jax.tree_util.keystr(path, simple=True, separator='/')}"
    return None
