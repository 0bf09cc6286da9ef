"""The index of the networks: `create(config.model)` makes any of them."""

import functools
import itertools

import jax
import jax.numpy as jnp

from dropbn import noise, norm, places
from dropbn.errors import DropbnError, unknown
from dropbn.layers import Parts
from dropbn.models import densenet, mlp, preresnet, resnet, resnext, vgg, wrn
from dropbn.models.network import Network
from dropbn.order import ACTIVATIONS, Order, parse
from dropbn.results import Result

# Each has `sections(config, block, head)` and the orders BLOCK and HEAD that its paper published.
FAMILIES = {
    "preresnet": preresnet,
    "resnet": resnet,
    "wrn": wrn,
    "resnext": resnext,
    "densenet": densenet,
    "vgg": vgg,
    "mlp": mlp,
}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def create(config, amount=None, axis_name: str | None = None) -> Network:
    """The network of `config.model` (its fields are documented in `configs/base.py`).

    Args:
      config: `config.model`.
      amount: the noise's rate or beta, possibly traced; by default the config's.
      axis_name: the device axis over which BN statistics are shared; None on one device.

    Returns:
      A Linen module called as `model(x, deterministic=True, use_running_average=None)`.

    Raises:
      DropbnError: a name, order, place, depth or noise that does not exist or does not fit; a noise that no
        order has a place for.
    """
    block, head = orders(config)
    if config.dtype not in DTYPES:
        raise unknown("dtype", config.dtype, DTYPES)
    default_amount = noise.amount(config.noise)
    if default_amount and not block.count("drop") + head.count("drop"):
        raise DropbnError(
            f"model.noise is {config.noise.kind} {default_amount:g}, but no order says where: put drop into "
            f"model.block ('{block}') or model.head ('{head}'), give a model.place, or make it 0."
        )
    dtype = DTYPES[config.dtype]
    parts = Parts(
        norm=functools.partial(
            norm.BatchNorm,
            momentum=config.bn.momentum,
            epsilon=config.bn.epsilon,
            group_size=config.bn.group_size,
            axis_name=axis_name,
            dtype=dtype,
        ),
        noise=functools.partial(noise.KINDS[config.noise.kind], default_amount if amount is None else amount),
        activation=config.activation,
        dtype=dtype,
    )
    return Network(tuple(FAMILIES[config.name].sections(config, block, head)), parts)


def orders(config) -> tuple[Order, Order]:
    """The orders of block and head of `config.model`, with `config.model.place` applied.

    Raises:
      DropbnError: an unknown model, a malformed order, an unknown place, a place beside a `drop` in the
        orders, an unknown activation, an `act` without a `config.model.activation` or the reverse.
    """
    if config.name not in FAMILIES:
        raise unknown("model", config.name, FAMILIES)
    family = FAMILIES[config.name]
    block, head = parse(config.block or family.BLOCK), parse(config.head or family.HEAD)
    if config.place and block.count("drop") + head.count("drop"):
        raise DropbnError(
            f"model.place={config.place!r} and a drop in the orders ('{block}', '{head}'): give one of them."
        )
    if config.place in places.HEAD_PLACES:
        head = places.place(head, config.place)
    elif config.place:
        block = places.place(block, config.place)
    if config.activation and config.activation not in ACTIVATIONS:
        raise unknown("activation", config.activation, ACTIVATIONS)
    if bool(config.activation) != bool(block.count("act") + head.count("act")):
        raise DropbnError(
            f"model.activation={config.activation!r} is what 'act' stands for in model.block and model.head "
            f"('{block}', '{head}'): give both or neither."
        )
    return block, head


def describe(config, image_shape: tuple[int, int, int] = (32, 32, 3)) -> Result:
    """The network of `config.model` as its orders; rich prints it as a table.

    Args:
      config: `config.model`.
      image_shape: (height, width, channels) of its images.

    Returns:
      A row for each run of a stage's sections with the same order: `sections` (first and last), their
      `number`, the `order`, and over all of them `parameters`, `batch_norms` and `noises`; the last row is
      the total.
    """
    network = create(config)
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.ones((1, *image_shape)))
    rows = []

    def stage_and_order(section):
        return section.name.split("_")[0], section.order

    for (_, order), group in itertools.groupby(network.sections, stage_and_order):
        names = [section.name for section in group]
        weights, statistics = (
            jax.tree.leaves([shapes.get(collection, {}).get(name, {}) for name in names])
            for collection in ("params", "batch_stats")
        )
        rows.append(
            {
                "sections": names[0] if len(names) == 1 else f"{names[0]} .. {names[-1]}",
                "number": len(names),
                "order": str(order),
                "parameters": sum(weight.size for weight in weights),
                "batch_norms": len(statistics) // 2,  # of the shortcuts that run
                "noises": len(names) * order.count("drop"),
            }
        )
    counted = ("number", "parameters", "batch_norms", "noises")
    total = {key: sum(row[key] for row in rows) for key in counted}
    rows.append({"sections": "total", "order": "", **total})
    return Result(rows, f"{config.name}, {config.num_classes} classes, drop is {config.noise.kind}")
