"""Every noise of a model, followed to the batch normalizations that it reaches first.

- `marks.trace` makes a jaxpr of the model in which its noises and BNs are marked.
- `follow` interprets the jaxpr with a description (`values.Value`) in place of every array: which noises the
  array carries, and what has happened to each since it was drawn (its `Path`). A BN ends a path, because the
  variance of its output is 1 again. If possible, the description also tells how the array is distributed, as
  a function of the Gaussian output of the BN before it, and the variance that a noise adds to each channel.
- `variance_without_noise` takes the noises' share out of a BN's running variance.

`lint`, `surgery.move_to_last_bn` and the recipe "closed_form" of `recalibrate` are made of these.
"""

from dropbn.diagnose.noise_flow.by_hand import follow
from dropbn.diagnose.noise_flow.followed import Followed
from dropbn.diagnose.noise_flow.values import Path, Way
from dropbn.diagnose.noise_flow.variance import variance_without_noise

__all__ = ["Followed", "Path", "Way", "follow", "variance_without_noise"]
