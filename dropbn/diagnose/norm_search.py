"""Finds the batch normalizations of a model: by their class, or by what they do."""

import functools
import inspect
import itertools
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dropbn.diagnose import registry
from dropbn.diagnose.flags import FLAGS, flags_of
from dropbn.diagnose.norm_probe import Probe, Unlike
from dropbn.diagnose.norms import Leaf, Mask, Norm, Parameter
from dropbn.diagnose.registry import Switch
from dropbn.diagnose.seam import Layer
from dropbn.diagnose.tracing import abstract


def norm_of(layer: Layer, args: tuple, kwargs: Mapping) -> Norm | None:
    """The batch normalization that is called; None if the module is none.

    A module of an unknown class that keeps arrays of its own besides parameters is run on random values, once
    for each class, fields and shapes; see `dropbn.diagnose.norm_probe`.

    Args:
      layer, args, kwargs: as an interceptor gets them; see `dropbn.diagnose.seam`.
    """
    module = layer.module
    if not layer.is_call:
        return None
    if switch := registry.of(module, registry.NORMS):
        # Of a subclass with a signature of its own, the parent that it calls is the batch normalization.
        if switch.flag not in layer.signature.parameters:
            return None
        shape = np.shape(layer.get("mean"))
        axis, momentum, epsilon = (
            registry.attribute(module, name) for name in ("axis", "momentum", "epsilon")
        )
        scale, bias = Parameter("scale", absent=1.0), Parameter("bias")
        return Norm(switch, axis, momentum, epsilon, shape, shape, scale=scale, bias=bias)
    variables = {
        collection: {name: leaf for name, leaf in leaves.items() if not name.startswith(registry.OURS)}
        for collection, leaves in layer.leaves().items()
    }
    if not any(True for leaves in _states(variables).values() for _ in _pairs(leaves)):
        return None
    signature = layer.signature
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    arguments, fields = _in_test_mode(module, dict(bound.arguments))
    unbound = layer.without_place(fields)
    if unbound is None:
        return None
    try:
        return _search(_Unbound(unbound), signature, next(iter(arguments), ""), variables, arguments)
    except TypeError:  # An argument has no hash.
        return None


# With so many examples a module is run first.
_EXAMPLES = 4


class _Unbound:
    """A module without its place in a model; one whose fields have no hash is known by how it prints."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        try:
            hash(module)
            self.key: Any = module
        except TypeError:
            self.key = repr(module)

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Unbound) and self.key == other.key


def _in_test_mode(module, arguments):
    """The arguments and some fields, with known flags set to test and without an axis of devices."""
    fields: dict[str, Any] = {
        name: None for name in ("axis_name", "axis_index_groups") if hasattr(module, name)
    }
    for flag in flags_of(inspect.signature(module.__call__).parameters):
        if arguments[flag] is None or isinstance(arguments[flag], bool):
            arguments = {**arguments, flag: FLAGS[flag][1]}
            fields |= {flag: None} if hasattr(module, flag) else {}
    fields |= {flag: FLAGS[flag][1] for flag in _flag_fields(module) if flag not in arguments}
    return arguments, fields


def _flag_fields(module):
    """The known flags among the fields of a module."""
    return [flag for flag in FLAGS if isinstance(getattr(module, flag, None), bool)]


def _switches(module: nn.Module, arguments: Mapping[str, Any]) -> Iterator[Switch | None]:
    """The known flags among the arguments and fields of a module; if there is none, each bool, or no flag."""
    known = [flag for flag in FLAGS if isinstance(arguments.get(flag), bool)] + _flag_fields(module)
    fields = registry.fields_of(module)
    if known:
        yield from (Switch(flag, bool(FLAGS[flag][1])) for flag in dict.fromkeys(known))
    else:
        bools = [name for name, value in {**fields, **arguments}.items() if isinstance(value, bool)]
        yield from itertools.starmap(Switch, itertools.product(bools, (False, True)))
        yield None


def _states(variables):
    """The collections of a module that may hold statistics, by name."""
    return {name: leaves for name, leaves in sorted(variables.items()) if name != "params"}


def _pairs(leaves: Mapping[str, Any]) -> Iterator[tuple[Leaf, Leaf, tuple[int, ...]]]:
    """The pairs of statistics that leaves may hold, with their shape: two leaves, or two halves of one."""
    shapes = {name: leaf.shape for name, leaf in leaves.items() if _is_float(leaf) and leaf.ndim}
    for (mean, shape), (var, other) in itertools.permutations(shapes.items(), 2):
        if shape == other:
            yield Leaf(mean), Leaf(var), shape
    for name, shape in shapes.items():
        if len(shape) > 1 and shape[0] == 2:
            yield Leaf(name, 0), Leaf(name, 1), shape[1:]
            yield Leaf(name, 1), Leaf(name, 0), shape[1:]


def _axes(module: nn.Module, x: tuple[int, ...], shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The axes of an input along which a statistic of a given shape may lie, counted from the last."""
    number = len(x)
    if shape == x or len(shape) > number:
        return []
    if len(shape) == number:
        if any(size not in (1, length) for size, length in zip(shape, x, strict=True)):
            return []
        return [tuple(a - number for a, size in enumerate(shape) if size > 1) or (-1,)]
    named = getattr(module, "axis", ())
    named = [axis for axis in (named if isinstance(named, tuple) else (named,)) if isinstance(axis, int)]
    found = [tuple(sorted(axis % number - number for axis in named)), tuple(range(-len(shape), 0))]
    found += [(axis - number,) for axis in range(number)]
    return [axes for axes in dict.fromkeys(found) if axes and tuple(x[axis] for axis in axes) == shape]


