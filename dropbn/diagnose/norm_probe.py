"""Whether a module is a batch normalization, by what it does with random values.

It is one with running mean M and running variance V if

- its output in test mode is a (x - M) / sqrt(V + epsilon) + b in every channel, for some a and b, and
- training moves both, by one momentum, towards the mean and the variance of the batch; or it moves neither,
  and gives the output of test mode.

The momentum, epsilon, the argument that masks values, and the parameters a and b follow from these runs.
"""

import collections
import inspect
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dropbn.diagnose import registry
from dropbn.diagnose.norms import Mask, Norm, Parameter
from dropbn.diagnose.registry import Switch


class Unlike(Exception):
    """Training moves the statistics of a module, but not as that of a batch normalization does."""


class Probe(NamedTuple):
    """A module on random values, and the batch normalization that it may be.

    Attributes:
      module: unbound.
      signature, arguments: of its `__call__`; `name` is the argument that it normalizes.
      variables: its variables.
      norm: what is supposed of it.
    """

    module: Any
    signature: inspect.Signature
    name: str
    variables: dict
    arguments: dict
    norm: Norm

    @classmethod
    def of(
        cls,
        module: Any,
        signature: inspect.Signature,
        name: str,
        variables: dict,
        arguments: dict,
        norm: Norm,
        is_fresh: bool = False,
    ) -> "Probe":
        """A probe for variables and arguments of which the shapes are given.

        With `is_fresh` the state besides the statistics is 0, as accumulators are at the beginning.
        """
        drawn = np.random.default_rng(0)
        values = _values(variables, lambda shape: drawn.uniform(0.5, 1.5, shape))
        if is_fresh:
            state = values[norm.collection]
            values[norm.collection] = state | {n: 0 * state[n] for n in state.keys() - {*norm.leaves}}
        turns = _values(arguments, lambda shape: np.arange(np.prod(shape)).reshape(shape) % 2)
        return cls(module, signature, name, values, turns, norm)

    def found(self, switch: Switch | None) -> Norm | None:
        """The batch normalization that the module is with a flag; None if it is none.

        It has no switch if the flag makes no difference, and the module is always in test mode.

        Raises:
          Unlike: it is none with any flag.
        """
        drawn = np.random.default_rng(1)
        x = _rounded(1 + drawn.normal(size=self.arguments[self.name].shape))
        mean, step = _rounded(drawn.uniform(0.5, 1.5, (2, *self.norm.channels)))
        var = drawn.uniform(0.5, 1.5, self.norm.channels)
        found = self._affine(switch, x, mean, var, step)
        if found is None:
            return None
        epsilon, scale, bias = found
        norm = self.norm._replace(
            epsilon=_of_field(self.module, epsilon, 0.05 * epsilon + 1e-7, 3),
            scale=self._parameter(scale),
            bias=self._parameter(bias),
        )
        cases = (x, mean, var), (x, mean + step, var), (x, mean, 3 * var)
        y, means, variances = self._run(switch, False, *cases)
        if _close(means[0], mean, 1e-6) and _close(variances[0], var, 1e-6):
            return norm if _close(y[0], self._run(switch, True, cases[0])[0][0]) else None
        kept = np.stack([(means[1] - means[0]) / step, (variances[2] - variances[0]) / (2 * var)])
        momentum = kept.mean()
        if switch is None or np.abs(kept - momentum).max() > 1e-3 or momentum > 1 - 1e-6:
            raise Unlike
        taken = self._taken(
            x,
            (means[0] - momentum * mean) / (1 - momentum),
            (variances[0] - momentum * var) / (1 - momentum),
            1e-2 + 1e-6 / (1 - momentum),
        )
        if taken is None:
            raise Unlike
        momentum = _of_field(self.module, momentum, 1e-5, 6)
        return norm._replace(switch=switch, momentum=momentum, mask=taken[0], is_unbiased=taken[1])

    def _run(self, switch, testing, *cases):
        """(outputs, means, variances after the call), in float64, for cases (x, mean, var)."""
        fields: dict[str, Any] = {}
        given, before = dict(self.arguments), self.variables[self.norm.collection]
        if switch:
            value = switch.test if testing else not switch.test
            (given if switch.flag in given else fields)[switch.flag] = value
        module = self.module.clone(**fields)

        def call(x, mean, var):
            given[self.name] = x.astype(self.arguments[self.name].dtype)
            ordered = {name: given[name] for name in self.signature.parameters if name in given}
            bound = inspect.BoundArguments(self.signature, collections.OrderedDict(ordered))
            stats = {**before, **self.norm.joined(before, (mean, var))}
            y, updated = module.apply(
                {**self.variables, self.norm.collection: stats},
                *bound.args,
                **bound.kwargs,
                mutable=[self.norm.collection],
            )
            after = self.norm.split({**stats, **updated.get(self.norm.collection, {})})
            return y, *(value.reshape(self.norm.channels) for value in after)

        found = jax.jit(jax.vmap(call))(*map(np.stack, zip(*cases, strict=True)))
        return [np.asarray(each, np.float64) for each in found]

    def _affine(self, switch, x, mean, var, step):
        """(epsilon, a, b) of the output in test mode, a (x - mean) / sqrt(var + epsilon) + b; else None."""
        zero, along = self._along(mean) + 0 * x, self._along(step)
        small, large = 1e-6 * var, 5 * var
        given = [(x, mean, var), (x, mean, small), (x, mean, large), (x, mean + step, var)]
        given += [(x + along, mean + step, var)]
        given += [(zero, mean, each) for each in (var, small, large)]
        (y, y_small, y_large, shifted, moved, *bias), *after = self._run(switch, True, *given)
        _, *before = zip(*given, strict=True)
        stay = all(_close(new, old, 1e-6) for new, old in zip(after, before, strict=True))
        if (
            not stay
            or y.shape != x.shape
            or not _close(moved, y)
            or np.ptp(bias, 0).max() > 1e-3 * np.abs(y).max()
        ):
            return None
        y, y_small, y_large, shifted = (each - bias[0] for each in (y, y_small, y_large, shifted))
        size, size_small, size_large = (np.abs(each).sum(self._others) for each in (y, y_small, y_large))
        # In every channel the mean shifts the output, and the variance rescales it.
        if not (size.all() and size_small.all() and _close((y - shifted) * (x - zero), y * along)):
            return None
        share, share_of_large = np.square(size / size_small), np.square(size_large / size)
        if np.any(share == 1):
            return None
        epsilon = (share * var - small) / (1 - share)
        rescaled = [
            _close(y_small * self._along(size), y * self._along(size_small)),
            _close(y_large * self._along(size), y * self._along(size_large)),
            _close(share_of_large * (large + epsilon), var + epsilon),
        ]
        if not all(rescaled):
            return None
        epsilon = max(float(np.median(epsilon)), 0.0)
        apart = np.where(y == 0, 0, x - zero)  # Where values are masked, the output is 0.
        scale = (y * apart).sum(self._others) / np.square(apart).sum(self._others) * np.sqrt(var + epsilon)
        largest = bias[0].max(self._others), bias[0].min(self._others)
        return epsilon, scale, np.where(largest[0] > -largest[1], *largest)

    def _parameter(self, value):
        """The parameter with this value, (channels,); None if there is no such."""
        params = {
            name: np.reshape(leaf, value.shape)
            for name, leaf in self.variables.get("params", {}).items()
            if np.size(leaf) == value.size
        }
        distances = {
            each: np.abs(each.of(params) - value).max()
            for each in itertools.starmap(Parameter, itertools.product(("", *params), (0.0, 1.0)))
        }
        nearest = min(distances, key=distances.__getitem__)
        return nearest if distances[nearest] < 0.02 else None

    def _taken(self, x, mean, var, tolerance):
        """(mask, whether the variance is unbiased) of the values from which these statistics are taken."""
        masks = [Mask("")]
        for name, value in self.arguments.items():
            if name != self.name and hasattr(value, "shape") and value.ndim <= x.ndim:
                masks += [Mask(name, is_padding, x.ndim - value.ndim) for is_padding in (False, True)]
        for mask in masks:
            given = mask.of(self.arguments)
            try:
                counts = np.broadcast_to(True if given is None else np.asarray(given, bool), x.shape)
            except ValueError:
                continue
            number = counts.sum(self._others)
            if number.min() < 2 or np.abs(x.mean(self._others, where=counts) - mean).max() > tolerance:
                continue
            biased = x.var(self._others, where=counts)
            for is_unbiased in (False, True):
                wanted = biased * number / (number - is_unbiased)
                if np.abs(wanted - var).max() <= tolerance:
                    return mask, is_unbiased
        return None

    @property
    def _axes(self):
        axis, number = self.norm.axis, len(self.arguments[self.name].shape)
        return [a % number for a in ((axis,) if isinstance(axis, int) else axis)]

    @property
    def _others(self):
        """The axes over which statistics are taken."""
        return tuple(a for a in range(len(self.arguments[self.name].shape)) if a not in self._axes)

    def _along(self, value):
        """Values of the channels, to be broadcast over an input."""
        return np.expand_dims(value, self._others)


def _values(tree, draw):
    """Values for shapes: drawn ones, and 0 and 1 in turns where they are no floating numbers."""

    def value(leaf):
        if not hasattr(leaf, "shape"):
            return leaf
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.asarray(draw(leaf.shape), leaf.dtype)
        return jnp.asarray(np.arange(np.prod(leaf.shape)).reshape(leaf.shape) % 2, leaf.dtype)

    return jax.tree.map(value, tree)


def _rounded(value):
    """Values of which half precision keeps sums and differences."""
    return np.round(16 * value) / 16


def _close(a, b, tolerance=0.02):
    """Whether two arrays differ by little of the second's largest value."""
    return bool(np.all(np.abs(a - b) <= tolerance * np.abs(b).max()))


def _of_field(module, found, tolerance, digits):
    """A number that was found, exactly, if a field of the module says it or 1 minus it; otherwise rounded."""
    fields = registry.fields_of(module).values()
    numbers = [value for field in fields if isinstance(field, float) for value in (field, 1 - field)]
    near = [value for value in numbers if abs(value - found) <= tolerance]
    return min(near, key=lambda value: abs(value - found), default=float(f"{found:.{digits}g}"))
