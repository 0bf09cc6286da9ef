"""The doctor: what happens in any Flax model when dropout meets batch normalization.

It is for anyone who has a model of Linen or NNX, its variables and batches of data. No tool changes any of
them.

- `lint`: findings before training; the command `dropbn lint`.
- `shift`: the variance shift of every batch normalization, measured and predicted.
- `gap`: what the gap between training and test mode consists of, and what helps.
- `recalibrate`: new BN statistics for old weights.
- `uncertainty`: Monte Carlo dropout, predictions with the noise kept on.
- `modes`: noise, BN's statistics and their update switched separately, for measurements of your own.
- `surgery`: a model with its noise changed or moved.
- `tasks`: what outputs and labels mean: classes, one logit, several labels, or values.
- `registry`: how a layer type of your own is registered.
- `theory`: closed forms of the shift.

Import a module: `from dropbn.diagnose import shift`. All tools take the same keywords for how a model is
called: the fields of `call.Call`, with examples in docs/diagnose.md. LayerNorm and GroupNorm keep no
statistics, so a network without BN has no shift. For a run of `train.py` use `eval.py`: nothing here knows
the models, the data or the training of this project.
"""

__all__ = [
    "gap",
    "lint",
    "modes",
    "recalibrate",
    "registry",
    "shift",
    "surgery",
    "tasks",
    "theory",
    "uncertainty",
]
