"""Li's width law beside the shift of the trained networks: its premises, its closed form and the exact one.

    python docs/results/widths/closed_form.py W >docs/results/widths/closed_form.csv

W is the workdir of the study `configs/small.py:widths`. A row is the second convolution of a block, whose
inputs have the dropout (s2 = 1), in a network that was trained with it:
  fan_in, d_cos2: d and d cos^2 theta of the convolution; the latter is the mean over its filters.
  added: s2 (c^2 + v) / v of its inputs, by which the noise raises the variance where no weights follow.
  rho: mean correlation of two of its inputs, weighted by variance.
  law_gain: 1 + rho (d_cos2 - 1), by which the law divides `added`.
  gain: Var(sum_i w_i x_i) / sum_i w_i^2 Var(x_i), what stands in its place for these weights and inputs.
  law, branch: Var_train / Var_test of the convolution's output, by Li et al. (2018), eq. 12, and exactly.
  block: the same of the block's output, to whose variance the shortcut adds.
  trunk: `block` with the noise of earlier blocks that came through shortcuts alone. What comes through a
    later branch is missing, so only the first row of a network is exact.
  layer, measured: the BN behind the block and its Var_train / Var_test, remembered by real variance.
Everything but `measured` is of training images in test mode.
"""

import csv
import json
import pathlib
import sys

import jax
import numpy as np

from dropbn import data, models
from dropbn.diagnose import theory
from dropbn.nn import laws
from dropbn.train import checkpoint, workdir
from dropbn.train.plan import abstract_state, make_plan

COLUMNS = (
    *("cell", "seed", "layer", "fan_in", "d_cos2", "added", "rho", "law_gain", "gain"),
    *("law", "branch", "block", "trunk", "measured"),
)
BEHIND = {
    "stage1_block1": "stage2_block1/bn1",
    "stage2_block1": "stage3_block1/bn1",
    "stage3_block1": "head/bn1",
}


def main(directory):
    out = csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n")
    out.writeheader()
    for summary in sorted(pathlib.Path(directory, "members").glob("*/seed*/eval/summary.json")):
        run = summary.parents[1]
        for row in rows_of(run, json.loads(summary.read_text())):
            told = {key: f"{row[key]:.4f}" for key in row if isinstance(row[key], float)}
            out.writerow({"cell": run.parent.name, "seed": run.name[4:], **row, **told})


def rows_of(run, summary):
    """A row for each block of a finished run."""
    config = workdir.read_config(run)
    dataset = data.load(config.data)
    plan = make_plan(config, dataset)
    with checkpoint.manager(workdir.checkpoints(run), read_only=True) as checkpoints:
        variables = checkpoint.restore(checkpoints, abstract_state(plan, dataset), "latest").variables
    images = (dataset.train.images / np.float32(255) - dataset.mean) / dataset.std
    _, found = models.create(plan.config.model).apply(
        variables, images.astype(np.float32), capture_intermediates=True, mutable=["intermediates"]
    )
    ratios = {row["layer"]: row["ratio"] for row in summary["shift"]}
    weights = {row["layer"]: row for row in summary["weights"]}
    s2 = laws.of_config(config.model.noise).s2
    trunk = []  # the noises that reach it: (inputs, the kernel that they pass to this block's output)
    for block, layer in BEHIND.items():
        outputs, params = found["intermediates"][block], variables["params"][block]
        x = np.maximum(np.float64(outputs["bn2"]["__call__"][0]), 0)
        linear, whole = (
            np.float64(y["__call__"][0]).var((0, 1, 2)).mean() for y in (outputs["conv2"], outputs)
        )
        if "shortcut_conv1" in params:  # 1 x 1, of every second position
            shortcut = np.float64(params["shortcut_conv1"]["kernel"][0, 0])
            trunk = [(taps[:, :, ::2, ::2], kernel @ shortcut) for taps, kernel in trunk]
        taps = np.stack(list(shifted(x)))
        trunk += [
            (taps, np.float64(params["conv2"]["kernel"]).reshape(9, *params["conv2"]["kernel"].shape[2:]))
        ]
        row = {"layer": layer, **{key: weights[f"{block}/conv2"][key] for key in ("fan_in", "d_cos2")}}
        row |= forms(*trunk[-1], linear, row["d_cos2"], s2)
        each = [added(*noise, s2) for noise in trunk]
        yield row | {
            "block": float(1 + each[-1] / whole),
            "trunk": float(1 + sum(each) / whole),
            "measured": 1 / ratios[layer],
        }


def forms(taps, kernel, linear, d_cos2, s2):
    """The closed forms of a convolution.

    Args:
      taps: its inputs without noise, (taps, images, height, width, channels).
      kernel: (taps, channels, filters).
      linear: the variance of its output, mean over filters.
      d_cos2: mean over filters.
      s2: Var[m].
    """
    axes = (1, 2, 3)
    mean, variance = taps.mean(axes), taps.var(axes)
    rho = (taps.sum((0, 4)).var() / variance.sum() - 1) / (variance.size - 1)
    c, v = np.sqrt(np.mean(mean**2)), variance.mean()
    apart = np.einsum("tc,tco->o", variance, kernel**2).mean()
    return {
        "added": float(s2 * (c**2 + v) / v),
        "rho": float(rho),
        "law_gain": float(1 + rho * (d_cos2 - 1)),
        "gain": float(linear / apart),
        "law": float(1 / theory.through_weights(s2, d_cos2, rho, c, v)),
        "branch": float(1 + added(taps, kernel, s2) / linear),
    }


def added(taps, kernel, s2):
    """The variance that independent noise on the inputs adds, mean over filters."""
    second = (taps**2).mean((1, 2, 3))
    flat = kernel.reshape(-1, kernel.shape[-1])
    return theory.added_variance(s2, flat, second.reshape(-1)).mean()


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
