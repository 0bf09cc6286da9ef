"""What observing BN inputs costs: python -m benchmarks.observation

A pass of `shift.measure` (BN with running statistics) and a pass of `recalibrate` with "precise_bn" (BN with
batch statistics) are each compared with a plain jitted evaluation of the same batches. PyTorch's equivalents
are forward hooks that merge mean and variance of every BN input, and `torch.optim.swa_utils.update_bn`. They
are compared with PyTorch's eager evaluation in channels_last. Each network gets four batches, of 128 images
for PreResNet-20, 32 for WRN-16-4 and 8 for PreResNet-110, whose many layers then have little work each. Each
framework's three passes alternate in one process, which is started anew several times. Ratios are taken round
by round.
"""

import jax
import numpy as np

from benchmarks import networks, side_by_side
from benchmarks.side_by_side import Entrant, Row
from dropbn import models, runtime
from dropbn.diagnose import modes, observation
from dropbn.diagnose.batches import Batches
from dropbn.diagnose.linen import Model

NETWORKS = (
    networks.PRERESNET,
    networks.WRN._replace(batch_size=32),
    networks.PRERESNET._replace(depth=110, batch_size=8),
)
ROUNDS = {"PreResNet-20": 15, "WRN-16-4": 5, "PreResNet-110": 10}
STARTS = {"PreResNet-20": 5, "WRN-16-4": 2, "PreResNet-110": 2}
BATCHES = 4
TARGETS = {"shift.measure": 1.15, "recalibrate": 1.3}
SOURCES = {"shift.measure": "running", "recalibrate": "batch"}
RIVALS = {"shift.measure": "PyTorch hooks", "recalibrate": "PyTorch update_bn"}


def dropbn(settings: networks.Settings):
    """Entrant whose facts are the seconds of dropbn's passes: "evaluation" and the keys of `SOURCES`."""
    runtime.prepare()
    model = models.create(networks.config(settings))
    images = [jax.device_put(networks.images(settings.batch_size)["image"]) for _ in range(BATCHES)]
    variables = model.init(jax.random.key(1), images[0][:2])
    evaluate = jax.jit(model.apply)

    def observing(source):
        mode = modes.Mode(False, source, False)
        observer = observation.Observer(Model.of(model), variables, Batches(images), mode)
        return lambda: list(observer(variables))

    passes = {"evaluation": lambda: jax.block_until_ready([evaluate(variables, x) for x in images])}
    passes |= {name: observing(source) for name, source in SOURCES.items()}
    return _timed(settings, passes, networks.size(variables["params"]))


def torch(settings: networks.Settings):
    """Entrant whose facts are the seconds of PyTorch's passes: "evaluation" and the values of `RIVALS`."""
    import torch as library

    network = networks.in_torch(settings).eval()
    x = library.from_numpy(networks.images(settings.batch_size)["image"]).permute(0, 3, 1, 2)
    images = [x.to(memory_format=library.channels_last, copy=True) for _ in range(BATCHES)]
    found = {}

    def merge(norm, inputs):
        (values,) = inputs
        var, mean = library.var_mean(values, (0, 2, 3), correction=0)
        number = values.numel() // len(mean)
        if norm in found:
            seen, old_mean, m2 = found[norm]
            delta, total = mean - old_mean, seen + number
            m2 = m2 + var * number + delta**2 * seen * number / total
            found[norm] = (total, old_mean + delta * number / total, m2)
        else:
            found[norm] = (number, mean, var * number)

    def evaluate():
        with library.no_grad():
            for batch in images:
                network(batch)

    def observe():
        found.clear()
        norms = [module for module in network.modules() if isinstance(module, library.nn.BatchNorm2d)]
        hooks = [norm.register_forward_pre_hook(merge) for norm in norms]
        evaluate()
        for hook in hooks:
            hook.remove()

    passes = {
        "evaluation": evaluate,
        "PyTorch hooks": observe,
        "PyTorch update_bn": lambda: library.optim.swa_utils.update_bn(images, network),
    }
    return _timed(settings, passes, sum(parameter.numel() for parameter in network.parameters()))


def _timed(settings, passes, parameters):
    seconds = side_by_side.turns(passes, ROUNDS[settings.label])
    return lambda: None, {"seconds": seconds, "parameters": parameters}


def rows() -> list[Row]:
    """The passes of both, relative to each one's own evaluation, and to one another."""
    found = []
    for settings in NETWORKS:
        entrants = [Entrant("dropbn", dropbn, (settings,))]
        if side_by_side.has_torch():
            entrants.append(Entrant("PyTorch", torch, (settings,)))
        starts = [
            {entrant.name: side_by_side.ask(entrant) for entrant in entrants}
            for _ in range(STARTS[settings.label])
        ]
        sizes = {facts["parameters"] for start in starts for facts in start.values()}
        if len(sizes) > 1:
            raise RuntimeError(f"The networks differ: {sizes} parameters.")
        for kind, target in TARGETS.items():
            ours = _relative(starts, "dropbn", kind)
            what = f"{settings.label}: {kind} / plain evaluation"
            found.append(side_by_side.at_most(what, ours, target))
            what = f"{settings.label}: {RIVALS[kind]} / PyTorch evaluation"
            if not side_by_side.has_torch():
                found.append(Row(what, "not run: pip install torch"))
                continue
            theirs, words = _relative(starts, "PyTorch", RIVALS[kind]), f"at least that of {kind}"
            found.append(side_by_side.at_least(what, theirs, ours.median, words))
    return found


def _relative(starts, framework, kind):
    """How much longer than an evaluation in the same round a pass takes."""
    seconds = [start[framework]["seconds"] for start in starts]
    return side_by_side.spread(np.concatenate([each[kind] / each["evaluation"] for each in seconds]))


if __name__ == "__main__":
    side_by_side.show(rows())
