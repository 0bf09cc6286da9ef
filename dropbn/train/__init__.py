"""The trainer behind `train.py` and `eval.py`, for whoever changes it.

`plan` resolves a config, `loop` trains what it describes, and `steps` has the pure functions that are
compiled. `parallel` is the only module that uses pmap. `checkpoint` and `workdir` hold what a run leaves on
disk, and `evaluation` measures it afterwards. To train your own Flax model, use your own loop and the layers
of `dropbn.nn`.
"""

from dropbn.errors import extra

with extra("train"):
    import ml_collections  # noqa: F401 - nothing here works without it
