"""Which checkpoints of a run are kept: the latest two and the best.

The one before the latest is there in case the latest is damaged. Orbax's own `max_to_keep` with `best_fn`
would delete the latest one.
"""

import contextlib
from collections.abc import Sequence

import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers


class LatestTwoAndBest(checkpoint_managers.PreservationPolicy):
    """Orbax's policy for the checkpoints of `manager`, which is set once it is open."""

    manager: ocp.CheckpointManager

    def should_preserve(
        self,
        checkpoints: Sequence[checkpoint_managers.PolicyCheckpointInfo],
        *,
        context: checkpoint_managers.PreservationContext,
    ) -> Sequence[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {*sorted(steps)[-2:], best_step(self.manager)}
        return [step in kept for step in steps]


def best_step(manager: ocp.CheckpointManager) -> int | None:
    """The step of the checkpoint with the highest accuracy, the latest of equals; None without accuracies."""
    found = {}
    for step in sorted(manager.all_steps()):
        with contextlib.suppress(Exception):  # A damaged checkpoint is not the best.
            if (accuracy := manager.metadata(step).custom_metadata["accuracy"]) is not None:
                found[step] = float(accuracy)
    return max(reversed(found), key=found.__getitem__, default=None)
