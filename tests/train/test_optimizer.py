"""SGD and its schedules against hand-computed numbers."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import base
from dropbn.errors import DropbnError
from dropbn.train import optimizer


def _to_steps(duration):
    return 10 * int(duration.split()[0])


def _config(**fields):
    config = base.get_config().optimizer
    config.update(fields)
    return config


def test_two_steps_of_sgd():
    config = _config(learning_rate=0.1, momentum=0.9, weight_decay=0.01)
    tx = optimizer.create(config, _to_steps, 100)
    w, state = jnp.array(2.0), None
    state = tx.init(w)
    buffer, wanted = 0.0, 2.0
    for gradient in (1.0, -3.0):
        updates, state = tx.update(jnp.array(gradient), state, w)
        w = optax.apply_updates(w, updates)
        buffer = 0.9 * buffer + gradient + 0.01 * wanted
        wanted -= 0.1 * buffer
        assert float(w) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize(
    ("fields", "rates"),
    [
        ({"schedule": "constant"}, {0: 0.1, 99: 0.1}),
        (
            {"schedule": "step", "decay_at": ("3 epochs", "6 epochs"), "decay_factor": 0.2},
            {0: 0.1, 29: 0.1, 30: 0.02, 59: 0.02, 60: 0.004},
        ),
        ({"schedule": "cosine"}, {0: 0.1, 25: 0.05 * (1 + np.cos(np.pi / 4)), 50: 0.05, 100: 0.0}),
        ({"schedule": "constant", "warmup": "1 epochs"}, {0: 0.0, 5: 0.05, 10: 0.1, 50: 0.1}),
        ({"schedule": "cosine", "warmup": "2 epochs"}, {10: 0.05, 20: 0.1, 60: 0.05, 100: 0.0}),
        ({"schedule": "step", "decay_at": ("3 epochs",), "warmup": "1 epochs"}, {29: 0.1, 30: 0.01}),
    ],
)
def test_schedules(fields, rates):
    schedule = optimizer.learning_rate(_config(**fields), _to_steps, 100)
    for step, rate in rates.items():
        assert float(schedule(step)) == pytest.approx(rate, rel=1e-5, abs=1e-9)


def test_refusals():
    with pytest.raises(DropbnError, match="Did you mean 'cosine'"):
        optimizer.create(_config(schedule="cosin"), _to_steps, 100)
    with pytest.raises(DropbnError, match="never decays"):
        optimizer.create(_config(schedule="step"), _to_steps, 100)  # at epochs 81 and 122
    with pytest.raises(DropbnError, match="as long as the run"):
        optimizer.create(_config(warmup="10 epochs"), _to_steps, 100)
