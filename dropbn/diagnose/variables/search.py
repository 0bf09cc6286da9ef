"""The search for the variables of a model among the arrays of a file."""

import collections
from typing import Any

import jax.numpy as jnp

from dropbn.diagnose.variables.names import Name, is_below, listed, named, parts, plain, some
from dropbn.diagnose.variables.stored import Key, Stored
from dropbn.errors import DropbnError, shown

# What other libraries call the running statistics.
_TORCH = {"running_mean": "mean", "running_var": "var"}
_TENSORFLOW = {"moving_mean": "mean", "moving_variance": "var", "moving_var": "var"}
# Parts of a training state that may repeat the names and shapes of the parameters.
_OPTIMIZER = {"opt_state", "optimizer", "optimizer_state", "opt", "mu", "nu", "trace"}
_NEEDED = ("params", "batch_stats")  # Others need not be in a file: `init` makes those of sown values too.
# What lies beside variables: a random stream's key and count, PyTorch's counts, the step of a training state.
_BESIDE = {"key", "count", "num_batches_tracked", "step"}
_UNBIASED = (
    "the unbiased variance, n / (n - 1) times the biased one of Flax, where n is the number of values that a "
    "statistic is taken over: ratios may be off by that factor."
)
_FROM_TORCH = (
    f"The running statistics have PyTorch's names. PyTorch keeps {_UNBIASED} Its momentum m is 1 - m in Flax."
)
_FROM_TENSORFLOW = (
    f"The running statistics have TensorFlow's names. Its fused layers keep {_UNBIASED} Others keep Flax's."
)
_TORCH_WEIGHTS = (
    "The file has PyTorch's names, and its layouts are not converted. Convert it first: the weight of a "
    "convolution, (out, in, height, width), is Flax's kernel (height, width, in, out); that of a linear "
    "layer, (out, in), is the kernel (in, out); that of a batch normalization is its scale."
)


