"""The index of the networks: `create(config.model)` makes any of them."""

import dataclasses
import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp

from dropbn.errors import DropbnError, unknown
from dropbn.models import (
    autoencoder,
    caffenet,
    densenet,
    googlenet,
    inverted,
    lenet,
    mlp,
    preresnet,
    resnet,
    resnext,
    senet,
    vgg,
    wrn,
)
from dropbn.models.network import Config, Network, Section
from dropbn.nn import initializers, laws, noise, norm, places
from dropbn.nn.activations import ACTIVATIONS
from dropbn.nn.layers import Parts
from dropbn.nn.order import Order, parse
from dropbn.results import Result

FAMILIES = {
    "preresnet": preresnet.SMALL,
    "resnet": resnet.SMALL,
    "wrn": wrn.FAMILY,
    "resnext": resnext.SMALL,
    "densenet": densenet.SMALL,
    "vgg": vgg.FAMILY,
    "lenet": lenet.FAMILY,
    "mlp": mlp.FAMILY,
    "autoencoder": autoencoder.FAMILY,
    "preresnet_imagenet": preresnet.IMAGENET,
    "resnet_imagenet": resnet.IMAGENET,
    "resnext_imagenet": resnext.IMAGENET,
    "senet": senet.FAMILY,
    "densenet_imagenet": densenet.IMAGENET,
    "mobilenetv2": inverted.MOBILENETV2_FAMILY,
    "efficientnet": inverted.EFFICIENTNET_FAMILY,
    "caffenet": caffenet.FAMILY,
    "caffenet_lrn": caffenet.LRN,
    "googlenet": googlenet.FAMILY,
}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class Architecture:
    """`config.model`, resolved: all that `create` needs.

    Attributes:
      name: the family.
      num_classes: number of outputs.
      block, head: their orders, with `config.model.place` applied.
      sections: the network from the stem to the head, each section with its order and sizes.
      noise: the kind of noise.
      amount: its rate or beta; `dataclasses.replace(architecture, amount=traced)` makes it an argument.
      group_size: images per BN statistic; 0 is the whole batch.
      init: name of the initializer.
      parts: what the layers are made of; `create` adds the noise's amount, and BN's group size and axis.
    """

    name: str
    num_classes: int
    block: Order
    head: Order
    sections: tuple[Section, ...]
    noise: str
    amount: float | jax.Array
    group_size: int
    init: str
    parts: Parts


def create(architecture: Architecture | Config, axis_name: str | None = None) -> Network:
    """The network of `config.model` (its fields are documented in `configs/base.py`).

    Args:
      architecture: `config.model`, or what `resolve` makes of it.
      axis_name: the device axis over which BN statistics are shared; None on one device.

    Returns:
      A Linen module called as `model(x, deterministic=True, use_running_average=None)`.

    Raises:
      DropbnError: what `resolve` says.
    """
    if not isinstance(architecture, Architecture):
        architecture = resolve(architecture)
    parts = architecture.parts
    parts = parts._replace(
        norm=functools.partial(parts.norm, group_size=architecture.group_size, axis_name=axis_name),
        noise=functools.partial(parts.noise, architecture.amount),
    )
    return Network(architecture.sections, parts)


def resolve(config: Config) -> Architecture:
    """What `config.model` means.

    Raises:
      DropbnError: a name, order, place, activation, depth or noise that does not exist or does not fit; a
        place beside a `drop` in the orders; an `act` without an activation, or the reverse; a noise that no
        order has a place for; fewer outputs than one.
    """
    block, head = _orders(config)
    if config.num_classes < 1:
        raise DropbnError(
            f"model.num_classes={config.num_classes}: give the number of outputs. 0 stands for as many as "
            "the data has classes, which dropbn.train.plan.make_plan(config, dataset) fills in."
        )
    if config.dtype not in DTYPES:
        raise unknown("dtype", config.dtype, DTYPES)
    law = laws.of_config(config.noise)
    if law.amount and not block.count("drop") + head.count("drop"):
        raise DropbnError(
            f"model.noise is {config.noise.kind} {law.amount:g}, but no order says where: put drop into "
            f"model.block ('{block}') or model.head ('{head}'), give a model.place, or make it 0."
        )
    return Architecture(
        name=config.name,
        num_classes=config.num_classes,
        block=block,
        head=head,
        sections=tuple(FAMILIES[config.name].sections(config, block, head)),
        noise=config.noise.kind,
        amount=law.amount,
        group_size=config.bn.group_size,
        init=config.init,
        parts=_parts(config, block, law),
    )


