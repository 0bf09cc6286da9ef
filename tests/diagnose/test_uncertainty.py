"""Monte Carlo predictions against a network whose posterior is two points, and scores by plain loops."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dropbn.diagnose import modes, tasks, uncertainty
from dropbn.diagnose.linen import Model
from dropbn.errors import DropbnError


class TwoPoints(nn.Module):
    """Logits (4, 0) or (0, 0), as the dropped unit falls; a BN that the noise does not reach."""

    @nn.compact
    def __call__(self, x, train=False):
        y = nn.Dropout(0.5)(2 * x[:, :1], deterministic=not train)
        z = nn.BatchNorm(use_bias=False, use_scale=False)(x[:, 1:], use_running_average=not train)
        return jnp.concatenate([y, 0 * z[:, :1]], -1)


def _entropy(*p):
    return -sum(q * np.log(q) for q in p)


def test_the_moments_of_a_known_posterior():
    x = np.ones((400, 2), np.float32)
    variables = TwoPoints().init(jax.random.key(0), x)
    before = jax.tree.map(np.array, variables)
    found = uncertainty.sample(TwoPoints(), variables, [x[:250], x[250:]], num_samples=60)
    jax.tree.map(np.testing.assert_array_equal, variables, before)
    sure = 1 / (1 + np.exp(-4))
    mean, spread = (sure + 0.5) / 2, (sure - 0.5) / 2
    error = 5 * spread / (400 * 60) ** 0.5
    assert found.mean[:, 0].mean() == pytest.approx(mean, abs=error)
    # The variance within T draws is (1 - 1 / T) of the whole.
    assert np.square(found.spread[:, 0]).mean() == pytest.approx(spread**2 * (1 - 1 / 60), rel=0.02)
    total = _entropy(mean, 1 - mean)
    information = total - (_entropy(sure, 1 - sure) + np.log(2)) / 2
    rows = found.rows
    assert len(rows) == 400 and {row["prediction"] for row in rows} == {0}
    # The plug-in estimate is low by about 1 / (2 T) nats.
    assert np.mean([row["entropy"] for row in rows]) == pytest.approx(total, abs=0.02)
    assert np.mean([row["mutual_information"] for row in rows]) == pytest.approx(information, abs=0.02)
    assert len({row["probability"] for row in rows}) > 10  # Masks differ between images and draws.
    worst = found.most_uncertain(3)
    assert worst[0]["mutual_information"] == max(row["mutual_information"] for row in rows)
    figure = found.plot()
    assert list(figure.axes[0].lines[0].get_xdata()) == [row["entropy"] for row in rows]


def test_one_draw_is_the_model_itself():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            x = nn.Dropout(0.5)(x, deterministic=not train)
            return nn.Dense(3)(nn.BatchNorm()(x, use_running_average=not train))

    x = jax.random.normal(jax.random.key(0), (6, 4))
    variables = Net().init(jax.random.key(1), x)
    for source in ("running", "batch"):
        rngs = {"dropout": jax.random.key(3)}
        found = uncertainty.sample(Net(), variables, [x], num_samples=1, batch_norm=source, rngs=rngs)
        rngs = {"dropout": jax.random.fold_in(jax.random.fold_in(jax.random.key(3), 0), 0)}
        logits, _ = modes.apply(Net(), variables, x, mode=modes.Mode(True, source, False), rngs=rngs)
        np.testing.assert_allclose(found.mean, jax.nn.softmax(logits), rtol=1e-5)
        assert not found.spread.any() and all(row["mutual_information"] < 1e-12 for row in found.rows)


def test_scores_by_plain_loops():
    rng = np.random.default_rng(0)
    p = tasks.softmax(rng.normal(0, 2, (500, 4)))
    labels = rng.integers(0, 4, 500)
    found = uncertainty.scores(p, labels)
    ece, confidence, right = 0.0, p.max(-1), p.argmax(-1) == labels
    for i in range(15):
        inside = (confidence >= i / 15) & (confidence < (i + 1) / 15)
        if inside.any():
            ece += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert found["ece"] == pytest.approx(ece)
    assert found["accuracy"] == right.mean()
    assert found["nll"] == pytest.approx(-np.mean([np.log(q[y]) for q, y in zip(p, labels, strict=True)]))
    certain = uncertainty.scores(np.eye(4)[labels], labels)
    assert (certain["accuracy"], certain["nll"], certain["ece"]) == (1, 0, 0)


def test_refusals():
    x = np.ones((4, 2), np.float32)
    variables = TwoPoints().init(jax.random.key(0), x)
    with pytest.raises(DropbnError, match="No noise was found that is on in training"):
        uncertainty.sample(nn.Dense(2), nn.Dense(2).init(jax.random.key(0), x), [x])
    with pytest.raises(DropbnError, match=r"Outputs of shape \(1, 4\) for 4 examples: pick by outputs="):
        uncertainty.sample(TwoPoints(), variables, [x], outputs=lambda y: y[:, 0][None])
    with pytest.raises(DropbnError, match="num_samples=0: give a whole number"):
        uncertainty.sample(TwoPoints(), variables, [x], num_samples=0)
    with pytest.raises(DropbnError, match="are not finite"):
        uncertainty.sample(TwoPoints(), variables, [x * np.nan])
    with pytest.raises(DropbnError, match="one image has no batch statistics"):
        uncertainty.sample(TwoPoints(), variables, [x[:1]], batch_norm="batch")
    with pytest.raises(DropbnError, match=r"shape \(4,\)"):
        tasks.softmax(np.ones(4))


def test_noises_are_found_where_they_are_on():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            x = nn.Dropout(0.5, name="on")(x, deterministic=not train)
            x = nn.Dropout(0.0, name="nothing")(x, deterministic=not train)
            x = nn.Dropout(0.5, name="frozen", deterministic=True)(x)
            if train:
                x = nn.Dropout(0.1, name="hidden", deterministic=False)(x)
            return x

    assert Model.of(Net()).layers({}, jnp.ones((2, 2))).switched_noises == [("on",), ("hidden",)]
