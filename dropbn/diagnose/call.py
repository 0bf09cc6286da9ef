"""How a model is called: the keywords that every tool takes as `**call`."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from dropbn.diagnose.flags import flags_of, is_bool
from dropbn.diagnose.given import check_rngs
from dropbn.diagnose.outputs import Chosen
from dropbn.errors import DropbnError, shown


@dataclasses.dataclass(frozen=True)
class Call:
    """How a model is called. Every tool takes these fields by name, and other names as keywords of the model.

    A model that was built for one mode is given as a pair: (model for training, model for test). A flag among
    the model's own fields, such as `train: bool`, is set by itself.

    Attributes:
      inputs: the part of a batch that the model gets: a key, an index, an attribute or a function of the
        batch. By default it is the array itself, "image" of a dict, or the first element of a tuple. If the
        inputs are a tuple, each element goes to one argument, if the model takes as many: those it requires,
        then those whose default is None. If they are a dict, each value goes to the argument of its name, if
        the model takes all of these names and requires no others. Otherwise the first argument gets all.
      args: further positional arguments.
      kwargs: further keyword arguments. A keyword whose name is none of these fields may also be given to the
        tool directly.
      method: the method that is called, a name or a function of the module; by default `__call__`.
      rngs: random keys by stream; the index of the batch is folded in. By default every stream from which the
        model draws gets a key.
      outputs: the part of the returned value that is the model's output: an index, a key, an attribute or a
        function. It may be left out if the model returns an array, or several of which one is told by the
        labels; see `dropbn.diagnose.outputs`.
      train_kwargs, test_kwargs: the arguments that say training, and those that say test. By default they are
        the known flags (`flags.FLAGS`) that the model takes.
    """

    inputs: Any = None
    args: tuple = ()
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    method: str | Callable | None = None
    rngs: Mapping[str, jax.Array] | None = None
    outputs: Any = None
    train_kwargs: Mapping[str, Any] | None = None
    test_kwargs: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.args, tuple):
            raise DropbnError(
                f"args={shown(repr(self.args))}: give a tuple of positional arguments, such as (x,)."
            )
        for name in ("kwargs", "rngs", "train_kwargs", "test_kwargs"):
            value = getattr(self, name)
            if not isinstance(value, Mapping) and (value is not None or name == "kwargs"):
                raise DropbnError(f"{name}={shown(repr(value))}: give a dict.")
        check_rngs(self.rngs or {})
        if not (self.method is None or isinstance(self.method, str) or callable(self.method)):
            raise DropbnError(f"method={shown(repr(self.method))}: give a name or a function of the module.")

    @classmethod
    def of(cls, keywords: Mapping[str, Any]) -> "Call":
        """The call that a tool's keywords describe."""
        fields = {field.name for field in dataclasses.fields(cls)}
        own = {name: value for name, value in keywords.items() if name in fields}
        named = {name: value for name, value in keywords.items() if name not in fields}
        call = cls(**own)
        if doubled := sorted(named.keys() & call.kwargs):
            raise DropbnError(f"The model's argument {doubled[0]!r} is given twice: leave it out of kwargs=.")
        return dataclasses.replace(call, kwargs={**call.kwargs, **named})

    @property
    def key(self) -> tuple:
        """What a compiled program depends on; it has a hash if all arguments have one."""
        mappings = (self.kwargs, self.train_kwargs, self.test_kwargs)
        items = (None if each is None else tuple(sorted(each.items())) for each in mappings)
        return self.args, self.method, self.outputs, *items

    @property
    def of_output(self) -> str:
        """Which part of the returned value was chosen, for titles: " of returned.logits"; "" if none was."""
        return f" of {self.outputs.name}" if isinstance(self.outputs, Chosen) else ""

    def output(self, returned: Any) -> jax.Array:
        """The part of the returned value that is the model's output.

        Raises:
          DropbnError: there is no such part, or it is not an array.
        """
        found = returned
        if self.outputs is not None:
            found = part(returned, self.outputs, "outputs", "what the model returns")
        if not hasattr(found, "shape"):
            raise DropbnError(
                f"The model returns {_described(found)}, not an array: say by outputs= which part is its "
                "output, as an index, a key, an attribute or a function."
            )
        return found

    def arguments(self, x: Any, parameters: Mapping[str, inspect.Parameter]) -> tuple[tuple, dict[str, Any]]:
        """The inputs `x` of a batch as (args, kwargs) of the model, without those that the call adds.

        Args:
          x: an array, or a tree of them.
          parameters: those of the model's method, without the module itself.
        """
        known = {*self.kwargs, *(self.train_kwargs or {}), *(self.test_kwargs or {}), *flags_of(parameters)}
        positional = [
            (name, parameter.default)
            for name, parameter in parameters.items()
            if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
            and name not in known
            and not is_bool(parameter)
        ]
        required = [name for name, default in positional if default is inspect.Parameter.empty]
        takes_any = any(each.kind is each.VAR_POSITIONAL for each in parameters.values())
        if type(x) is tuple and (takes_any or self.args):
            return (x, {}) if takes_any or len(x) == len(required) - len(self.args) > 1 else ((x,), {})
        # An input that may be left out has the default None; a number or a bool is an option.
        data = [name for name, default in positional if name in required or default is None]
        if type(x) is tuple and len(x) > 1 and len(required) <= len(x) <= len(data):
            # A flag may stand between the parameters of which each gets a part.
            return (), dict(zip(data, x, strict=False))
        if type(x) is dict and {*required} <= x.keys() <= parameters.keys():
            return (), x
        return (x,), {}


def part(tree: Any, chosen: Any, argument: str, whole: str) -> Any:
    """The part of a tree that an index, a key, an attribute or a function picks.

    Args:
      tree: a batch, or what a model returns.
      chosen: which part.
      argument, whole: what an error calls the choice and the tree.

    Raises:
      DropbnError: there is no such part. An array has none: an index would pick an example.
    """
    try:
        if callable(chosen):
            return chosen(tree)
        if isinstance(chosen, str) and not isinstance(tree, Mapping):
            return getattr(tree, chosen)
        return (() if hasattr(tree, "shape") else tree)[chosen]
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise DropbnError(
            f"{argument}={shown(repr(chosen))} is no part of {whole}: {_described(tree)}."
        ) from error


def num_examples(x: Any) -> int:
    """How many examples a batch's inputs hold: the length of the first axis of the first array."""
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(x)]
    return next((shape[0] for shape in shapes if shape), 1)


def fold_in(rngs: Mapping[str, jax.Array], index: int | jax.Array) -> dict[str, jax.Array]:
    """The key of every stream with `index` folded in."""
    return {stream: jax.random.fold_in(key, index) for stream, key in rngs.items()}


def _described(tree):
    if isinstance(tree, Mapping):
        return f"a dict with the keys {sorted(tree)}"
    if isinstance(tree, (tuple, list)):
        return f"a {type(tree).__name__} of {len(tree)}"
    return f"an array of shape {tree.shape}" if hasattr(tree, "shape") else f"a {type(tree).__name__}"