def _parts(config, block, law):
    """What the layers are made of, without what `create` adds."""
    dtype, constant = DTYPES[config.dtype], nn.initializers.constant
    conv_init, dense_init = initializers.create(
        config.init,
        config.activation or _activation(block),
        keep=1 / law.affine.train_variance(0, 1),  # keep of dropout, 1 / (1 + s2)
    )
    return Parts(
        norm=functools.partial(
            norm.BatchNorm,
            momentum=config.bn.momentum,
            epsilon=config.bn.epsilon,
            use_scale=config.bn.use_scale,
            use_bias=config.bn.use_bias,
            scale_init=constant(config.bn.scale_init),
            bias_init=constant(config.bn.bias_init),
            dtype=dtype,
        ),
        noise=noise.create(config.noise),
        activation=config.activation,
        dtype=dtype,
        sparsity=(config.sparsity.target, config.sparsity.weight),
        conv_init=conv_init,
        dense_init=dense_init,
    )


def _orders(config):
    """The orders of block and head, with `config.place` applied."""
    if config.name not in FAMILIES:
        raise unknown("model", config.name, FAMILIES)
    family = FAMILIES[config.name]
    block, head = parse(config.block or family.block), parse(config.head or family.head)
    if config.place in places.NORM_PLACES:
        block, head = places.place(block, config.place), places.place(head, config.place)
        if not block.count("bn") + head.count("bn"):
            raise DropbnError(
                f"model.place={config.place!r} puts bn around activations; '{block}' and '{head}' have none."
            )
    elif config.place and block.count("drop") + head.count("drop"):
        raise DropbnError(
            f"model.place={config.place!r} and a drop in the orders ('{block}', '{head}'): give one of them."
        )
    elif config.place:
        of_head = [name for name in config.place.split("+") if name in places.HEAD_PLACES]
        of_block = [name for name in config.place.split("+") if name not in places.HEAD_PLACES]
        head = places.place(head, "+".join(of_head)) if of_head else head
        block = places.place(block, "+".join(of_block)) if of_block else block
    if config.activation and config.activation not in ACTIVATIONS:
        raise unknown("activation", config.activation, ACTIVATIONS)
    if bool(config.activation) != bool(block.count("act") + head.count("act")):
        raise DropbnError(
            f"model.activation={config.activation!r} is what 'act' stands for in model.block and model.head "
            f"('{block}', '{head}'): give both or neither."
        )
    return block, head


def _activation(block):
    return next((word for _, word in block.named() if word in ACTIVATIONS), "identity")


def describe(config: Config, image_shape: tuple[int, int, int] = (32, 32, 3)) -> Result:
    """The network of `config.model` as its orders; rich prints it as a table.

    Args:
      config: `config.model`.
      image_shape: (height, width, channels) of its images.

    Returns:
      A row for consecutive sections of a stage that have the same order: `sections` (first and last), their
      `number`, the `order`, and how many `parameters`, `batch_norms` and `noises` they have together. The
      last row is the total.
    """
    architecture = resolve(config)
    network = create(architecture)
    noises = ("drop", "rrelu", *(["act"] if architecture.parts.activation == "rrelu" else []))
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.ones((1, *image_shape)))
    rows = []

    def stage_and_order(section):
        return section.name.split("_")[0], section.order

    for (_, order), group in itertools.groupby(architecture.sections, stage_and_order):
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
                "batch_norms": len(statistics) // 2,  # A shortcut that does not run has none.
                "noises": len(names) * order.count(*noises),
            }
        )
    counted = ("number", "parameters", "batch_norms", "noises")
    total = {key: sum(row[key] for row in rows) for key in counted}
    rows.append({"sections": "total", "order": "", **total})
    name, classes, kind = architecture.name, architecture.num_classes, architecture.noise
    return Result(rows, f"{name}, {classes} classes, drop is {kind}")
