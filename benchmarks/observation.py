"""What observing BN inputs costs: python -m benchmarks.observation

A pass of `shift.measure` (BN by running statistics) and one of `recalibrate` with "precise_bn" (BN by the
batch), each relative to a plain jitted evaluation of the same batches; and the same of PyTorch: forward hooks
that merge mean and variance of every BN input, and `torch.optim.swa_utils.update_bn`, relative to its eager
evaluation in channels_last. Four batches, all six in turns and in two or three starts, ratios round by round.
"""

import jax
import numpy as np

from benchmarks import networks, side_by_side
from benchmarks.side_by_side import Entrant, Row
from dropbn import doorway, models, modes, observation
from dropbn.batches import Batches

NETWORKS = (networks.PRERESNET, networks.WRN._replace(batch_size=32))
ROUNDS, STARTS, BATCHES = {"preresnet": 5, "wrn": 3}, {"preresnet": 3, "wrn": 2}, 4
TARGETS = {"shift.measure": 1.15, "recalibrate": 1.3}
SOURCES = {"shift.measure": "running", "recalibrate": "batch"}
RIVALS = {"shift.measure": "PyTorch hooks", "recalibrate": "PyTorch update_bn"}


def dropbn(settings: networks.Settings, kind: str):
    """Entrant: a pass of dropbn, "evaluation" or a key of `SOURCES`."""
    doorway.prepare()
    model = models.create(networks.config(settings))
    images = [jax.device_put(networks.images(settings.batch_size)["image"]) for _ in range(BATCHES)]
    variables = model.init(jax.random.key(1), images[0][:2])
    facts = {"parameters": networks.size(variables["params"])}
    if kind == "evaluation":
        evaluate = jax.jit(model.apply)
        return lambda: jax.block_until_ready([evaluate(variables, x) for x in images]), facts
    mode = modes.Mode(False, SOURCES[kind], False)
    observer = observation.Observer(model, variables, Batches(images), mode)
    return lambda: list(observer(variables)), facts


def torch(settings: networks.Settings, kind: str):
    """Entrant: a pass of PyTorch, "evaluation" or a value of `RIVALS`."""
    import torch as library

    network = networks.in_torch(settings).eval()
    facts = {"parameters": sum(parameter.numel() for parameter in network.parameters())}
    x = library.from_numpy(networks.images(settings.batch_size)["image"]).permute(0, 3, 1, 2)
    images = [x.to(memory_format=library.channels_last, copy=True) for _ in range(BATCHES)]
    if kind == "PyTorch update_bn":
        return lambda: library.optim.swa_utils.update_bn(images, network), facts
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

    if kind == "PyTorch hooks":
        for module in network.modules():
            if isinstance(module, library.nn.BatchNorm2d):
                module.register_forward_pre_hook(merge)

    def run():
        found.clear()
        with library.no_grad():
            for batch in images:
                network(batch)

    return run, facts


def rows() -> list[Row]:
    """The passes of both, relative to each one's own evaluation, and to one another."""
    found = []
    for settings in NETWORKS:
        entrants = [Entrant(kind, dropbn, (settings, kind)) for kind in ("evaluation", *SOURCES)]
        if side_by_side.has_torch():
            kinds = ("evaluation", *RIVALS.values())
            entrants += [
                Entrant(f"PyTorch {kind}".replace("PyTorch PyTorch", "PyTorch"), torch, (settings, kind))
                for kind in kinds
            ]
        seconds, facts = side_by_side.race(entrants, ROUNDS[settings.name], STARTS[settings.name])
        sizes = {of_entrant["parameters"] for of_entrant in facts.values()}
        if len(sizes) > 1:
            raise RuntimeError(f"The networks differ: {sizes} parameters.")
        for kind, target in TARGETS.items():
            ours = seconds[kind] / seconds["evaluation"]
            what = f"{settings.label}: {kind} / plain evaluation"
            found.append(side_by_side.at_most(what, side_by_side.spread(ours), target))
            what = f"{settings.label}: {RIVALS[kind]} / PyTorch evaluation"
            if not side_by_side.has_torch():
                found.append(Row(what, "not run: pip install torch"))
                continue
            theirs = seconds[RIVALS[kind]] / seconds["PyTorch evaluation"]
            words = f"at least that of {kind}"
            median = float(np.median(ours))
            found.append(side_by_side.at_least(what, side_by_side.spread(theirs), median, words))
    return found


if __name__ == "__main__":
    side_by_side.show(rows())
