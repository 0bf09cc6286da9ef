"""Which part of what a model returns is its output, where the call does not say."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The array that was chosen from what a model returns; called with that, it gives the array.

    Attributes:
      places: the number of the array among the leaves, by the structure of what is returned. A model may
        return one structure in training and another in test mode.
      name: the choice in words, such as "returned['logits']".
    """

    places: tuple[tuple[jax.tree_util.PyTreeDef, int], ...]
    name: str

    def __call__(self, returned: Any) -> Any:
        leaves, structure = jax.tree.flatten(returned)
        return leaves[dict(self.places)[structure]]


def choose(in_training: Any, in_test: Any, fits: Callable[[Any], bool]) -> Chosen | None:
    """The output of a model in both modes: the only array, otherwise the only one that fits.

    Where both modes return an array of the same key, index or attribute, it is the output in both.

    Args:
      in_training, in_test: the shapes of what the model returns.
      fits: whether an array of this shape may be the output.

    Returns:
      The choice; None if both are arrays themselves, or if there is no such array in one of them.
    """
    trees = {jax.tree.structure(tree): _leaves(tree) for tree in (in_training, in_test)}
    # Test mode decides, whose outputs are what the model is for.
    shared = _only(_leaves(in_test), fits) or _only(_leaves(in_training), fits)
    names = {
        structure: shared if shared in leaves else _only(leaves, fits) for structure, leaves in trees.items()
    }
    if None in names.values() or all(leaves.keys() == {_WHOLE} for leaves in trees.values()):
        return None
    places = tuple((structure, [*trees[structure]].index(name)) for structure, name in names.items())
    different = list(dict.fromkeys(names.values()))
    modes = ("",) if len(different) == 1 else (" in training", " in test mode")
    return Chosen(places, ", ".join(map("".join, zip(different, modes, strict=True))))


_WHOLE = "returned"


def _leaves(tree):
    """The arrays of a tree by name."""
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {_WHOLE + jax.tree_util.keystr(path): leaf for path, leaf in found}


def _only(leaves, fits):
    """The name of the only array, otherwise of the only one that fits; None if there is none."""
    arrays = [name for name, leaf in leaves.items() if leaf.shape]  # A loss has no axis of examples.
    for found in (arrays, [name for name in arrays if fits(leaves[name])]):
        if len(found) == 1:
            return found[0]
    return None
