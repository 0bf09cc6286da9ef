"""NNX models behind the seam (`dropbn.diagnose.seam`, `dropbn.diagnose.model`).

NNX has no interception. So the user's model is taken apart once (`graph`), and every run builds a copy of it
inside the trace. In the copy each module has a subclass of its own class, whose calls go through interceptors
(`intercepted`). The type of a node belongs to the graph, so it survives nnx.jit, scan, vmap, remat and split.

The user's model never runs, and nothing in it changes.
"""

from flax import nnx

from dropbn.diagnose import registry
from dropbn.diagnose.nnx.graph import put_statistics
from dropbn.diagnose.nnx.model import Model
from dropbn.nn import laws
from dropbn.nn.nnx.noise import Noise

__all__ = ["Model", "put_statistics"]

registry.NOISES |= {
    nnx.Dropout: registry.Switch("deterministic"),
    Noise: registry.Switch("deterministic"),
    nnx.MultiHeadAttention: registry.Switch("deterministic", within=True),
}
registry.NORMS[nnx.BatchNorm] = registry.Switch("use_running_average")
registry.AFFINE |= {
    nnx.Dropout: lambda noise: laws.Dropout(noise.rate),
    Noise: lambda noise: getattr(noise, "law", None),
}
