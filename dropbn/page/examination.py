"""The page of an examination, for a reader who knows neither batch statistics nor the variance shift."""

from dropbn.diagnose.examine import Examination
from dropbn.diagnose.lint import RULES
from dropbn.errors import DropbnError
from dropbn.page import parts
from dropbn.page.parts import escape
from dropbn.page.tables import table_of_rows

_WORDS = {
    "batch normalization (BN)": "A layer that subtracts a mean and divides by a standard deviation, channel "
    "by channel. In training these are the batch's own; in test mode they are averages that training "
    "remembered.",
    "noise": "A layer such as dropout, which multiplies by random numbers in training and does nothing in "
    "test mode.",
    "variance shift": "Noise makes the variance larger in training. BN remembers the larger variance, and "
    "divides by too much in test mode, when the noise is off.",
    "ratio": "The variance of a BN's input in test mode over the variance that it remembers. 1 is no shift; "
    "0.5 is half the variance.",
    "mean shift": "How far the mean of a BN's input in test mode is from the remembered mean, in remembered "
    "standard deviations.",
    "points": "Percentage points of accuracy.",
    "±": "The standard error: two runs of an estimate differ by about that much.",
    "recalibration": "The statistics of every BN are taken again from training data with the noise off. The "
    "weights stay.",
}
_COLUMNS = {
    "count": "How many values a channel has.",
    "moving_var": "The variance that BN remembers, averaged over channels.",
    "real_var": "The variance of its input in test mode, averaged over channels.",
    "ratio": _WORDS["ratio"],
    "mean_shift": _WORDS["mean shift"],
    "points lost": "Accuracy before the change minus accuracy after it, in percentage points.",
    "loss gained": "Loss after the change minus loss before it.",
    "gain in points": "Accuracy with the remedy minus accuracy without it, in percentage points.",
    "least": "The lower 95 % bound of the gain, with a correction for the number of remedies.",
}
_GRID = "Every row is one evaluation: noise on or off, where BN takes its statistics from, and on which data."


def page(found: Examination) -> str:
    """The page as HTML; everything that an examination holds is data and is escaped."""
    retraining = found.retraining.rows if found.retraining else []
    sections = {
        "Verdict": _verdict(found),
        "What was not seen": "".join(f"<p>{escape(sentence)}</p>\n" for sentence in found.not_seen),
        "The shift of every batch normalization": _shift(found),
        "What is lost from training to test mode": _gap(found),
        "What helps without training again": _remedies(found),
        "What training again would change": _section(
            "The ratio is the lowest of all layers, predicted from these weights. The first row is the "
            "network as it is; 1 would be no shift.",
            table_of_rows(retraining if len(retraining) > 1 else [], "Predicted ratios", _COLUMNS),
        ),
        "What lint finds": _lint(found),
        "Layers": _section(
            "Every layer that acts differently in training and in test mode, with the line that calls it.",
            _folded(found.rows, "Layers"),
        ),
        "Words": parts.definitions(_WORDS),
    }
    return parts.document(found.name, "An examination of noise and batch normalization", sections)


def _section(about, inner):
    return f"<p>{escape(about)}</p>\n{inner}" if inner else ""


def _verdict(found):
    sentences = "".join(f"<p>{escape(sentence)}</p>\n" for sentence in found.verdict)
    return sentences + f'<p class="advice"><b>Recommended:</b> {escape(found.recommendation)}</p>\n'


def _shift(found):
    curves = {"measured": found.measured, "predicted from the weights": found.predicted}
    known = {label: shift for label, shift in curves.items() if shift}
    if not known:
        return ""
    caption = "The ratio of every BN, in the order of a forward pass. 1 is no shift."
    try:
        drawn = parts.figure("ratios.svg", _curves(known), caption)
    except DropbnError as error:  # matplotlib is an extra.
        drawn = f"<p>{escape(error)}</p>\n"
    tables = "".join(_folded(shift.rows, f"Ratios, {label}") for label, shift in known.items())
    about = "The ratio is the variance in test mode over the variance that BN remembers from training."
    return _section(about, drawn + tables)


def _curves(known):
    """The ratios by layer, as SVG."""
    from dropbn import plots  # needs matplotlib

    figure, axes = plots.single("batch normalization, from input to output", "real / remembered variance")
    for number, (label, shift) in enumerate(known.items()):
        ratios = [row["ratio"] for row in shift.rows]
        places = range(1, len(ratios) + 1)
        axes.plot(places, ratios, marker="os"[number], label=label, color=plots.COLORS[number])
    axes.axhline(1, color="0.6", linewidth=1, zorder=0)
    axes.locator_params(axis="x", integer=True)
    plots.stretch(axes)
    return plots.svg(plots.finish_single(figure))


def _gap(found):
    if not found.gap:
        return ""
    *_, whole = found.gap.shares.rows
    about = (
        f"From ({whole['before']}) to ({whole['after']}), one change at a time: noise, the statistics that "
        "BN uses, the data. The rows add up to the last one. A share below about twice its error (±) may be "
        "chance."
    )
    shares = [
        {"cause": row["cause"]}
        | _with_error("points lost", row["accuracy"], row["error"], 100)
        | _with_error("loss gained", row["loss"], row["loss_error"])
        for row in found.gap.shares.rows
    ]
    grid = _section(_GRID, table_of_rows(found.gap.rows, "All evaluations"))
    table = table_of_rows(shares, "Shares of the gap", _COLUMNS)
    return _section(about, table) + parts.folded("All evaluations", grid)


def _remedies(found):
    if not found.gap:
        return ""
    about = (
        "Each was applied and measured on the test data. A gain counts if the least that it may be, its "
        "lower 95 % bound, is above 0."
    )
    remedies = found.gap.remedies
    rows = []
    for row in remedies.rows:
        is_accuracy = row["accuracy"] is not None
        gain, scale = ("gain in points", 100) if is_accuracy else ("gain in loss", 1)
        rows.append(
            {"remedy": row["remedy"]}
            | ({"accuracy, %": 100 * row["accuracy"]} if is_accuracy else {})
            | {"loss": row["loss"]}
            | _with_error(gain, row["gain"], row["error"], scale)
            | {"least": None if row["least"] is None else scale * row["least"], "call": row["call"]}
        )
    failed = "".join(f"<p>{escape(name)}: {escape(why)}</p>\n" for name, why in remedies.failed.items())
    return _section(about, table_of_rows(rows, "Gains on test data", _COLUMNS)) + failed


def _with_error(key, value, error, scale=1):
    """A number with its standard error, for a column "value ± error"."""
    known = None if value is None else scale * value
    return {key: known, f"{key}_interval": None if error is None else scale * error}


def _lint(found):
    rows = [
        {
            "severity": row["severity"],
            "finding": RULES[row["code"]].title,
            "layer": " → ".join(filter(None, (row["noise"], row["norm"]))),
            "line": row["line"] or None,
            "ratio": row["ratio"],
            "advice": row["advice"],
        }
        for row in found.lint.rows
    ]
    about = "Lint reads the model without data. Its ratios suppose what each finding says."
    return _section(about, _folded(rows, "Findings"))


def _folded(rows, caption):
    table = table_of_rows(rows, caption, _COLUMNS)
    return parts.folded(f"{caption}: {len(rows)} rows", table) if len(rows) > 12 else table
