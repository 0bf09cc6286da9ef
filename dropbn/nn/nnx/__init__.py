"""Layers for networks that are written in Flax NNX: what `dropbn.nn` has for Linen.

- `noise`: drop-in replacements for `flax.nnx.Dropout`.
- `norm`: BatchNorm whose statistics cover a stated number of images on any machine.
- `activations`, `layers`: the module that runs an order string, and its activations with parameters or draws.
- `variables`: the variables of a Linen model for an NNX model of the same names, and back.

Both APIs compute with the same functions. Import a module: `from dropbn.nn.nnx import noise`. Nothing else in
dropbn imports this package, so that a Linen user does not wait for NNX.
"""

__all__ = ["activations", "layers", "noise", "norm", "variables"]
