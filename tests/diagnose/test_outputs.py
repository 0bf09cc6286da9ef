"""Which of several arrays is a model's output: by the labels, alike in both modes, and stated."""

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from public_style_models import PolicyAndValue, Trunk

from dropbn.diagnose import gap, outputs, tasks, uncertainty
from dropbn.errors import DropbnError

X = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
CLASSES = np.arange(8) % 3
VALUES = X[:, 0]


@flax.struct.dataclass
class Answer:
    loss: jax.Array | None = None
    logits: jax.Array | None = None
    hidden: jax.Array | None = None


def _shape(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


LOGITS, ONE, HIDDEN, IDS = _shape(8, 3), _shape(8, 1), _shape(8, 5, 2), _shape(8, dtype=jnp.int32)

CHOICES = [
    # In training, in test mode, labels, the choice.
    ((LOGITS, ONE), (LOGITS, ONE), CLASSES, "returned[0]"),
    ((LOGITS, ONE), (LOGITS, ONE), VALUES, "returned[1]"),
    ((LOGITS, {"of": HIDDEN}), (LOGITS, {"of": HIDDEN}), CLASSES, "returned[0]"),
    (Answer(logits=HIDDEN), Answer(logits=HIDDEN), None, "returned.logits"),  # The rest is None.
    (Answer(_shape(), LOGITS), Answer(None, LOGITS), None, "returned.logits"),  # A loss is no output.
    ((IDS, ONE), (IDS, ONE), CLASSES > 1, "returned[1]"),  # Integers are no logits.
    # Training returns more than test mode: the same key, or the only array in each.
    ({"out": LOGITS, "aux": LOGITS}, {"out": LOGITS}, CLASSES, "returned['out']"),
    ((LOGITS, ONE), LOGITS, CLASSES, "returned[0] in training, returned in test mode"),
    (
        {"a": HIDDEN, "b": LOGITS},
        (LOGITS, HIDDEN),
        CLASSES,
        "returned['b'] in training, returned[0] in test mode",
    ),
]


@pytest.mark.parametrize(("in_training", "in_test", "labels", "name"), CHOICES)
def test_the_only_array_that_fits(in_training, in_test, labels, name):
    chosen = outputs.choose(in_training, in_test, lambda y: tasks.fits(None, y, labels))
    assert chosen.name == name
    wanted = {"[0]": 0, "[1]": 1}
    for tree, told in zip((in_training, in_test), (name.split(", ") * 2)[:2], strict=True):
        place = told.removeprefix("returned").split(" ")[0]
        if not place:
            assert chosen(tree) is tree
        elif place in wanted:
            assert chosen(tree) is tree[wanted[place]]
        else:
            key = place.strip(".[]'")
            assert chosen(tree) is (tree[key] if isinstance(tree, dict) else getattr(tree, key))


UNDECIDED = [
    (LOGITS, LOGITS, CLASSES),  # Nothing is to be chosen.
    ((LOGITS, ONE), (LOGITS, ONE), None),
    ((LOGITS, ONE), (LOGITS, ONE), X),
    ((LOGITS, LOGITS), (LOGITS, LOGITS), CLASSES),
    ((LOGITS, ONE), (LOGITS, ONE), CLASSES % 2),  # Two classes, or one logit?
    ((LOGITS, LOGITS), LOGITS, CLASSES),  # Which of the two does test mode return?
    ((LOGITS, ONE), (LOGITS, ONE), CLASSES + 1),
]


@pytest.mark.parametrize(("in_training", "in_test", "labels"), UNDECIDED)
def test_what_the_labels_do_not_tell_is_left_open(in_training, in_test, labels):
    assert outputs.choose(in_training, in_test, lambda y: tasks.fits(None, y, labels)) is None


def test_the_named_task_decides():
    both = (_shape(8, 3), _shape(8))
    binary, other = (
        outputs.choose(both, both, lambda y, t=t: tasks.fits(t, y, CLASSES % 2))
        for t in ("binary", "classify")
    )
    assert (binary.name, other.name) == ("returned[1]", "returned[0]")


def test_a_sample_is_of_what_the_labels_tell():
    model, variables = PolicyAndValue(), PolicyAndValue().init(jax.random.key(0), X)
    for labels, number in ((CLASSES, 0), (VALUES, 1)):
        batches = [(X, labels), (-X, labels)]
        found = uncertainty.sample(model, variables, batches, num_samples=2)
        wanted = uncertainty.sample(model, variables, batches, num_samples=2, outputs=number)
        np.testing.assert_array_equal(found.mean, wanted.mean)
        assert found.title.startswith(f"Monte Carlo dropout, 2 samples of returned[{number}], BN with")


class Auxiliary(nn.Module):
    """Returns a further output in training alone."""

    @nn.compact
    def __call__(self, x, train=False):
        hidden = Trunk(train)(x)
        x = nn.Dense(3)(hidden)
        return (x, nn.Dense(4)(hidden).mean(-1)) if train or self.is_initializing() else x


@pytest.mark.slow
def test_an_output_of_training_alone():
    batches = [(X, CLASSES), (-X, CLASSES)]
    variables = Auxiliary().init(jax.random.key(0), X)
    found = gap.explain(Auxiliary(), variables, batches, batches, num_samples=2)
    wanted = gap.explain(
        Auxiliary(),
        variables,
        batches,
        batches,
        num_samples=2,
        outputs=lambda returned: returned[0] if isinstance(returned, tuple) else returned,
    )
    assert found.rows == wanted.rows and found.advice == wanted.advice and not found.unseen
    assert found.remedies.rows == wanted.remedies.rows and len(found.remedies.rows) == 4
    assert wanted.title == "Evaluation grid: accuracy and loss"
    assert found.title.endswith("of returned[0] in training, returned in test mode")


def test_what_is_not_told_is_asked_for():
    variables = PolicyAndValue().init(jax.random.key(0), X)
    for batches, more in (([X], {}), ([(X, CLASSES % 2)], {}), ([(X, X)], {"task": "regress"})):
        with pytest.raises(
            DropbnError, match="The model returns a tuple of 2, not an array: say by outputs="
        ):
            uncertainty.sample(PolicyAndValue(), variables, batches, **more)
    with pytest.raises(DropbnError, match="The model returns a tuple of 2, not an array: say by outputs="):
        score = lambda outputs, batch: {"loss": np.square(outputs).mean(-1)}  # noqa: E731
        gap.explain(PolicyAndValue(), variables, [(X, CLASSES)], [(X, CLASSES)], score=score)
