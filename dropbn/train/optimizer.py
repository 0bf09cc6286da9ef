"""SGD as in the papers: momentum, L2 weight decay and a learning-rate schedule, all by optax."""

from collections.abc import Callable

import optax
from ml_collections import ConfigDict

from dropbn.errors import DropbnError, unknown

SCHEDULES = ("constant", "step", "cosine")


def create(
    config: ConfigDict, to_steps: Callable[[str], int], total_steps: int
) -> optax.GradientTransformation:
    """SGD on gradient + weight_decay * parameter, for every parameter (including BN's and biases).

    With momentum mu: buffer = mu * buffer + gradient; parameter -= learning_rate * buffer, as in PyTorch and
    optax.

    Args:
      config: `config.optimizer`.
      to_steps: turns a duration into steps.
      total_steps: length of the run; a cosine schedule reaches zero at its end.
    """
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay),
        optax.sgd(
            learning_rate(config, to_steps, total_steps),
            momentum=config.momentum or None,
            nesterov=config.nesterov,
        ),
    )


def learning_rate(config: ConfigDict, to_steps: Callable[[str], int], total_steps: int) -> optax.Schedule:
    """The learning rate at each step (0-based): linear warm-up, then constant, step or cosine.

    A decay at "81 epochs" begins with the first step after 81 full epochs.

    Raises:
      DropbnError: an unknown schedule, a warm-up as long as the run, a step schedule that never decays.
    """
    if config.schedule not in SCHEDULES:
        raise unknown("schedule", config.schedule, SCHEDULES)
    warmup = to_steps(config.warmup)
    if warmup >= total_steps:
        raise DropbnError(f"optimizer.warmup={config.warmup!r} is as long as the run ({total_steps} steps).")
    peak = config.learning_rate
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, total_steps - warmup)
    elif config.schedule == "step":
        decays = {to_steps(at) - warmup: config.decay_factor for at in config.decay_at}
        if not decays or min(decays) >= total_steps - warmup:
            raise DropbnError(
                f"optimizer.schedule='step' never decays: decay_at={tuple(config.decay_at)} lies beyond the "
                f"run's {total_steps} steps."
            )
        after = optax.piecewise_constant_schedule(peak, decays)
    else:
        after = optax.constant_schedule(peak)
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])
