"""The CIFAR networks and CaffeNet128 against PyTorch modules written from the code that the papers used.

The modules below follow bearpaw/pytorch-classification's networks, and caffenet-benchmark's with BN after the
activation and LRN, layer by layer; they share nothing with dropbn. Both get the same weights, in the order in
which the layers are called. Skipped without PyTorch.
"""

import jax
import numpy as np
import pytest

from configs import base
from dropbn import models

torch = pytest.importorskip("torch")
F = torch.nn.functional


class _Tape:
    """Hands out weights to a forward pass written with functions, kind by kind, in the order of calls."""

    def __init__(self, variables, batch_mode):
        self.variables, self.batch_mode = variables, batch_mode

    def _get(self, *path, collection="params"):
        found = self.variables[collection]
        for part in path:
            found = found[part]
        return torch.from_numpy(np.array(found, np.float64))

    def conv(self, x, section, name, stride=1, padding=0, groups=1):
        weight = self._get(section, name, "kernel").permute(3, 2, 0, 1)
        bias = None
        if "bias" in self.variables["params"][section][name]:
            bias = self._get(section, name, "bias")
        return F.conv2d(x, weight, bias, stride, padding, groups=groups)

    def bn(self, x, section, name):
        mean, var = (self._get(section, name, key, collection="batch_stats") for key in ("mean", "var"))
        scale, bias = (self._get(section, name, key) for key in ("scale", "bias"))
        return F.batch_norm(x, mean, var, scale, bias, self.batch_mode, 0.1, 1e-5)

    def bn_relu(self, x, section, name):
        return F.relu(self.bn(x, section, name))

    def linear(self, x, name="dense1"):
        return x @ self._get("head", name, "kernel") + self._get("head", name, "bias")


def _preresnet(t, x, per_stage):
    x = t.conv(x, "stem", "conv1", padding=1)
    for stage in (1, 2, 3):
        for i in range(per_stage):
            at, stride = f"stage{stage}_block{i + 1}", 2 if stage > 1 and i == 0 else 1
            y = t.conv(t.bn_relu(x, at, "bn1"), at, "conv1")
            y = t.conv(t.bn_relu(y, at, "bn2"), at, "conv2", stride, 1)
            y = t.conv(t.bn_relu(y, at, "bn3"), at, "conv3")
            x = y + (t.conv(x, at, "shortcut_conv1", stride) if i == 0 else x)
    return t.linear(t.bn_relu(x, "head", "bn1").mean((2, 3)))


def _resnet(t, x, per_stage):
    x = t.bn_relu(t.conv(x, "stem", "conv1", padding=1), "stem", "bn1")
    for stage in (1, 2, 3):
        for i in range(per_stage):
            at, stride = f"stage{stage}_block{i + 1}", 2 if stage > 1 and i == 0 else 1
            y = t.bn_relu(t.conv(x, at, "conv1", stride, 1), at, "bn1")
            y = t.bn(t.conv(y, at, "conv2", padding=1), at, "bn2")
            if stride == 2:
                x = t.bn(t.conv(x, at, "shortcut_conv1", stride), at, "shortcut_bn1")
            x = F.relu(y + x)
    return t.linear(x.mean((2, 3)))


def _wrn(t, x, per_stage):
    x = t.conv(x, "stem", "conv1", padding=1)
    for stage in (1, 2, 3):
        for i in range(per_stage):
            at, stride = f"stage{stage}_block{i + 1}", 2 if stage > 1 and i == 0 else 1
            activated = t.bn_relu(x, at, "bn1")
            y = t.conv(activated, at, "conv1", stride, 1)
            y = t.conv(t.bn_relu(y, at, "bn2"), at, "conv2", padding=1)
            x = y + (t.conv(activated, at, "shortcut_conv1", stride) if i == 0 else x)
    return t.linear(t.bn_relu(x, "head", "bn1").mean((2, 3)))


def _resnext(t, x, per_stage):
    x = t.bn_relu(t.conv(x, "stem", "conv1", padding=1), "stem", "bn1")
    for stage in (1, 2, 3):
        for i in range(per_stage):
            at, stride = f"stage{stage}_block{i + 1}", 2 if stage > 1 and i == 0 else 1
            y = t.bn_relu(t.conv(x, at, "conv1"), at, "bn1")
            y = t.bn_relu(t.conv(y, at, "conv2", stride, 1, groups=4), at, "bn2")
            y = t.bn(t.conv(y, at, "conv3"), at, "bn3")
            if i == 0:
                x = t.bn(t.conv(x, at, "shortcut_conv1", stride), at, "shortcut_bn1")
            x = F.relu(y + x)
    return t.linear(x.mean((2, 3)))


