"""What observing BN inputs costs: python -m benchmarks.observation

Ratio of the time of a pass of `shift.measure` (BN by running statistics) and of `recalibrate` with
"precise_bn" (BN by the batch) to a plain jitted evaluation of the same batches, in turns.
"""

import time

import jax
import numpy as np

from configs import base
from dropbn import models, modes, observation
from dropbn.batches import Batches

NETWORKS = {"preresnet-20": ("preresnet", 20, 16, 128), "wrn-16-4": ("wrn", 16, 64, 32)}
PAIRS = 15


def ratios(name: str, depth: int, width: int, batch_size: int) -> dict[str, np.ndarray]:
    """Ratios of each kind of pass to the plain evaluation before it, for random images of 32 x 32."""
    config = base.get_config().model
    config.name, config.depth, config.width, config.num_classes = name, depth, width, 10
    model = models.create(config)
    images = jax.random.normal(jax.random.key(0), (4, batch_size, 32, 32, 3))
    variables = model.init(jax.random.key(1), images[0, :2])
    batches = Batches(list(images))
    evaluate = jax.jit(model.apply)

    def plain():
        jax.block_until_ready([evaluate(variables, x) for x in images])

    def observed(source):
        observer = observation.Observer(model, variables, batches, modes.Mode(False, source, False))
        return lambda: list(observer(variables))

    passes = {"measure": observed("running"), "precise_bn": observed("batch")}
    for run in (plain, *passes.values()):
        run()
    seconds = [{kind: _seconds(run) / _seconds(plain) for kind, run in passes.items()} for _ in range(PAIRS)]
    return {kind: np.array([pair[kind] for pair in seconds]) for kind in passes}


def _seconds(run):
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    for label, settings in NETWORKS.items():
        for kind, found in ratios(*settings).items():
            low, median, high = np.quantile(found, (0.25, 0.5, 0.75))
            print(f"{label:<14}{kind:<12}{median:.2f} ({low:.2f} to {high:.2f})")
