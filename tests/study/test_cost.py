"""The cost of programs against published and counted numbers."""

import jax
import numpy as np
import pytest

from dropbn import models
from dropbn.study import cost


def test_the_cost_of_networks_is_the_published_one():
    """Multiply-adds of Zagoruyko & Komodakis (2016), Table 5, and of ResNet-50 by torchvision."""
    from configs import kim2023, li2018

    for config, size, wanted in (
        (li2018.get_config("wrn28_10,cifar10"), 32, 5.2e9),
        (kim2023.get_config("resnet50_imagenet,imagenet2012"), 224, 4.1e9),
    ):
        config.model.num_classes = 1000 if size == 224 else 10
        model, image = models.create(config.model), jax.ShapeDtypeStruct((1, size, size, 3), "float32")
        variables = jax.eval_shape(model.init, jax.random.key(0), image)
        assert cost.flops(model.apply, variables, image) / 2 == pytest.approx(wanted, rel=0.02)


def test_operations_are_counted_through_loops_and_calls():
    x = np.ones((4, 4), np.float32)

    def looped(x):
        x, _ = jax.lax.scan(lambda carry, _: (jax.jit(lambda a: a @ a)(carry), None), x, None, length=5)
        return jax.checkpoint(lambda a: a @ a)(x)

    assert cost.flops(looped, x) == 6 * 2 * 4**3
