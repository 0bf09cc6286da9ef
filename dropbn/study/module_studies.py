"""The two module tests of Kim et al. (2023), measured beside their closed forms.

    python -m dropbn module-studies --figure=1 --widths=128,256
    python -m dropbn module-studies --figure=3 --batch=10000 --out=runs/module_studies

Figure 1 puts noise before or after a weight layer and varies the mean of the weights (the paper has 201
values). Figure 3 measures a residual block and its branch and varies the standard deviation of the input (the
paper has 961 values, evenly spaced).

Writes kim2023_figure1.csv and .png (or figure3) into --out. At the default sizes figure 1 takes a quarter of
an hour on two cores and 4 GB, figure 3 takes a minute.
"""

import functools
import math
import pathlib
from collections.abc import Iterator, Sequence

import jax
import numpy as np
import rich
from absl import flags

from dropbn import cli
from dropbn.diagnose import theory
from dropbn.errors import DropbnError
from dropbn.nn import laws, noise
from dropbn.results import Result
from dropbn.study import kim2023_figures

FIGURE1_WIDTHS = (128, 256, 512, 1024, 2048)
FIGURE1_KEEP = 0.5
FIGURE3_WIDTH = 128
FIGURE3_KEEPS = (0.9, 0.8, 0.7, 0.6, 0.5)


def figure1(
    values: int = 21, batch: int = 100_000, widths: Sequence[int] = FIGURE1_WIDTHS, seed: int = 0
) -> Iterator[dict]:
    """Measures Var[W x] / Var[W D(x)] and Var[W x] / Var[D(W x)] (Kim et al. 2023, Fig. 1).

    x = ReLU BN U ReLU BN x_0 with x_0 ~ N(0, 1); U and W are square, without biases, with weights
    N(w_mean, 2 / width); BN has the batch's biased variance; keep is 0.5. Variances are over the batch and
    averaged over the units before they are divided. Every row has draws of its own.

    Yields:
      For each width and `values` w_mean from -0.02 to 0.02: `width`, `w_mean`, the ratios `predropout` and
      `postdropout`, and what `figure1_expected` says: `predropout_expected`, `postdropout_expected`.
    """
    for width in widths:
        for i, w_mean in enumerate(np.linspace(-0.02, 0.02, values).round(6).tolist()):
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), width), i)
            before, after = _figure1_ratios(key, w_mean, batch, width)
            expected_before, expected_after = figure1_expected(width, w_mean)
            yield {
                "width": width,
                "w_mean": w_mean,
                "predropout": before,
                "predropout_expected": expected_before,
                "postdropout": after,
                "postdropout_expected": expected_after,
            }


def figure3(values: int = 21, batch: int = 100_000, seed: int = 0) -> Iterator[dict]:
    """Measures Delta(f) and Delta(x_0 + f) of a block with dropout in P6 (Kim et al. 2023, Fig. 3).

    f = W D ReLU BN U ReLU BN x_0 with x_0 ~ N(0, std^2) and width 128; U and W have He's N(0, 2 / width), BN
    and variances are as in `figure1`. All keeps share x_0 and the weights; every std has draws of its own.

    Yields:
      For `values` std from 0.2 to 5 and each keep: `std`, `keep`, the ratios `branch` and `residual`, and the
      ratios of a wide block by `theory`: `branch_expected`, `residual_expected`. (The paper's axis reads
      Var(x_0), but its code varies the standard deviation.)
    """
    for i, std in enumerate(np.geomspace(0.2, 5, values).round(6).tolist()):
        ratios = _figure3_ratios(jax.random.fold_in(jax.random.key(seed), i), std, batch)
        for keep, (branch, residual) in zip(FIGURE3_KEEPS, np.asarray(ratios).tolist(), strict=True):
            yield {
                "std": std,
                "keep": keep,
                "branch": branch,
                "branch_expected": theory.branch(keep),
                "residual": residual,
                "residual_expected": float(theory.residual(keep, std**2, [1.0])),
            }


def relu_covariance(r: float) -> float:
    """Cov[ReLU a, ReLU b] of standard normal a, b with correlation r.

    It is (sqrt(1 - r^2) + r (pi - arccos r) - 1) / (2 pi): half the arc-cosine kernel of degree 1 (Cho & Saul
    2009), which is E[ReLU a ReLU b], minus E[ReLU a]^2 = 1 / (2 pi).
    """
    return (np.sqrt(1 - r**2) + r * (math.pi - np.arccos(r)) - 1) / (2 * math.pi)


