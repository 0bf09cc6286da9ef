"""Dropout right before the last BN of each block, on scikit-learn's handwritten digits.

    python train.py --config=configs/digits.py
    python eval.py --workdir=runs/digits

A first run: a PreResNet-20 with dropout 0.5 in the place that Li et al. (2018, arXiv:1801.05134) call
Dropout-(a), on 1,797 images of 8x8 pixels. Its BN layers remember variances that dropout inflated; in test
mode the variance is smaller. The control is the same network without noise:

    python train.py --config=configs/digits.py --config.model.noise.rate=0 --workdir=runs/digits_control

Expected: the lowest shift ratio is near 0.4, and near 1 in the control (README has the measured numbers).
"""

from configs import base


def get_config():
    config = base.get_config()
    config.batch_size = 64
    config.duration = "30 epochs"
    config.data.name = "digits"
    config.model.block = "[bn relu conv drop bn relu conv | conv]"
    config.model.noise.rate = 0.5
    config.optimizer.schedule = "cosine"
    return config
