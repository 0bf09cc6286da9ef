"""Each kind of noise before one BN, with the same weights: measured, and in closed form.

    python docs/results/noises/same_weights.py W >docs/results/noises/same_weights.csv

W is the workdir of the study `configs/noises.py:digits`, whose networks without noise lend their weights. The
noise is put into the first block, in each position, and `shift.predict` measures Var_train / Var_test of the
first BN that it reaches, where no other noise is. The closed form takes clean activations alone: with A the
second moments of w_i x_i and C the covariance of m between inputs, it is 1 + sum_ij C_ij A_ij / Var_test.

P0 does to that BN what P1 does, and P3 and P5 are P2 and P6 for m >= 0.
"""

import csv
import pathlib
import sys

import jax
import numpy as np

from configs import noises
from dropbn import data, models
from dropbn.diagnose import shift
from dropbn.nn import laws
from dropbn.train import checkpoint, workdir
from dropbn.train.plan import abstract_state, make_plan

REPEATS = 2  # passes over the training images, each with draws of its own
# position in the first block -> (the first BN behind it, the noise's input, the convolution between the two).
PLACES = {
    "P1": ("stage1_block1/bn1", "stem", ""),
    "P2": ("stage1_block1/bn2", "bn1", "conv1"),
    "P4": ("stage1_block1/bn2", "conv1", ""),
    "P6": ("stage2_block1/bn1", "bn2", "conv2"),
    "P7": ("stage2_block1/bn1", "conv2", ""),
}


def main(directory):
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(("place", "kind", "layer", "seed", "measured", "closed_form"))
    runs = sorted(pathlib.Path(directory, "members", "preresnet8-digits").glob("seed*"))
    given = {run.name[4:]: restored(run) for run in runs}
    clean = {seed: activations(*of_run) for seed, of_run in given.items()}
    for place, (layer, *_) in PLACES.items():
        for kind in noises.KINDS:
            config = noises.get_config(f"preresnet8,digits,{kind}").model
            config.place, config.num_classes = place, 10
            model, law = models.create(config), laws.of_config(config.noise)
            for seed, (variables, images) in given.items():
                rows = shift.predict(model, variables, [images] * REPEATS).rows
                measured = next(1 / row["ratio"] for row in rows if row["layer"] == layer)
                wanted = closed_form(place, config.noise.kind, law, variables, clean[seed])
                told = "" if wanted is None else f"{wanted:.4f}"
                out.writerow((place, kind, layer, seed, f"{measured:.4f}", told))
            sys.stdout.flush()


def restored(run):
    """The variables of a run and its training images."""
    config = workdir.read_config(run)
    dataset = data.load(config.data)
    with checkpoint.manager(workdir.checkpoints(run), read_only=True) as checkpoints:
        state = checkpoint.restore(checkpoints, abstract_state(make_plan(config, dataset), dataset), "latest")
    images = (dataset.train.images / np.float32(255) - dataset.mean) / dataset.std
    return state.variables, images.astype(np.float32)


def activations(variables, images):
    """The outputs of the first block's layers with batch statistics and without noise."""
    config = noises.get_config("preresnet8,digits").model
    config.num_classes = 10
    _, found = models.create(config).apply(
        variables, images, True, False, capture_intermediates=True, mutable=["intermediates", "batch_stats"]
    )
    found = found["intermediates"]
    block = {
        name: np.float64(y["__call__"][0]) for name, y in found["stage1_block1"].items() if name[0] != "_"
    }
    return {"stem": np.float64(found["stem"]["__call__"][0]), **block}


def closed_form(place, kind, law, variables, clean):
    """Var_train / Var_test of the first BN; None where m is not independent of the place's function of x."""
    _, source, weights = PLACES[place]
    x, skip = clean[source], clean["stem"] if place in ("P6", "P7") else 0.0
    if place == "P2" and kind in ("gaussian", "alpha"):
        return None
    if weights:
        x = np.maximum(x, 0)  # In P2 the noise stands before the ReLU, which m >= 0 passes.
    moments = law.affine
    if not weights:
        drawn = moments._replace(m=0.0).train_variance(x.mean((0, 1, 2)), x.var((0, 1, 2)))
        linear = x
    else:
        kernel = np.float64(variables["params"]["stage1_block1"][weights]["kernel"])
        taps = kernel.reshape(9, *kernel.shape[2:])
        patches = np.stack(list(shifted(x)), axis=-2)  # (images, height, width, taps, channels)
        linear = np.einsum("nhwtc,tco->nhwo", patches, taps)
        drawn = added(kind, law, patches, taps, linear, np.stack(list(shifted(np.ones_like(x[:1]))), -2))
    whole = skip + moments.m * linear
    test = (skip + linear).var((0, 1, 2)).mean()
    return float((whole.var((0, 1, 2)) + drawn).mean() / test)


def added(kind, law, patches, taps, linear, inside):
    """E Var[sum_i w_i y_i | x] for each output: sum_ij Cov[m_i, m_j] w_i w_j E[x_i x_j] and alike."""
    moments = law.affine
    if kind == "stochastic_depth":
        return law.s2 * np.square(linear).mean((0, 1, 2))
    if kind in ("spatial", "dropblock"):
        at = [(i, j) for i in range(3) for j in range(3)]
        covariance = np.array([[law.s2] * 9] * 9)
        if kind == "dropblock":
            covariance = np.array([[law.covariance(i - k, j - m) for k, m in at] for i, j in at])
        second = np.einsum("nhwtc,nhwsc->tsc", patches, patches) / patches[..., 0, 0].size
        return np.einsum("ts,tsc,tco,sco->o", covariance, second, taps, taps)
    second, first, ones = (part.mean((0, 1, 2)) for part in (patches**2, patches, inside))
    variance = moments.var_m * second + 2 * moments.cov * first + moments.var_n * ones
    return np.einsum("tc,tco->o", variance, taps**2)


def shifted(x):
    """The input of each tap of a 3 x 3 convolution, with zeros around it."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = x.shape[1:3]
    for i in range(3):
        for j in range(3):
            yield padded[:, i : i + height, j : j + width]


if __name__ == "__main__":
    jax.config.update("jax_threefry_partitionable", False)  # As the commands of dropbn.
    main(sys.argv[1])
