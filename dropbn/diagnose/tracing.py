"""Traces of a model that compute nothing: arrays are shapes, and random streams are found on the way."""

import contextlib
import functools
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax
import jax
import jax.extend.core
import jax.numpy as jnp
import jaxlib
from flax.traverse_util import flatten_dict
from jax.interpreters import batching

import dropbn
from dropbn.diagnose.given import check_variables
from dropbn.errors import DropbnError

Path = tuple[str, ...]


# An identity with a name: `mark(y, x)` returns the layer's output y and records its input x. The mark of a
# batch normalization may take its running mean as a third argument. If nn.vmap maps the last argument, the
# one mark stands for several layers, which `times` counts.
mark_p = jax.extend.core.Primitive("dropbn_mark")
mark_p.def_impl(lambda y, *_, **__: y)
mark_p.def_abstract_eval(lambda y, *_, **__: y)


def _batch(args, dims, times, **params):
    args = [jnp.moveaxis(a, d, 0) if d is not None else a for a, d in zip(args, dims, strict=True)]
    if dims[-1] is not None:
        times *= len(args[-1])
    return mark_p.bind(*args, times=times, **params), 0 if dims[0] is not None else None


batching.primitive_batchers[mark_p] = _batch

_WITHIN = "dropbn within "
# The primitives that make random numbers from a key.
DRAWING = frozenset({"random_bits", "random_gamma", "rng_bit_generator", "threefry2x32"})
_LIBRARIES = tuple(os.path.join(*module.__path__, "") for module in (jax, jaxlib, flax, dropbn))
_PYTHON = os.path.join(os.path.dirname(os.__file__), "")


def user_frames(eqn: Any) -> list[tuple[str, int]]:
    """(file, line) of the user's frames from which an equation was traced, the innermost first."""
    frames = getattr(eqn.source_info.traceback, "frames", ())
    return [(frame.file_name, frame.line_num) for frame in frames if _is_users(frame.file_name)]


@functools.cache
def _is_users(file):
    # What is installed beside Python may be the user's.
    is_python = file.startswith(_PYTHON) and "-packages" not in file
    return not file.startswith(_LIBRARIES) and not is_python


def line_of(*eqns: Any) -> str:
    """The innermost line of the user's that led to the first of the equations that has one: "net.py:41"."""
    frames = (frame for eqn in eqns for frame in user_frames(eqn))
    return next((f"{os.path.basename(file)}:{line}" for file, line in frames), "")


def within(path: Path) -> contextlib.AbstractContextManager:
    """Writes a module's path into the equations that are traced in the context; see `path_of`."""
    return jax.named_scope(_WITHIN + "|".join(path))


def path_of(eqns: Sequence[Any]) -> str:
    """The path of the module that traced the last of some nested equations; "" is the model itself."""
    stacks = "/".join(str(eqn.source_info.name_stack) for eqn in eqns)
    # Flax's own names double where a subclass calls its parent, and hold those of methods.
    paths = re.findall(f"{_WITHIN}([^/()]*)", stacks)
    return paths[-1].replace("|", "/") if paths else ""


def loop_operands(eqn: Any) -> tuple[Any, slice, slice, slice]:
    """The body of a scan or a while loop, and which operands are its constants, its carry, and stacked."""
    params = eqn.params
    if eqn.primitive.name == "while":
        start = params["cond_nconsts"]
        first, last = start + params["body_nconsts"], len(eqn.invars)
        return params["body_jaxpr"], slice(start, first), slice(first, last), slice(last, None)
    # JAX 0.10 and 0.12 name these counts differently; ranks tell them in both.
    inner = params["jaxpr"].jaxpr
    last = sum(a.aval.ndim == b.aval.ndim for a, b in zip(eqn.invars, inner.invars, strict=True))
    num_carry = sum(a.aval.ndim == b.aval.ndim for a, b in zip(eqn.outvars, inner.outvars, strict=True))
    first = last - num_carry
    return params["jaxpr"], slice(first), slice(first, last), slice(last, None)


def name_of(path: Path) -> str:
    """A module's path, joined by "/"; "." is the model itself."""
    return "/".join(path) or "."


class MissingKey(DropbnError):
    """A layer draws from a stream that has no key."""

    def __init__(self, sentence: str, stream: str) -> None:
        super().__init__(sentence)
        self.stream = stream


def shapes(
    name: str, run: Callable, arrays: list, streams: list[str], trace: Callable = jax.eval_shape
) -> Any:
    """`trace(run, arrays, rngs)`, by default the shapes of `run(arrays, rngs)`.

    A stream that lacks a key is added to `streams`.

    Raises:
      DropbnError: it cannot be traced. The message names the model by `name`.
    """
    key = jax.eval_shape(jax.random.key, 0)
    while True:
        try:
            return trace(run, arrays, dict.fromkeys(streams, key))
        except MissingKey as error:
            if not error.stream or error.stream in streams:
                raise
            streams.append(error.stream)
        except DropbnError:
            raise
        except Exception as error:
            line = (str(error).strip().splitlines() or [type(error).__name__])[0].split(" (https")[0]
            raise DropbnError(f"{name} cannot be traced with these inputs: {line}") from error


_patching = threading.RLock()


@contextlib.contextmanager
def unchecked_parameters() -> Iterator[None]:
    """For variables whose shapes come from the model's `init`: Flax does not trace each initializer again.

    `Scope.param` compares the shape of every parameter with what its initializer would make, which takes a
    third of the time of a trace.
    """

    def param(scope, name, init_fn, *args, unbox=True, **kwargs):
        if not scope.has_variable("params", name):
            return checked(scope, name, init_fn, *args, unbox=unbox, **kwargs)
        scope.reserve(name, "params")
        value = scope.get_variable("params", name)
        return flax.core.meta.unbox(value) if unbox else value

    scopes: Any = flax.core.Scope
    with _patching:
        checked = scopes.param
        scopes.param = param
        try:
            yield
        finally:
            scopes.param = checked


def split(tree: Any) -> tuple[list, Callable]:
    """The arrays of a tree, and a function that puts others in their place and keeps all other leaves."""
    leaves, treedef = jax.tree.flatten(tree)
    is_array = [hasattr(leaf, "shape") for leaf in leaves]

    def rebuild(arrays):
        rest = iter(arrays)
        whole = [next(rest) if array else leaf for array, leaf in zip(is_array, leaves, strict=True)]
        return jax.tree.unflatten(treedef, whole)

    return [leaf for leaf, array in zip(leaves, is_array, strict=True) if array], rebuild


def abstract(tree: Any) -> tuple:
    """(structure, leaves) of a tree, with shapes and dtypes in place of arrays, so that both have a hash."""
    leaves, treedef = jax.tree.flatten(tree)
    shapes = (
        jax.ShapeDtypeStruct(leaf.shape, jax.numpy.result_type(leaf)) if hasattr(leaf, "shape") else leaf
        for leaf in leaves
    )
    return treedef, tuple(shapes)


def flat_stats(variables: Mapping) -> dict[Path, jax.Array]:
    """`batch_stats` by path; raises for variables that are no dict."""
    check_variables(variables)
    return flatten_dict(flax.core.unfreeze(variables.get("batch_stats", {})))
