"""What the tools ask of a layer, whatever API it is written in.

A tool gives an interceptor to `model.Model.intercepting`. The API hands it each call of a module that runs
there, as a `Layer`. `dropbn.diagnose.linen` and `dropbn.diagnose.nnx` have the layers of the two APIs.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax

from dropbn.diagnose.tracing import Path


class Layer(Protocol):
    """A module of a model, in one call of one of its methods.

    Its class tells what it is (`registry.of`), and its attributes are those of `module`.
    """

    @property
    def module(self) -> Any:
        """The module, whose attributes may be set during the call."""

    @property
    def path(self) -> Path:
        """Its place in the model."""

    @property
    def is_call(self) -> bool:
        """Whether the method is `__call__`."""

    @property
    def signature(self) -> inspect.Signature:
        """The method's, without the module."""

    @property
    def missing_stream(self) -> str:
        """The random stream that a noise draws from if that has no key; otherwise ""."""

    def has(self, name: str) -> bool:
        """Whether the module itself has a leaf of this name in `batch_stats`."""

    def get(self, name: str, default: Any = None) -> Any:
        """The leaf; the default if there is none."""

    def put(self, name: str, value: Any) -> None:
        """Replaces the leaf, also for what runs after this call."""

    def leaves(self) -> dict[str, dict[str, Any]]:
        """The module's own variables, by collection and name."""

    def without_place(self, fields: Mapping[str, Any]) -> Any:
        """A copy with other fields that runs outside of the model; None if the API has no such copies."""


# Gets the function that goes on with the call, its arguments, and the layer; returns the output.
Interceptor = Callable[[Callable, tuple, dict, Layer], Any]


def first(args: tuple, kwargs: Mapping[str, Any]) -> Any:
    """The first argument of a call, None if there is none."""
    return next(iter((*args, *kwargs.values())), None)


def passed_on(args: tuple, kwargs: Mapping[str, Any], number: int) -> Any:
    """The first argument of a call if `number` is 0, otherwise a tuple of the first `number` of them."""
    return tuple([*args, *kwargs.values()][:number]) if number else first(args, kwargs)


def leaves_of(layer: Layer) -> list[jax.Array]:
    """The arrays that a layer itself keeps besides parameters."""
    collections = (leaves for name, leaves in layer.leaves().items() if name != "params")
    return [leaf for leaves in collections for leaf in leaves.values() if isinstance(leaf, jax.Array)]