class Search:
    """The search for the variables of a model.

    Attributes:
      keys: the key of each array in the file by its name, a path without the level "value".
      copies: paths in the file to all names of a collection, whether chosen or not.
      hints: sentences about what was chosen, and about conventions that may differ from Flax's.
    """

    def __init__(self, held: Stored, like: dict, within: str = "") -> None:
        """Names what a file holds.

        Args:
          held: the file.
          like: the variables that are wanted, or their shapes.
          within: the part of the file to look in.

        Raises:
          DropbnError: there is no such part, or a name is there twice.
        """
        self.held, self.within = held, parts(within)
        self.hints: list[str] = []
        self.copies: list[Name] = []
        self.wanted: dict[str, dict[Name, Any]] = {}
        for path, shape in named(like).items():
            self.wanted.setdefault(path[0], {})[path[1:]] = shape
        self.keys: dict[Name, Key] = {}
        for key in held.keys:
            name = plain(parts(*key)) or key
            if name in self.keys:
                raise DropbnError(f"{shown(held.place)} holds '{'/'.join(name)}' twice: remove one of them.")
            self.keys[name] = key
        if not any(is_below(self.within, name) for name in self.keys):
            lacks = f"part {within!r}; it has {some(self.keys)}" if self.keys else "arrays"
            raise DropbnError(f"{shown(held.place)} has no {lacks}.")

    def found(self) -> dict[Name, Key]:
        """The key of each wanted variable, by its name with the collection.

        Other collections than params and batch_stats are left out if the file does not hold them.

        Raises:
          DropbnError: the arrays do not fit, or several copies of them do.
        """
        roots, misfits = self._roots()
        if misfits and (hints := self._rename()):
            self.hints, self.copies = hints, []
            roots, misfits = self._roots()
        if misfits:
            torch = any(name[-1:] == ("weight",) for name in self.keys)
            raise DropbnError(
                f"The variables in {shown(self.held.place)} are not those of the model:{listed(misfits)}"
                + f"\n{_TORCH_WEIGHTS}" * torch
            )
        found = {
            (collection, *name): self.keys[roots[collection] + name]
            for collection in roots
            for name in self.wanted[collection]
        }
        self._hint_unused({*found.values()})
        return found

    def _rename(self):
        """Gives running statistics of other libraries Flax's names; returns hints about their conventions."""
        hints = []
        renamed = {name: name for name in self.keys}
        for others, hint in ((_TORCH, _FROM_TORCH), (_TENSORFLOW, _FROM_TENSORFLOW)):
            theirs = {name: (*name[:-1], others[name[-1]]) for name in self.keys if name[-1] in others}
            theirs = {name: new for name, new in theirs.items() if new not in self.keys}
            renamed |= theirs
            hints += [hint] if theirs else []
        self.keys = {renamed[name]: key for name, key in self.keys.items()}
        return hints

    def _roots(self):
        """The root of each collection, which is the path in the file to its names, and lines of misfits."""
        roots: dict[str, Name] = {}
        misfits: list[str] = []
        for collection in sorted(self.wanted, key=lambda each: each != "params"):
            leaves = self.wanted[collection]
            votes = collections.Counter(
                name[:end] for name in self.keys for end in range(len(name)) if name[end:] in leaves
            )
            self.copies += [root for root, number in votes.items() if number == len(leaves)]
            places = [root for root in votes if not _OPTIMIZER & {*root}] or list(votes)
            places = [root for root in places if is_below(self.within, root)] or places
            if collection not in _NEEDED:  # Names such as "mean" are common.
                places = [
                    root for root in places if root[-1:] == (collection,) or root == roots.get("params")
                ]
            fitting = [root for root in places if not self._misfits(collection, root)]
            # A place is not meant if it is part of a larger one, or called otherwise than one, that misfits.
            named = [root for root in places if root[-1:] == (collection,)]
            meant = [root for root in fitting if all(p in fitting for p in places if is_below(p, root))]
            if meant and ({*named} & {*meant} or not named):
                roots[collection] = self._choose(collection, meant, roots.get("params"))
            elif collection not in _NEEDED and not any(collection in name for name in self.keys):
                self.hints.append(f"The model also keeps '{collection}', which the file does not hold.")
            elif places:
                others = [root for root in places if root not in fitting]
                nearest = max(others, key=lambda root: (root in named, votes[root]))
                misfits += self._misfits(collection, nearest)
            else:
                misfits.append(
                    f"{collection}: nothing in the file has its names. The model has {some(leaves)}; the "
                    f"file has {some(self.keys.values())}."
                )
        return roots, misfits

    def _choose(self, collection, roots, params):
        """The root with the collection's name, then the one beside that of params, then the outermost."""

        def holder(root):
            return root[:-1] if {*root[-1:]} & self.wanted.keys() else root

        def rank(root):
            apart = params is not None and holder(root) != holder(params)
            return root[-1:] != (collection,), apart, len(root)

        best, *others = sorted(roots, key=rank)
        if others and rank(others[0]) == rank(best):
            alike = [_place(root) for root in roots if rank(root) == rank(best)]
            raise DropbnError(
                f"{shown(self.held.place)} holds several copies of '{collection}' that fit the model: "
                f"{', '.join(alike)}. Say which by within=, for example within={'/'.join(best)!r}."
            )
        if others:
            self.hints.append(
                f"'{collection}' was read from {_place(best)}. What lies in {', '.join(map(_place, others))} "
                "fits as well; to read it, say so by within=."
            )
        return best

    def _misfits(self, collection, root):
        """A line for each variable that is missing, has another shape or kind, or is not the model's."""
        leaves = self.wanted[collection]
        keys = {name: self.keys[root + name] for name in leaves if root + name in self.keys}
        found = {name: self.held.shape(key) for name, key in keys.items()}
        axes = {
            array.shape[0] if array.shape[1:] == leaves[name].shape and array.ndim else None
            for name, array in found.items()
        }
        if found.keys() == leaves.keys() and len(axes) == 1 and (number := axes.pop()):
            return [
                f"{collection}: every array in the file has a first axis of {number}, as replicas have. Save "
                "one of them, as flax.jax_utils.unreplicate gives it."
            ]

        def line(name, here, wanted):
            return f"{'/'.join((collection, *name))}: {here} in the file, {wanted} in the model"

        lines = []
        for name, shape in leaves.items():
            array = found.get(name)
            if array is None or array.shape != shape.shape or is_real(array) != is_real(shape):
                here = "missing" if array is None else f"{array.shape} {array.dtype}"
                lines.append(line(name, here, f"{shape.shape} {shape.dtype}"))
        if root[-1:] == (collection,):
            more = {name[len(root) :]: key for name, key in self.keys.items() if is_below(root, name)}
            lines += [
                line(name, self.held.shape(key).shape, "missing")
                for name, key in more.items()
                if name not in leaves and name[-1:] != ("num_batches_tracked",)
            ]
        return lines

    def _hint_unused(self, used):
        """Says which arrays were not read, beside those that every training state has."""
        unused = [
            name
            for name, key in self.keys.items()
            if not (key in used or name[-1] in _BESIDE or _OPTIMIZER & {*name})
            and not any(is_below(root, name) for root in self.copies)
        ]
        if unused:
            self.hints.append(f"The file also holds arrays that the model does not have: {some(unused)}.")


def is_real(leaf: Any) -> bool:
    """Whether an array, or its shape, is of real or complex numbers."""
    return bool(jnp.issubdtype(leaf.dtype, jnp.inexact))


def _place(root):
    return f"'{'/'.join(root)}'" if root else "the top of the file"
