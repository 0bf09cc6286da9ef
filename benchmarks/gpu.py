"""Training on one GPU against PyTorch: python -m benchmarks.gpu

All networks train in bfloat16 on one batch that is already on the device, ten steps a round: WRN-28-10 and
PreResNet-110 (bottlenecks) with dropout 0.3 in every block on batches of 256 images of 32 pixels, and
ResNet-50 on 128 images of 224 pixels. dropbn takes the ten steps in one dispatch (scan) with threefry keys.
PyTorch runs in channels_last under autocast with torch.compile. The two alternate. "Of a product" is the
share of the speed at which the device multiplies bfloat16 matrices.

The next rows show what options change for dropbn's WRN-28-10: steps dispatched one by one, rbg keys, noises.
The last rows train members of a study of PreResNet-20 in one program (vmap). The names of networks,
`options` or `members` as arguments run those alone. benchmarks/notes.md has the results of an H100.
"""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import networks, side_by_side
from benchmarks.side_by_side import Entrant, Row
from configs import base
from dropbn import models, runtime
from dropbn.study import cost
from dropbn.train import steps

WRN = networks.Settings("wrn", 28, 160, 0.3, 256, "bfloat16")
NETWORKS = {
    "WRN-28-10": WRN,
    "PreResNet-110": networks.Settings("preresnet", 110, 16, 0.3, 256, "bfloat16", bottleneck=True),
    "ResNet-50": None,
}
NAMES = (*NETWORKS, "options", "members")
STEPS, ROUNDS, MEMBER_COUNT = 10, 7, 8
RESNET_BATCH, PRODUCTS = 128, 500
TARGET, NOISE_TARGET = 1.2, 1.03
# Rivals are alive together: each takes memory as it needs it.
_SHARED = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


def rows(names=NAMES) -> list[Row]:
    """Images a second of every entrant and the ratios, or why there are none."""
    if not side_by_side.has_accelerator():
        return [Row(name, "not run: no GPU") for name in names]
    found = []
    for name in names:
        if name in NETWORKS:
            found += _against_torch(name)
        else:
            found += side_by_side.ask(Entrant(name, {"options": options, "members": members}[name]))["rows"]
    return found


def _against_torch(name):
    racing = [Entrant("dropbn", dropbn, (NETWORKS[name],), _SHARED)]
    if side_by_side.has_torch():
        racing.append(Entrant("PyTorch compiled", torch, (NETWORKS[name],)))
    seconds, facts = side_by_side.race(racing, ROUNDS)
    made = []
    for who, of_entrant in seconds.items():
        rate = facts[who]["images"] / of_entrant
        share = np.median(rate) * facts["dropbn"]["flops"] / facts["dropbn"]["peak"]
        made.append(
            Row(f"{name}: {who}", f"{side_by_side.spread(rate)} images/s, {100 * share:.0f} % of a product")
        )
    if "PyTorch compiled" not in seconds:
        return [*made, Row(f"{name}: dropbn / PyTorch compiled", "not run: pip install torch")]
    ratio = side_by_side.spread(seconds["PyTorch compiled"] / seconds["dropbn"])
    return [*made, side_by_side.at_least(f"{name}: dropbn / PyTorch compiled", ratio, TARGET)]


def ours(settings):
    """(step, state, batch) of dropbn, on the device; `settings` None is ResNet-50."""
    if settings is not None:
        step, state = networks.ours(settings)
        return step, state, jax.device_put(networks.images(settings.batch_size))
    config = base.get_config().model
    config.update({"name": "resnet_imagenet", "depth": 50, "width": 64, "num_classes": 1000})
    config.dtype = "bfloat16"
    tx = optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(0.1, momentum=0.9))
    state = steps.create_state(models.create(config), tx, 0, (224, 224, 3))
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.normal(size=(RESNET_BATCH, 224, 224, 3)).astype(np.float32),
        "label": np.arange(RESNET_BATCH) % 1000,
    }

    def step(state, batch):
        hyper = steps.Hyper(jnp.int32(0), 0.0, 1.0)
        return steps.train_step(state, batch, hyper, build=lambda _: models.create(config), tx=tx)

    return step, state, jax.device_put(batch)


def dropbn(settings):
    """Entrant: `STEPS` of dropbn's training steps in one dispatch."""
    runtime.prepare()
    step, state, batch = ours(settings)
    images = len(batch["label"])
    facts = {"images": STEPS * images, "flops": cost.flops(step, state, batch) / images, "peak": _peak()}
    return _rounds(step, state, batch), facts


