"""Kim's module tests at small sizes against closed forms, and these against quadrature and Monte Carlo."""

import csv
import math
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from dropbn.diagnose import theory
from dropbn.study import module_studies

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("r", [0.0, 0.2, 0.7, 0.999, 1.0])
def test_covariance_of_relus_by_quadrature(r):
    """E[ReLU a E[ReLU b | a]], with b given a normal of mean r a and deviation q = sqrt(1 - r^2)."""
    nodes, weights = np.polynomial.legendre.leggauss(100)
    a, q = 5 * (nodes + 1), math.sqrt(1 - r**2)  # From 0 to 10.
    density = np.exp(-(a**2) / 2) / math.sqrt(2 * math.pi)
    given = r * a
    if q:
        at = r * a / q
        cumulative = np.array([math.erfc(-x / math.sqrt(2)) / 2 for x in at])
        given = q * np.exp(-(at**2) / 2) / math.sqrt(2 * math.pi) + r * a * cumulative
    wanted = 5 * weights @ (a * given * density) - 1 / (2 * math.pi)
    assert module_studies.relu_covariance(r) == pytest.approx(wanted, abs=1e-9)


def test_relu_moments_by_monte_carlo():
    """Half the difference between w_mean and -w_mean is the skewness's part, free of the terms in 1 / n.

    Measured spreads of the means over four draws: 0.0002 and 0.0013 in that half, 0.003 in the mean of both.
    """
    n, units, samples = 64, 20, 100_000
    both = (n**-0.5, -(n**-0.5))  # r = 1 / 3
    found = np.zeros((2, 2))
    for _ in range(4):
        h = np.maximum(RNG.normal(size=(samples, n)), 0)
        centered = (2 / n) ** 0.5 * RNG.normal(size=(n, units))
        for i, w_mean in enumerate(both):
            z = h @ (w_mean + centered)
            x = np.maximum((z - z.mean(0)) / z.std(0), 0)
            covariance = np.cov(x.T)[~np.eye(units, dtype=bool)].mean()
            found[i] += np.square(x).mean() / 4, covariance / 4
    wanted = np.array([module_studies.relu_moments(n, w_mean) for w_mean in both])
    np.testing.assert_allclose((found[0] - found[1]) / 2, (wanted[0] - wanted[1]) / 2, atol=0.005)
    np.testing.assert_allclose(found.mean(0), wanted.mean(0), atol=0.01)
    assert ((wanted[0] - wanted[1]) / 2 > 0.015).all()  # The tolerance would not hide its absence.


def test_closed_forms_of_figure_1():
    """Both are Kim's 0.405 at mean zero; they differ more in wider layers and farther from zero."""
    for keep in (0.5, 0.8):
        before, after = module_studies.figure1_expected(300, 0.0, keep)
        assert before == pytest.approx(theory.branch(keep)) and after == pytest.approx(before)
    assert module_studies.figure1_expected(300, 0.0)[0] == pytest.approx((math.pi - 1) / (2 * math.pi - 1))
    widths, means = (128, 256, 512, 1024, 2048), (0.002, 0.004, 0.006, 0.01, 0.02)
    before, after = np.moveaxis(
        [[module_studies.figure1_expected(width, mean) for mean in means] for width in widths], -1, 0
    )
    assert (np.diff(before, axis=0) > 0).all() and (np.diff(before, axis=1) > 0).all()
    assert (after < theory.branch(0.5)).all()
    assert (np.diff(after[0]) < 0).all() and (np.diff(after[:, 0]) < 0).all()


def test_figure_1_in_small():
    """The weights' spread is sqrt(2 / n) of the part (sum w)^2: 1.2% of a ratio, half of it in three draws.

    Terms of order 1 / n, measured, are as large. Without the skewness 4% and 10% would be missed.
    """
    draws = [list(module_studies.figure1(3, 2000, [512], seed)) for seed in range(3)]
    assert [row["w_mean"] for row in draws[0]] == [-0.02, 0.0, 0.02]
    for rows in zip(*draws, strict=True):
        for name in ("predropout", "postdropout"):
            measured = np.mean([row[name] for row in rows])
            assert measured == pytest.approx(rows[0][f"{name}_expected"], rel=0.03)


@pytest.mark.slow
def test_a_row_depends_on_its_seed_and_nothing_else():
    one, again, other = (
        list(module_studies.figure1(2, 50, widths, seed))
        for widths, seed in (([8], 0), ([4, 8], 0), ([8], 1))
    )
    assert one == again[2:]
    assert one[0]["predropout"] != other[0]["predropout"]


def test_figure_3_in_small():
    """The weights spread Var[f] by 1.75 / width = 1.4%, and a ratio r by 1 - r of that.

    With C = Cov[x], 2 tr C^2 / (tr C)^2 = 1.75^2 / width for each of `width` outputs; the masks add to it.
    """
    rows = list(module_studies.figure3(5, 4000))
    assert len(rows) == 25 and {row["keep"] for row in rows} == set(module_studies.FIGURE3_KEEPS)
    assert [rows[0]["std"], rows[12]["std"], rows[-1]["std"]] == [0.2, 1.0, 5.0]
    gaps = module_studies.largest_deviations(rows)
    assert set(gaps) == {"branch", "residual"}
    assert all(part < 0.03 for _, part in gaps.values())
    assert all(row["residual"] > row["branch"] for row in rows if row["std"] >= 1)


def _command(cwd, *flags):
    root = pathlib.Path(__file__).parents[2]
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"PYTHONPATH": str(root)}
    command = [sys.executable, "-m", "dropbn", "module-studies", *flags]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(("figure", "rows"), [(1, 2), pytest.param(3, 10, marks=pytest.mark.slow)])
def test_command_writes_numbers_and_figure(figure, rows, tmp_path):
    flags = ["--figure=1", "--widths=8"] if figure == 1 else ["--figure=3"]
    done = _command(tmp_path, *flags, "--values=2", "--batch=100", "--out=in/my results")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "" and f"{rows}/{rows}" in done.stdout and "closed form" in done.stdout
    to = tmp_path / "in" / "my results" / f"kim2023_figure{figure}"
    with open(f"{to}.csv") as file:
        assert len(list(csv.DictReader(file))) == rows
    assert pathlib.Path(f"{to}.png").read_bytes().startswith(b"\x89PNG")


MISTAKES = {
    "widths of figure 3": ("--figure=3 --widths=64", "belongs to figure 1"),
    "a file": ("--figure=3 --out=file", "cannot be a directory"),
}


@pytest.mark.parametrize(("command", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_end_in_a_sentence(command, message, tmp_path):
    (tmp_path / "file").write_text("")
    done = _command(tmp_path, *command.split())
    assert done.returncode in (1, 2) and message in done.stderr
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
