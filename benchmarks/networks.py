"""The same networks for all rivals: dropbn's, plain Flax's and PyTorch's, with training steps that time them.

The plain ones are what a user writes from the libraries' documentation: `flax.linen` modules and an optax
optimizer under `jax.jit`, and a `torch.nn.Module` in channels_last with `torch.optim.SGD`. All are
pre-activation residual networks for 32 x 32 pixels; dropout stands before the last BN of a block.
"""

import dataclasses
import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs import base
from dropbn import models
from dropbn.train import parallel, steps


class Settings(NamedTuple):
    """What is trained.

    Attributes:
      name, depth, width: of `config.model`: "preresnet" or "wrn".
      rate: of dropout in every block; 0 leaves it out.
      batch_size: images a step.
      dtype: of the computation, "float32" or "bfloat16".
      kind: of the noise, for dropbn alone; its `rate` is the amount of any kind.
      bottleneck: whether blocks have three convolutions.
    """

    name: str
    depth: int
    width: int
    rate: float = 0.0
    batch_size: int = 128
    dtype: str = "float32"
    kind: str = "dropout"
    bottleneck: bool = False

    @property
    def label(self) -> str:
        return (
            f"PreResNet-{self.depth}" if self.name == "preresnet" else f"WRN-{self.depth}-{self.width // 16}"
        )

    @property
    def stem(self) -> int:
        return self.width if self.name == "preresnet" else 16

    @property
    def stages(self) -> list[tuple[int, int]]:
        """(channels, stride) of every block."""
        per_block = 9 if self.bottleneck else 6
        number = (self.depth - (4 if self.name == "wrn" else 2)) // per_block
        return [
            (self.width * 2**stage, 2 if stage and not i else 1) for stage in range(3) for i in range(number)
        ]


PRERESNET = Settings("preresnet", 20, 16)
WRN = Settings("wrn", 16, 64)


def config(settings: Settings):
    """The config of a network, on 10 classes."""
    made = base.get_config().model
    made.update({"name": settings.name, "depth": settings.depth, "width": settings.width, "num_classes": 10})
    made.dtype = settings.dtype
    if settings.bottleneck:
        made.block = "[bn relu conv bn relu conv bn relu conv | conv]"
    if settings.rate:
        made.place, made.noise.kind = "a", settings.kind
        made.noise["beta" if settings.kind == "uout" else "rate"] = settings.rate
    return made


def images(batch_size: int) -> dict[str, np.ndarray]:
    """A batch of normalized images with labels."""
    rng = np.random.default_rng(0)
    made = rng.normal(size=(batch_size, 32, 32, 3)).astype(np.float32)
    return {"image": made, "label": np.arange(batch_size) % 10}


def ours(settings: Settings, axis_name: str | None = None):
    """(step, state): dropbn's `steps.train_step` of a network, neither compiled nor mapped."""
    architecture = models.resolve(config(settings))
    tx = optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(0.1, momentum=0.9))
    state = steps.create_state(models.create(architecture), tx, 0, (32, 32, 3))

    def step(state, batch):
        return steps.train_step(
            state,
            batch,
            steps.Hyper(jnp.int32(0), settings.rate, 1.0),
            build=lambda hyper: models.create(
                dataclasses.replace(architecture, amount=hyper.amount if settings.rate else 0.0), axis_name
            ),
            tx=tx,
            axis_name=axis_name,
        )

    return step, state


def ours_on_devices(settings: Settings, number: int):
    """(step, state, batch): the step on `number` devices, with its state and batch on them."""
    layout = parallel.Layout(tuple(jax.local_devices()[:number]))
    step, state = ours(settings, parallel.AXIS)
    return (
        parallel.on_each(step, layout, donate=0),
        layout.put([state]),
        parallel.shard(images(settings.batch_size), layout.devices),
    )


class Plain(nn.Module):
    """The network in plain Flax."""

    settings: Settings

    @nn.compact
    def __call__(self, x, train):
        settings = self.settings
        conv = functools.partial(
            nn.Conv, use_bias=False, kernel_init=nn.initializers.he_normal(), dtype=settings.dtype
        )
        norm = functools.partial(
            nn.BatchNorm, use_running_average=not train, momentum=0.9, dtype=settings.dtype
        )
        x = conv(settings.stem, (3, 3))(x)
        for channels, stride in settings.stages:
            outer = 4 * channels if settings.bottleneck else channels
            y = nn.relu(norm()(x))
            changes = x.shape[-1] != outer or stride > 1
            raw = y if settings.name == "wrn" else x
            if settings.bottleneck:
                y = nn.relu(norm()(conv(channels, (1, 1))(y)))
                y = conv(channels, (3, 3), (stride, stride), padding=1)(y)
            else:
                y = conv(channels, (3, 3), (stride, stride), padding=1)(y)
            if settings.rate:
                y = nn.Dropout(settings.rate)(y, deterministic=not train)
            y = nn.relu(norm()(y))
            y = conv(outer, (1, 1) if settings.bottleneck else (3, 3))(y)
            x = y + (conv(outer, (1, 1), (stride, stride))(raw) if changes else x)
        return nn.Dense(10)(nn.relu(norm()(x)).mean((1, 2)))


