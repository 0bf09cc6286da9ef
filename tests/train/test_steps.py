"""A training step against a loss that is written out."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dropbn import models
from dropbn.train import steps


def test_a_step_descends_the_loss_and_the_sparsity_penalty(mlp_config):
    config = mlp_config.model
    config.update({"block": "dense sigmoid sparse", "num_classes": 3, "width": 5, "noise": {"rate": 0.0}})
    config.sparsity.update({"target": 0.1, "weight": 0.7})
    x = jax.random.normal(jax.random.key(0), (6, 2, 2, 1))
    batch = {"image": x, "label": jnp.arange(6) % 3}
    tx = optax.sgd(1.0)
    state = steps.create_state(models.create(config), tx, 0, x.shape[1:])

    def written_out(params):
        first, second = params["layer1"]["dense1"], params["head"]["dense1"]
        hidden = 1 / (1 + jnp.exp(-(x.reshape(6, 4) @ first["kernel"] + first["bias"])))
        logits = hidden @ second["kernel"] + second["bias"]
        losses = jnp.log(jnp.exp(logits).sum(1)) - logits[jnp.arange(6), batch["label"]]
        m = hidden.mean(0)
        penalty = 0.7 * (0.1 * jnp.log(0.1 / m) + 0.9 * jnp.log(0.9 / (1 - m))).sum()
        return losses.mean() + penalty, (losses.sum(), penalty)

    slope, (loss, penalty) = jax.grad(written_out, has_aux=True)(state.params)
    after, sums = jax.jit(
        lambda state: steps.train_step(
            state, batch, steps.Hyper(0, 0.0, 1.0), build=lambda hyper: models.create(config), tx=tx
        )
    )(state)
    taken = jax.tree.map(lambda before, after: before - after, state.params, after.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), taken, slope)
    np.testing.assert_allclose(sums["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(sums["penalty"], 6 * penalty, rtol=1e-5)  # a sum over images, as the loss is