def _densenet(t, x, per_stage):
    x = t.conv(x, "stem", "conv1", padding=1)
    for stage in (1, 2, 3):
        if stage > 1:
            at = f"transition{stage - 1}"
            x = F.avg_pool2d(t.conv(t.bn_relu(x, at, "bn1"), at, "conv1"), 2)
        for i in range(per_stage):
            at = f"stage{stage}_block{i + 1}"
            y = t.conv(t.bn_relu(x, at, "bn1"), at, "conv1")
            y = t.conv(t.bn_relu(y, at, "bn2"), at, "conv2", padding=1)
            x = torch.cat((x, y), 1)
    return t.linear(t.bn_relu(x, "head", "bn1").mean((2, 3)))


def _vgg(t, x, _):
    for group, number in enumerate((1, 1, 2, 2, 2), 1):
        for i in range(number):
            at = f"group{group}_conv{i + 1}"
            x = t.bn_relu(t.conv(x, at, "conv1", padding=1), at, "bn1")
        x = F.max_pool2d(x, 2)
    return t.linear(x.flatten(1))


def _caffenet(t, x, _):
    for i, (stride, padding, groups) in enumerate(((4, 0, 1), (1, 2, 2), (1, 1, 1), (1, 1, 2), (1, 1, 2)), 1):
        x = t.bn(F.relu(t.conv(x, f"conv{i}", "conv1", stride, padding, groups)), f"conv{i}", "bn1")
        if i in (1, 2, 5):
            x = F.max_pool2d(x, 3, 2, ceil_mode=True)
            x = F.local_response_norm(x, 5, 1e-4, 0.75, 1.0) if i < 5 else x
    x = x.permute(0, 2, 3, 1).flatten(1)  # our flatten takes channels last
    for name in ("1", "2"):
        x = t.bn(F.relu(t.linear(x, "dense" + name)), "head", "bn" + name)
    return t.linear(x, "dense3")


CASES = {
    "preresnet": (_preresnet, {"depth": 20, "width": 4}, 2),
    "resnet": (_resnet, {"depth": 14, "width": 4}, 2),
    "wrn": (_wrn, {"depth": 16, "width": 8}, 2),
    "resnext": (_resnext, {"depth": 20, "width": 2, "cardinality": 4}, 2),
    "densenet": (_densenet, {"depth": 16, "width": 4}, 2),
    "vgg": (_vgg, {"depth": 11, "width": 4}, 2),
    "caffenet_lrn": (_caffenet, {"width": 16, "place": "after"}, 2),
}


@pytest.mark.parametrize("batch_mode", [False, True], ids=["running", "batch"])
@pytest.mark.parametrize("name", CASES)
def test_the_same_weights_give_the_same_logits(name, batch_mode):
    reference, fields, per_stage = CASES[name]
    config = base.get_config().model
    config.update({"name": name, "num_classes": 5, **fields})
    if name == "preresnet":
        config.block = "[bn relu conv bn relu conv bn relu conv | conv]"
    model = models.create(config)
    x = jax.random.normal(jax.random.key(0), (3, *((128, 128) if "caffe" in name else (32, 32)), 3))
    shapes = jax.eval_shape(model.init, jax.random.key(1), x)
    rng = np.random.default_rng(0)

    def fill(path, leaf):  # Every weight, scale, bias and statistic away from its default.
        last = path[-1].key
        if last == "var":
            return rng.uniform(0.5, 2, leaf.shape).astype(np.float32)
        spread = (2 / np.prod(leaf.shape[:-1])) ** 0.5 if last == "kernel" else 0.2
        return (rng.normal(0, spread, leaf.shape) + (last == "scale")).astype(np.float32)

    variables = jax.tree_util.tree_map_with_path(fill, shapes)
    logits, _ = jax.jit(
        lambda v, x: model.apply(v, x, use_running_average=not batch_mode, mutable=["batch_stats"])
    )(variables, x)
    images = torch.from_numpy(np.asarray(x, np.float64)).permute(0, 3, 1, 2)
    wanted = reference(_Tape(variables, batch_mode), images, per_stage).numpy()
    assert np.abs(wanted).max() > 0.1
    np.testing.assert_allclose(logits, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())
