"""The variables of anybody's Flax model, read from a file and written back in its format.

    variables, source = read("checkpoints", like)
    write("repaired", variables | {"batch_stats": better}, source)

A file may be a checkpoint of orbax (of a manager's directory, the newest step is meant), Flax's msgpack,
.safetensors or .npz. The variables may lie anywhere in it, for example in a training state. What else it
holds is kept. Nothing is unpickled, and weights of other libraries are not converted.
"""

from dropbn.diagnose.variables.source import Source, read, write

__all__ = ["Source", "read", "write"]