def plain(settings: Settings):
    """(step, state) of plain Flax, not compiled; the state is (step, params, batch_stats, opt_state)."""
    model = Plain(settings)
    tx = optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(0.1, momentum=0.9))
    variables = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)
    state = (0, variables["params"], variables["batch_stats"], tx.init(variables["params"]))

    def step(state, batch):
        number, params, batch_stats, opt_state = state

        def mean_loss(params):
            logits, updated = model.apply(
                {"params": params, "batch_stats": batch_stats},
                batch["image"],
                train=True,
                rngs={"dropout": jax.random.fold_in(jax.random.key(1), number)},
                mutable=["batch_stats"],
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
            return losses.mean(), updated["batch_stats"]

        (loss, batch_stats), gradients = jax.value_and_grad(mean_loss, has_aux=True)(params)
        updates, opt_state = tx.update(gradients, opt_state, params)
        return (number + 1, optax.apply_updates(params, updates), batch_stats, opt_state), loss

    return step, state


def in_torch(settings: Settings):
    """The network as a `torch.nn.Module`."""
    import torch
    from torch import nn as tnn

    class Block(tnn.Module):
        def __init__(self, inputs, channels, stride):
            super().__init__()
            outer = 4 * channels if settings.bottleneck else channels
            shapes = [(inputs, channels, 3, stride), (channels, outer, 3, 1)]
            if settings.bottleneck:
                shapes = [(inputs, channels, 1, 1), (channels, channels, 3, stride), (channels, outer, 1, 1)]
            self.norms = tnn.ModuleList(tnn.BatchNorm2d(shape[0]) for shape in shapes)
            self.convs = tnn.ModuleList(
                tnn.Conv2d(a, b, kernel, step, kernel // 2, bias=False) for a, b, kernel, step in shapes
            )
            self.drop = tnn.Dropout(settings.rate)
            self.shortcut = None
            if inputs != outer or stride > 1:
                self.shortcut = tnn.Conv2d(inputs, outer, 1, stride, bias=False)

        def forward(self, x):
            y = torch.relu(self.norms[0](x))
            raw = y if settings.name == "wrn" else x
            for i, conv in enumerate(self.convs):
                if i and i == len(self.convs) - 1 and settings.rate:
                    y = self.drop(y)
                y = conv(torch.relu(self.norms[i](y)) if i else y)
            return y + (x if self.shortcut is None else self.shortcut(raw))

    layers, inputs = [tnn.Conv2d(3, settings.stem, 3, padding=1, bias=False)], settings.stem
    for channels, stride in settings.stages:
        layers.append(Block(inputs, channels, stride))
        inputs = 4 * channels if settings.bottleneck else channels
    layers += [tnn.BatchNorm2d(inputs), tnn.ReLU(), tnn.AdaptiveAvgPool2d(1), tnn.Flatten()]
    return tnn.Sequential(*layers, tnn.Linear(inputs, 10)).to(memory_format=torch.channels_last)


def torch_step(settings: Settings, device: str = "cpu", compiled: bool = False):
    """(step, number of parameters) of PyTorch; the step takes no arguments."""
    import torch

    network = in_torch(settings).to(device)
    run = torch.compile(network) if compiled else network
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    batch = images(settings.batch_size)
    x = torch.from_numpy(batch["image"]).permute(0, 3, 1, 2).to(device, memory_format=torch.channels_last)
    label = torch.from_numpy(batch["label"]).to(device)
    half = torch.autocast(device, torch.bfloat16, enabled=settings.dtype == "bfloat16")

    def step():
        optimizer.zero_grad(set_to_none=True)
        with half:
            loss = torch.nn.functional.cross_entropy(run(x), label)
        loss.backward()
        optimizer.step()
        return loss

    return step, sum(parameter.numel() for parameter in network.parameters())


def size(params) -> int:
    """Number of parameters in a tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