def _rounds(step, state, batch, scan=True):
    """What takes `STEPS` steps and waits for them."""

    @functools.partial(jax.jit, donate_argnums=0)
    def several(state, batch):
        return jax.lax.scan(lambda state, _: step(state, batch), state, length=STEPS if scan else 1)

    def run():
        nonlocal state
        for _ in range(1 if scan else STEPS):
            state, sums = several(state, batch)
        jax.block_until_ready((state, sums))

    return run


def options():
    """Entrant whose facts are the rows of the options."""
    runtime.prepare()

    def runs(keys="threefry2x32", scan=True, **changes):
        jax.config.update("jax_default_prng_impl", keys)
        run = _rounds(*ours(WRN._replace(**changes)), scan)
        run()  # Traced while these keys are the default.
        return run

    racing = {
        "scan, threefry": runs(),
        "one by one, threefry": runs(scan=False),
        "scan, rbg": runs(keys="rbg"),
        "no noise": runs(rate=0.0),
        "gaussian 0.3": runs(kind="gaussian"),
        "uout 0.5": runs(kind="uout", rate=0.5),
    }
    seconds = side_by_side.turns(racing, ROUNDS)
    made = []
    for who in ("one by one, threefry", "scan, rbg"):
        ratio = side_by_side.spread(seconds["scan, threefry"] / seconds[who])
        made.append(Row(f"WRN-28-10: speed of dropbn, {who} / scan, threefry", str(ratio)))
    for who in ("scan, threefry", "gaussian 0.3", "uout 0.5"):
        ratio = side_by_side.spread(seconds[who] / seconds["no noise"])
        what = who.replace("scan, threefry", "dropout 0.3")
        made.append(side_by_side.at_most(f"WRN-28-10: time with {what} / without noise", ratio, NOISE_TARGET))
    return lambda: None, {"rows": made}


def members():
    """Entrant whose facts are the rows of members in one program."""
    runtime.prepare()
    step, state, batch = ours(networks.PRERESNET._replace(rate=0.3, dtype="bfloat16"))
    stacked = jax.tree.map(lambda leaf: jnp.stack([jnp.asarray(leaf)] * MEMBER_COUNT), state)
    racing = {
        "alone": _rounds(step, state, batch),
        "together": _rounds(jax.vmap(step, (0, None)), stacked, batch),
    }
    seconds = side_by_side.turns(racing, ROUNDS)
    ratio = side_by_side.spread(MEMBER_COUNT * seconds["alone"] / seconds["together"])
    what = f"PreResNet-20: {MEMBER_COUNT} members by vmap / one after another"
    return lambda: None, {"rows": [Row(what, f"{ratio} times as fast")]}


def torch(settings):
    """Entrant: `STEPS` steps of PyTorch with torch.compile."""
    import torch as library

    library.backends.cudnn.benchmark = True
    if settings is None:
        step, number = _torch_resnet(), RESNET_BATCH
    else:
        step, number = networks.torch_step(settings, "cuda", compiled=True)[0], settings.batch_size

    def run():
        for _ in range(STEPS):
            step()
        library.cuda.synchronize()

    return run, {"images": STEPS * number}


def _torch_resnet():
    import torch as library
    import torchvision

    network = torchvision.models.resnet50().to("cuda", memory_format=library.channels_last)
    compiled = library.compile(network)
    optimizer = library.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    x = library.randn(RESNET_BATCH, 3, 224, 224, device="cuda").to(memory_format=library.channels_last)
    label = library.arange(RESNET_BATCH, device="cuda") % 1000

    def step():
        optimizer.zero_grad(set_to_none=True)
        with library.autocast("cuda", library.bfloat16):
            loss = library.nn.functional.cross_entropy(compiled(x), label)
        loss.backward()
        optimizer.step()

    return step


def _peak():
    """Operations a second of a bfloat16 product of 8192 x 8192 matrices."""
    a = jax.random.normal(jax.random.key(0), (8192, 8192), jnp.bfloat16)
    product = jax.jit(jnp.matmul)

    def run():
        for _ in range(PRODUCTS):
            found = product(a, a)
        jax.block_until_ready(found)

    side_by_side.timed(run)  # A card that was idle takes a while to raise its clocks.
    return PRODUCTS * 2 * 8192**3 / side_by_side.timed(run)


if __name__ == "__main__":
    for name in sys.argv[1:] or NAMES:
        side_by_side.show(rows([name]))  # At once: a machine that is lent may be gone before the last.
