"""The doctor: what happens in any Flax Linen model when dropout meets batch normalization.

- `shift`: the variance shift of every batch normalization, measured and predicted.
- `gap`: what the gap between training and test mode consists of, and what helps.
- `recalibrate`: new BN statistics for old weights.
- `modes`: noise, BN's statistics and their update switched separately; Monte Carlo dropout.
- `lint`: findings before training; the command `dropbn lint`.
- `surgery`: a model with its noise changed or moved.
- `theory`: closed forms of the shift.
- `registry`: how a layer type of your own is registered.

Import a module: `from dropbn.diagnose import shift`. Nothing here knows the models, the data or the training
of this project; for a run of `train.py` use `eval.py`.
"""

__all__ = ["gap", "lint", "modes", "recalibrate", "registry", "shift", "surgery", "theory"]
