"""Layers for dropout and batch normalization, for whoever builds a network.

- `noise`: Dropout, GaussianDropout and Uout, drop-ins for `flax.linen.Dropout`.
- `norm`: BatchNorm whose statistics cover a stated number of images on any machine.
- `order`, `places`, `layers`: a block as a string, the papers' positions in it, the module that runs it.
- `activations`, `initializers`: by name.

Import a module: `from dropbn.nn import noise`. Whole networks are in `dropbn.models`; what a trained network
does is measured by `dropbn.diagnose`.
"""

__all__ = ["activations", "initializers", "layers", "noise", "norm", "order", "places"]