def _is_float(leaf):
    return hasattr(leaf, "shape") and jnp.issubdtype(leaf.dtype, jnp.floating)


def _search(unbound, signature, name, variables, arguments):
    """The batch normalization that a module is; None if it is none."""
    x, frozen = arguments.get(name), None
    if not _is_float(x) or len(x.shape) < 2:
        return None
    pairs = ((key, *pair) for key, leaves in _states(variables).items() for pair in _pairs(leaves))
    # Names only say what is tried first.
    ordered = sorted(pairs, key=lambda pair: not ("mean" in pair[1].name and "var" in pair[2].name))
    for collection, mean, var, shape in ordered:
        for axes in _axes(unbound.module, x.shape, shape):
            channels = tuple(x.shape[axis] for axis in axes)
            axis = axes[0] if len(axes) == 1 else axes
            momentum, epsilon = nn.BatchNorm.momentum, nn.BatchNorm.epsilon
            norm = Norm(None, axis, momentum, epsilon, channels, shape, mean, var, Mask(""))
            norm = norm._replace(collection=collection)
            for examples in (_EXAMPLES, x.shape[0]):
                few = _few(arguments, x.shape, axes, examples)
                found, runs = _probed(unbound, signature, name, norm, *abstract((variables, few)))
                if runs:  # Otherwise it may want batches of one size.
                    break
            if found and found.switch:
                return found
            frozen = frozen or found
    return frozen


@functools.lru_cache(maxsize=256)
def _probed(unbound, signature, name, norm, treedef, leaves):
    """The batch normalization that a module is if it is `norm`, and whether it runs with any flag.

    `treedef` and `leaves` are the shapes of (variables, arguments).
    """
    module, (variables, arguments) = unbound.module, treedef.unflatten(leaves)

    def probed(switch):
        for is_fresh in (False, True):
            probe = Probe.of(module, signature, name, variables, arguments, norm, is_fresh)
            try:
                return probe.found(switch)
            except Unlike:
                if is_fresh:
                    raise
        return None

    # A thread of its own has no interceptors, and none of the traces in which the module is called.
    with ThreadPoolExecutor(1) as thread:
        frozen, runs = None, False
        for switch in _switches(module, arguments):
            try:
                found = thread.submit(probed, switch).result()
            except Unlike:
                return None, True
            except Exception:  # It does not run like this, or takes a key.
                continue
            if found and found.switch:
                return found, True
            frozen, runs = frozen or found, True
    return frozen, runs


def _few(arguments, x, axes, examples):
    """The arguments with so many examples and fewer positions, where they share them with an input `x`."""
    free = [a for a in range(len(x)) if a - len(x) not in axes]
    sizes = {a: examples if a == free[0] else min(x[a], 2) for a in free}

    def shrunk(leaf):
        if not hasattr(leaf, "shape"):
            return leaf
        shape = [sizes[a] if a in sizes and size == x[a] else size for a, size in enumerate(leaf.shape)]
        return jax.ShapeDtypeStruct(tuple(shape), leaf.dtype)

    return jax.tree.map(shrunk, arguments)