def relu_moments(width: int, w_mean: float) -> tuple[float, float]:
    """E[ReLU^2 z_i] and Cov[ReLU z_i, ReLU z_k], the input x = ReLU z of the last layer of `figure1`.

    Let n = width, mu = w_mean, sigma^2 = 2 / n. The independent units h = ReLU(N(0, 1)) have variance
    (pi - 1) / (2 pi) and skewness s. The z are their sums under U's weights, normalized. They have
    correlation r = mu^2 / (mu^2 + sigma^2) and, with t = mu / sqrt(mu^2 + sigma^2), third cumulants
    k_iii = s t (3 - 2 r) / sqrt(n) and k_iik = s t / sqrt(n). The first term of Edgeworth's series,
    E f(z) = E_normal[f + sum_abc k_abc / 6 d_a d_b d_c f], leaves E[ReLU z] = phi = 1 / sqrt(2 pi) and gives

        E[ReLU^2 z_i] = 1 / 2 + phi s t (3 - 2 r) / (3 sqrt(n))
        Cov[ReLU z_i, ReLU z_k] = relu_covariance(r) + phi s t (1 - r + 2 r^2 / 3) / (2 sqrt(n))

    up to terms of order 1 / n.
    """
    phi, variance = 1 / math.sqrt(2 * math.pi), (math.pi - 1) / (2 * math.pi)
    skewness = phi * (1 / 2 + 1 / math.pi) / variance**1.5
    r = w_mean**2 / (w_mean**2 + 2 / width)
    tilt = phi * skewness * math.copysign(math.sqrt(r / width), w_mean)
    return 1 / 2 + tilt * (3 - 2 * r) / 3, relu_covariance(r) + tilt * (1 - r + 2 * r**2 / 3) / 2


def figure1_expected(width: int, w_mean: float, keep: float = FIGURE1_KEEP) -> tuple[float, float]:
    """The ratios of `figure1` for wide layers and a large batch, (predropout, postdropout).

    M and C are the `relu_moments`, other symbols are as there, and W's weights have E[w^2] = mu^2 + sigma^2
    and E[w_i w_k] = mu^2. Then

        clean = Var[W x] = n (mu^2 + sigma^2) (M - 1 / (2 pi)) + n (n - 1) mu^2 C
        Var[W D(x)] = clean + s2 n (mu^2 + sigma^2) M
        Var[D(W x)] = clean + s2 (clean + (n sigma^2 + n^2 mu^2) / (2 pi))

    At mu = 0 both ratios are (pi - 1) / (pi / keep - 1), which is `theory.branch`.
    """
    s2 = laws.Dropout(1 - keep).s2
    second_moment, covariance = relu_moments(width, w_mean)
    squares = width * w_mean**2 + 2
    clean = squares * (second_moment - 1 / (2 * math.pi)) + width * (width - 1) * w_mean**2 * covariance
    before = clean + s2 * squares * second_moment
    after = clean + s2 * (clean + (2 + (width * w_mean) ** 2) / (2 * math.pi))
    return float(clean / before), float(clean / after)


def largest_deviations(rows: list[dict]) -> dict[str, tuple[float, float]]:
    """The largest |measured - expected| of every ratio, and the largest in proportion to the expected."""
    found = {}
    for name in (name for name in rows[0] if f"{name}_expected" in rows[0]):
        pairs = [(abs(row[name] - row[f"{name}_expected"]), row[f"{name}_expected"]) for row in rows]
        found[name] = max(gap for gap, _ in pairs), max(gap / of for gap, of in pairs)
    return found


