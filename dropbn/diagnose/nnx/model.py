"""An NNX model and how it is called."""

import dataclasses
import functools
import operator
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import jax
from flax import nnx
from flax.core import unfreeze
from flax.traverse_util import flatten_dict, unflatten_dict

from dropbn.diagnose import model
from dropbn.diagnose.call import Call
from dropbn.diagnose.flags import FLAGS
from dropbn.diagnose.nnx import graph, intercepted
from dropbn.diagnose.nnx.graph import Skeleton
from dropbn.diagnose.registry import MOVED, OURS
from dropbn.diagnose.seam import Interceptor
from dropbn.diagnose.tracing import name_of
from dropbn.errors import DropbnError

# The flags that train() and eval() set themselves.
_SET_BY_FLAX = ("deterministic", "use_running_average")


@dataclasses.dataclass(frozen=True, eq=False)
class Model(model.Model):
    """An NNX model and how it is called. Its own modes are those of train() and eval(), called on a copy.

    Attributes:
      skeleton: the model without the values of its arrays.
      flags: the known flags that are attributes of the model itself.
      call: how it is called.
    """

    skeleton: Skeleton
    flags: tuple[tuple[str, Any], ...]
    call: Call
    gives = ("rngs",)

    @classmethod
    def of(cls, module: nnx.Module, call: Mapping[str, Any] | Call = Call()) -> tuple["Model", dict]:
        """The model that a tool was given, with the tool's keywords, and the variables that it holds.

        Raises:
          DropbnError: keywords that the model does not take.
        """
        skeleton, variables = graph.split(module)
        flags = tuple((name, value) for name, value in vars(module).items() if name in FLAGS)
        found = cls(skeleton, flags, call if isinstance(call, Call) else Call.of(call))
        found.refuse_unknown()
        return found, variables

    @property
    def key(self) -> tuple:
        return self.skeleton, self.flags, self.call.key, tuple(sorted(self.call.rngs or ()))

    @property
    def name(self) -> str:
        return self.skeleton.kind.__name__

    def function(self) -> Callable | None:
        method = self.call.method or "__call__"
        return method if callable(method) else getattr(self.skeleton.kind, method, None)

    def own_flags(self, testing: bool) -> Mapping[str, Any]:
        return dict(self.flags)

    def intercepting(self, interceptor: Interceptor) -> AbstractContextManager:
        return intercepted.intercepting(interceptor)

    def shapes(self, args: tuple, kwargs: dict) -> dict:
        return self.skeleton.shapes

    def run_under(
        self,
        variables: dict,
        args: tuple,
        kwargs: dict,
        testing: bool,
        rngs: Mapping | None,
        interceptor: Interceptor,
        retrace: bool = False,
        replaces_flags: bool = False,
        keeps_stats: bool = False,
    ) -> tuple[Any, dict]:
        args, kwargs = self.bound(args, kwargs, testing, replaces_flags)
        given = flatten_dict(unfreeze(variables.get("batch_stats", {})))
        copy = self.skeleton.merge(variables, rngs or {})
        intercepted.prepare(copy, {path: leaf for path, leaf in given.items() if path[-1].startswith(OURS)})
        before = _stats(copy)
        _set_mode(copy, testing)
        if (parameter := self.all_parameters().get("rngs")) is not None:
            streams = graph.streams_for_call(rngs or {})
            wants_key = "Array" in str(parameter.annotation)
            kwargs = {**kwargs, "rngs": streams() if wants_key else streams}
        method = self.call.method or "__call__"
        run = functools.partial(method, copy) if callable(method) else getattr(copy, method)
        with intercepted.noting() as put, self.intercepting(interceptor), jax.named_scope(self.name):
            output = run(*args, **kwargs)
        stats = _stats(copy)
        for path in [path for path in stats if path[-1] == MOVED]:
            if (path[:-1], MOVED) not in put:
                del stats[path]
            elif all(map(operator.is_, *map(jax.tree.leaves, (stats[path], before[path])))):
                raise DropbnError(
                    f"The new statistics of '{name_of(path[:-1])}' are lost, as in training: a "
                    "transformation of JAX, such as jax.checkpoint, got the module. Use that of NNX, such "
                    "as nnx.remat."
                )
        after = dict(nnx.to_flat_state(nnx.state(copy)))
        others = [leaf for leaf in self.skeleton.leaves if leaf.collection == "state"]
        state = {leaf.name[1:]: graph.value_of(after[leaf.place]) for leaf in others if leaf.place in after}
        return output, {"batch_stats": unflatten_dict(stats), "state": unflatten_dict(state)}


def _stats(copy):
    """The values in `batch_stats`, by path."""
    leaves = nnx.to_flat_state(nnx.state(copy, nnx.BatchStat))
    return {tuple(map(str, place)): leaf.get_value() for place, leaf in leaves}


def _set_mode(copy, testing):
    """Puts a copy into a mode: by train() or eval(), and by the known flags among the modules' attributes."""
    copy.eval() if testing else copy.train()
    for _, module in list(nnx.iter_modules(copy)):
        for flag in FLAGS.keys() - {*_SET_BY_FLAX}:
            if isinstance(vars(module).get(flag), bool):
                setattr(module, flag, FLAGS[flag][testing])
