"""The trainer behind `train.py` and `eval.py`, for whoever changes it.

`loop` is the run that a config describes, `steps` the pure functions that it calls, `parallel` the only
module that says pmap, `checkpoint` and `workdir` what a run leaves, `evaluation` what is measured of it
afterwards. To train your own Flax model, use your own loop and the layers of `dropbn.nn`.
"""

from dropbn.errors import extra

with extra("train"):
    import ml_collections  # noqa: F401 - nothing here works without it