def main() -> None:
    options = flags.FLAGS
    if options.figure == "1":
        widths = _widths(options.widths) if options.widths else FIGURE1_WIDTHS
        rows = figure1(options.values, options.batch, widths, options.seed)
        total, plot = options.values * len(widths), kim2023_figures.predropout
    elif options.widths:
        raise DropbnError(f"--widths belongs to figure 1; the width of figure 3 is {FIGURE3_WIDTH}.")
    else:
        rows = figure3(options.values, options.batch, options.seed)
        total, plot = options.values * len(FIGURE3_KEEPS), kim2023_figures.residual
    out = pathlib.Path(options.out)
    try:  # Now, because the rows take minutes.
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DropbnError(f"--out={out} cannot be a directory: {error.strerror}.") from error
    measured = []
    for row in rows:
        measured.append(row)
        where = ", ".join(f"{key} {row[key]:g}" for key in list(row)[:2])
        print(f"{len(measured):>5}/{total}   {where}", flush=True)
    result = Result(measured, f"Kim et al. (2023), figure {options.figure}")
    to = out / f"kim2023_figure{options.figure}"
    result.to_csv(f"{to}.csv")
    plot(measured, f"{to}.png")
    rich.print(result)
    for name, (gap, part) in largest_deviations(measured).items():
        print(f"{name:<12} at most {gap:.4f} or {part:.2%} from its closed form")
    print(f"Written to {to}.csv and {to}.png")


def _widths(texts):
    if not all(text.strip().isdecimal() and int(text) > 0 for text in texts):
        raise DropbnError(f"--widths={','.join(texts)}: give positive numbers, such as 128,256.")
    return [int(text) for text in texts]


def _figure1_ratios(key, w_mean, batch, width):
    # Three programs, because XLA would keep six arrays of (batch, width) in one, instead of four.
    key, weights_key, after_key, before_key = jax.random.split(key, 4)
    x = _figure1_input(key, w_mean, batch, width)
    weights = _linear(weights_key, width, w_mean)
    clean, after = map(float, _dropped_after(after_key, x, weights))
    return clean / float(_dropped_before(before_key, x, weights)), clean / after


@functools.partial(jax.jit, static_argnames=("batch", "width"))
def _figure1_input(key, w_mean, batch, width):
    input_key, weights_key = jax.random.split(key)
    hidden = jax.nn.relu(_normalized(jax.random.normal(input_key, (batch, width))))
    return jax.nn.relu(_normalized(hidden @ _linear(weights_key, width, w_mean)))


@jax.jit
def _dropped_after(key, x, weights):
    y = x @ weights
    return _variance(y), _variance(_dropped(key, y, FIGURE1_KEEP))


@jax.jit
def _dropped_before(key, x, weights):
    return _variance(_dropped(key, x, FIGURE1_KEEP) @ weights)


@functools.partial(jax.jit, static_argnames="batch")
def _figure3_ratios(key, std, batch):
    input_key, first_key, last_key, *mask_keys = jax.random.split(key, 3 + len(FIGURE3_KEEPS))
    x0 = std * jax.random.normal(input_key, (batch, FIGURE3_WIDTH))
    hidden = jax.nn.relu(_normalized(x0)) @ _linear(first_key, FIGURE3_WIDTH)
    x, weights = jax.nn.relu(_normalized(hidden)), _linear(last_key, FIGURE3_WIDTH)
    clean = x @ weights
    ratios = []
    for mask_key, keep in zip(mask_keys, FIGURE3_KEEPS, strict=True):
        noisy = _dropped(mask_key, x, keep) @ weights
        ratios.append((_variance(clean) / _variance(noisy), _variance(x0 + clean) / _variance(x0 + noisy)))
    return ratios


def _linear(key, width, mean=0.0):
    return mean + math.sqrt(2 / width) * jax.random.normal(key, (width, width))


def _normalized(x):
    return (x - x.mean(0)) * jax.lax.rsqrt(x.var(0) + 1e-5)  # PyTorch's epsilon, as in the paper's code.


def _dropped(key, x, keep):
    return noise.Dropout(1 - keep).apply({}, x, deterministic=False, rng=key)


def _variance(x):
    return x.var(0).mean()


def run() -> None:
    """The command `dropbn module-studies`."""
    flags.DEFINE_enum("figure", None, ["1", "3"], "Which figure of Kim et al. (2023).", required=True)
    flags.DEFINE_integer("values", 21, "How many w_mean (figure 1) or std (figure 3).", lower_bound=2)
    flags.DEFINE_integer("batch", 100_000, "Samples in the batch.", lower_bound=2)
    flags.DEFINE_list("widths", [], "Widths of figure 1; by default 128,256,512,1024,2048.")
    flags.DEFINE_integer("seed", 0, "The seed of all draws.")
    flags.DEFINE_string("out", "runs/module_studies", "Where the figure and its numbers go.")
    cli.run(main)
