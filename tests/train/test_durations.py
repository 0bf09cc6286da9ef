import pytest

from dropbn.errors import DropbnError
from dropbn.train import durations


@pytest.mark.parametrize(
    ("duration", "steps"),
    [
        ("30 epochs", 30 * 22),
        ("1 epoch", 22),
        ("0.5 epochs", 11),
        ("17 steps", 17),
        ("1 step", 1),
        ("640 examples", 10),
        ("6.4e2 examples", 10),
        ("700 examples", 11),  # 10.94 batches
        ("0 epochs", 0),
        (" 2epochs ", 44),
    ],
)
def test_durations_in_steps(duration, steps):
    assert durations.to_steps(duration, batch_size=64, num_examples=1437) == steps


@pytest.mark.parametrize("duration", ["", "30", "epochs", "-1 epochs", "3 epochs 20 steps", "2 weeks"])
def test_anything_else_is_refused(duration):
    with pytest.raises(DropbnError, match="one number and one unit"):
        durations.to_steps(duration, batch_size=64, num_examples=1437)
