"""Layers for dropout and batch normalization, for whoever builds a network.

- `laws`: the noises as plain mathematics, their variances s2 = Var[m] and the amounts that have a given s2.
- `noise`: dropout, Gaussian dropout, Uout, spatial dropout, stochastic depth, DropBlock and alpha dropout as
  drop-in replacements for `flax.linen.Dropout`.
- `norm`: BatchNorm whose statistics cover a stated number of images on any machine.
- `order`, `places`: a block as a string, the papers' positions in it.
- `words`, `layers`: what its words compute, the module that runs it.
- `activations`, `initializers`: functions and modules by name.
- `nnx`: the same noises, norm and layers for models that are written in Flax NNX.

Import a module: `from dropbn.nn import noise`. Whole networks are in `dropbn.models`, and `dropbn.diagnose`
measures what a trained network does.
"""

__all__ = [
    "activations",
    "initializers",
    "laws",
    "layers",
    "nnx",
    "noise",
    "norm",
    "order",
    "places",
    "words",
]
