"""The types of layers that differ between training and test.

Noises are found by their class. So are batch normalizations of a registered class; those of another class are
found by what they do (`dropbn.diagnose.norm_search`). A type of your own is registered in one line:

    registry.NOISES[MyAttention] = registry.Switch("deterministic", within=True)
    registry.NORMS[MyBatchNorm] = registry.Switch("train", test=False)

A registered batch normalization keeps `mean` and `var` in `batch_stats`. Its attributes `axis`, `momentum`
and `epsilon` mean what they mean in `flax.linen.BatchNorm`, whose defaults hold where it has none.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import flax.linen as nn

from dropbn.diagnose import tracing
from dropbn.nn import laws
from dropbn.nn.noise import Noise


class Switch(NamedTuple):
    """How a type of layer is put into test mode.

    Attributes:
      flag: the argument of its `__call__`, and perhaps of its constructor, that says so.
      test: the flag's value in test mode; in training it is `not test`.
      within: whether the layer does more than add noise, as attention with a dropout of its own. Such a noise
        is switched, but no other is put in its place, and it is not moved.
    """

    flag: str
    test: bool = True
    within: bool = False


NOISES: dict[type, Switch] = {
    nn.Dropout: Switch("deterministic"),
    Noise: Switch("deterministic"),
    nn.MultiHeadDotProductAttention: Switch("deterministic", within=True),
}
NORMS: dict[type, Switch] = {nn.BatchNorm: Switch("use_running_average")}
# The noises y = m x + n that draw from the stream `rng_collection`, and how the law of each is found.
AFFINE: dict[type, Callable[[Any], laws.Law | None]] = {
    nn.Dropout: lambda noise: laws.Dropout(noise.rate),
    Noise: lambda noise: getattr(noise, "law", None),
}

Entry = TypeVar("Entry")

# The fields and arguments that hold the amount of a noise, a rate unless it is beta; 0 is no noise.
AMOUNTS = "rate", "beta", "dropout_rate", "dropout_prob", "drop_rate", "drop_prob", "drop", "prob", "p"

# What we put beside a layer's mean and var begins so, and no mode freezes it.
OURS = "dropbn "
# The leaf in which statistics move while the layer still uses the given ones.
MOVED = OURS + "moved"
# The leaf with the means and the variances of every call of a layer: each takes the first and puts it last.
BY_CALL = OURS + "by call"


def of(module: Any, kinds: dict[type, Entry]) -> Entry | None:
    """What is registered for the module's type or for the nearest of its bases; None if nothing is."""
    return of_kind(type(module), kinds)


def of_kind(kind: type, kinds: dict[type, Entry]) -> Entry | None:
    """What is registered for a type or for the nearest of its bases; None if nothing is."""
    return next((kinds[base] for base in kind.__mro__ if base in kinds), None)


def attribute(norm: Any, name: str) -> Any:
    """`axis`, `momentum` or `epsilon` of a batch normalization."""
    return getattr(norm, name, getattr(nn.BatchNorm, name))


def name_of(module: nn.Module) -> str:
    """The name of the module's path."""
    return tracing.name_of(module.path)


def amount_field(kind: Any) -> str | None:
    """The field, or the argument of the constructor, that holds the amount of a class of noises."""
    fields = getattr(kind, "__dataclass_fields__", None) or inspect.signature(kind.__init__).parameters
    return next((field for field in AMOUNTS if field in fields), None)


def fields_of(module: Any) -> dict[str, Any]:
    """What a module was constructed with, by name; of NNX, its attributes."""
    names = getattr(module, "__dataclass_fields__", None) or vars(module)
    return {name: getattr(module, name) for name in names}


def amount_of(noise: Any) -> Any:
    """The amount that a noise was constructed with; None if there is none."""
    fields = fields_of(noise)
    return getattr(noise, next((field for field in AMOUNTS if field in fields), "amount"), None)


def is_affine(noise: Any) -> bool:
    """Whether the output of a noise is m x + n."""
    return of(noise, AFFINE) is not None


def law_of(noise: Any) -> laws.Law | None:
    """The law of a noise; None if it is not known."""
    law = of(noise, AFFINE)
    return law(noise) if law else None


def is_identity(noise: Any, switch: Switch, asked: bool | None = None) -> bool:
    """Whether a noise is known to change nothing, even in training; the flag of a call goes first."""
    amount = amount_of(noise)
    is_off = asked is None and getattr(noise, switch.flag, None) is switch.test
    return is_off or bool(laws.is_number(amount) and amount == 0)
