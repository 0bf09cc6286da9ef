"""The ImageNet networks give the logits of torchvision's and timm's for the same weights.

Layers are paired by kind in the order of the calls, a block's shortcut last. Skipped without torchvision and
timm.
"""

import re

import flax
import jax
import numpy as np
import pytest

from configs import base
from dropbn import models

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")
timm = pytest.importorskip("timm")


def _googlenet():
    """torchvision's has 3x3 convolutions for the paper's 5x5, and one 2x2 pooling for its 3x3."""
    model = torchvision.models.googlenet(aux_logits=False, init_weights=False, transform_input=False)
    model.maxpool4 = torch.nn.MaxPool2d(3, stride=2, ceil_mode=True)
    return model


NETWORKS = {
    "resnet_imagenet": (50, 64, {}, torchvision.models.resnet50),
    "resnext_imagenet": (101, 4, {"cardinality": 64}, torchvision.models.resnext101_64x4d),
    "densenet_imagenet": (169, 32, {}, torchvision.models.densenet169),
    "mobilenetv2": (53, 100, {}, torchvision.models.mobilenet_v2),
    "efficientnet": (50, 100, {}, torchvision.models.efficientnet_b0),
    "googlenet": (22, 100, {"block": "conv bn relu"}, _googlenet),
    "preresnet_imagenet": (50, 64, {}, lambda: timm.create_model("resnetv2_50")),
    "senet": (152, 4, {"cardinality": 64}, lambda: timm.create_model("legacy_senet154")),
}


def _ours(model, x):
    """Layers of our network by kind, in the order of the calls."""
    paths = {"conv": [], "bn": [], "se": [], "dense": []}
    kinds = {flax.linen.Conv: "conv", flax.linen.Dense: "dense"}

    def visit(run, args, kwargs, context):
        module = context.module
        if context.method_name == "__call__":
            is_norm = isinstance(module, flax.linen.BatchNorm)
            kind = "bn" if is_norm else kinds.get(type(module))
            kind = "se" if module.name in ("squeeze", "excite") else kind
            if kind:
                paths[kind].append(module.path)
        return run(*args, **kwargs)

    with flax.linen.intercept_methods(visit):
        jax.eval_shape(lambda x: model.init(jax.random.key(0), x), x)
    return paths


def _theirs(model, x):
    calls = []
    for name, module in model.named_modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear, torch.nn.BatchNorm2d)):
            module.register_forward_hook(lambda m, i, o, name=name: calls.append((name, m)))
    with torch.no_grad():
        model(x)
    paired = {"conv": [], "bn": [], "se": [], "dense": []}

    def position(call):
        index, (name, _) = call
        block, is_shortcut, _ = name.partition("downsample")
        if is_shortcut:
            index = max(i for i, (other, _) in enumerate(calls) if other.startswith(block)) + 0.5
        return index

    for _, (name, module) in sorted(enumerate(calls), key=position):
        kind = "bn" if isinstance(module, torch.nn.BatchNorm2d) else "conv"
        if re.search(r"\.fc[12]$", name):
            kind = "se"
        elif isinstance(module, torch.nn.Linear) or name.endswith("fc"):
            kind = "dense"
        paired[kind].append(module)
    return paired


@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_logits(name):
    depth, width, fields, make = NETWORKS[name]
    torch.manual_seed(0)
    reference = make().eval()
    config = base.get_config().model
    config.name, config.depth, config.width, config.num_classes = name, depth, width, 1000
    config.update(fields)
    x = np.random.default_rng(0).normal(size=(2, 65, 65, 3)).astype(np.float32)
    torch_x = torch.from_numpy(x).permute(0, 3, 1, 2)
    theirs = _theirs(reference, torch_x)
    config.bn.epsilon = theirs["bn"][0].eps
    model = models.create(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    flat = flax.traverse_util.flatten_dict(shapes)
    values = {path: np.zeros(leaf.shape, np.float32) for path, leaf in flat.items()}

    def put(path, value):
        value = value.detach().numpy()
        if path[-1] == "kernel" and value.shape != values[path].shape:
            value = np.pad(value, ((1, 1), (1, 1), (0, 0), (0, 0)))
        assert value.shape == values[path].shape, path
        values[path] = value

    for kind, paths in _ours(model, x).items():
        for path, module in zip(paths, theirs[kind], strict=True):
            if kind == "bn":
                for key, value in (("scale", module.weight), ("bias", module.bias)):
                    torch.nn.init.uniform_(value, 0.5, 1.0)
                    put(("params", *path, key), value)
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
                put(("batch_stats", *path, "mean"), module.running_mean)
                put(("batch_stats", *path, "var"), module.running_var)
                continue
            weight = module.weight
            if kind == "conv":
                weight = weight.permute(2, 3, 1, 0)
            elif weight.ndim == 4:
                weight = weight[..., 0, 0].T
            else:
                weight = weight.T
            put(("params", *path, "kernel"), weight)
            if module.bias is not None:
                put(("params", *path, "bias"), module.bias)
    variables = flax.traverse_util.unflatten_dict(values)
    for batch_mode in (False, True):
        if batch_mode:
            for module in reference.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.train()
        with torch.no_grad():
            wanted = reference(torch_x).numpy()
        # Not compiled: each layer once is cheaper.
        logits, _ = model.apply(variables, x, use_running_average=not batch_mode, mutable=["batch_stats"])
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(logits / scale, wanted / scale, atol=1e-4)
