"""Linen modules inside NNX models, and NNX modules inside Linen models (`flax.nnx.bridge`).

A bridge runs the other API within a call of its own. Here the interceptors go over with it, and the paths of
the layers inside begin with that of the bridge.
"""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax
from flax import nnx
from flax.core import unfreeze
from flax.traverse_util import flatten_dict

from dropbn.diagnose import linen
from dropbn.diagnose.nnx import graph, intercepted
from dropbn.diagnose.registry import OURS
from dropbn.diagnose.seam import Interceptor
from dropbn.diagnose.tracing import Path

# A bridge takes its other attributes for variables.
PLACE = "to_nnx__place"
_runs = itertools.count()


@functools.lru_cache(maxsize=256)
def linen_within(kind: type) -> type:
    """A subclass of `bridge.ToNNX`, for a copy, whose Linen module goes through the interceptors."""

    def __call__(self: Any, *args: Any, rngs: Any = None, mutable: Any = None, **kwargs: Any) -> Any:
        streams = self.to_nnx__rngs if rngs is None else rngs
        if isinstance(streams, nnx.Rngs):
            keys = {name: stream() for name, stream in streams.items() if not graph.is_keyless(stream)}
            if keys and "dropout" not in keys:  # Linen would take another stream for a noise, silently.
                keys["dropout"] = next(iter(keys.values()))
            rngs = nnx.Rngs(**keys)
        # A name of our own keeps the traces of nn.jit to this call; see `linen.Model.run_under`.
        denied = flax.core.DenyList(("params", "intermediates", f"{OURS}bridge {next(_runs)}"))
        path = vars(self)[PLACE].path
        with contextlib.ExitStack() as stack:
            for interceptor in intercepted.active():
                stack.enter_context(linen.intercepting(interceptor, path))
            return super(own, self).__call__(*args, rngs=rngs, mutable=denied, **kwargs)

    own: Any = type(kind)(kind.__name__, (kind,), {"__call__": __call__, "__module__": kind.__module__})
    return own


def run_nnx_within(
    interceptor: Interceptor, run: Callable, args: tuple, kwargs: dict, module: Any, path: Path
) -> Any:
    """Goes on with a call of `bridge.ToLinen`, whose NNX module goes through the interceptor."""
    with intercepted.noting(), intercepted.intercepting(interceptor), _preparing(module, path):
        return run(*args, **kwargs)


@contextlib.contextmanager
def _preparing(module: Any, path: Path) -> Iterator[None]:
    """Within it, a bridge makes its NNX module with intercepted classes."""
    kind = module.nnx_class
    if module.is_initializing() or isinstance(kind, _Prepared):
        yield
        return
    stats = flatten_dict(unfreeze(module.variables.get("batch_stats", {})))
    extra = {place: leaf for place, leaf in stats.items() if place[-1].startswith(OURS)}
    object.__setattr__(module, "nnx_class", _Prepared(kind, path, extra, module.has_rng("default")))
    try:
        yield
    finally:
        object.__setattr__(module, "nnx_class", kind)


class _Prepared:
    """Makes an NNX module with intercepted classes."""

    def __init__(self, kind: Callable, path: Path, extra: Mapping[Path, Any], has_default: bool) -> None:
        self.kind, self.path, self.extra, self.has_default = kind, path, extra, has_default

    def __call__(self, *args: Any, **kwargs: Any) -> nnx.Module:
        made = self.kind(*args, **kwargs)
        if not self.has_default:  # Flax draws from a constant key then.
            graph.without_keys(made, "default")
        intercepted.prepare(made, self.extra, self.path)
        return made
