"""The page of a run."""

import json

from dropbn.page import parts
from dropbn.page.parts import escape, joined
from dropbn.page.tables import table_of_rows

_CURVES = {
    "test/accuracy": ("test images", "-"),
    "validation/accuracy": ("validation images", "-"),
    "train/accuracy": ("training images, train mode", "-"),
    "train/accuracy_test_mode": ("training images without augmentation, test mode", "--"),
}
_CAPTIONS = {
    "eval/shift.png": "The shift of every BN layer.",
    "eval/shift_overlay.png": "The shift of every BN layer in several runs.",
    "eval/flips.png": "Images that are right in train mode and wrong in test mode, with their outputs.",
}
_TABLES = {
    "evaluation_grid": "Evaluation grid: accuracy and loss",
    "gap": "What is lost between two rows of the evaluation grid",
    "remedies": "The gain of each remedy on test images",
    "recalibrated": "Test mode before and after recalibration",
    "sampled": "Test images, deterministic and by Monte Carlo dropout",
    "shift": "Variance shift of every BN layer: ratio is real / moving variance (pooled)",
    "shift_li2018": "Variance shift by the estimator of Li et al. (2018)",
    "flipped_images": "Images that are right in train mode and wrong in test mode",
}


def page(
    name: str,
    config: dict,
    records: list[dict],
    evaluation: dict | None,
    images: dict[str, bytes | None],
    command: str,
) -> str:
    """The page of a run.

    Args:
      name: the name of the run.
      config: its config as nested dicts.
      records: the lines of metrics.jsonl, a dict for each epoch.
      evaluation: the contents of eval/report.json; None if the run has not been evaluated.
      images: file of a figure -> its bytes, or None if it cannot be read.
      command: the command that evaluates the run.

    Returns:
      The HTML.
    """
    score = "accuracy" if config["task"] == "classify" else "variance explained"
    captions = {file: _CAPTIONS.get(file, file) for file in images}
    sections = {
        "What was run": parts.definitions(_run_terms(name, config, evaluation)),
        "Final numbers": _final_numbers(records, evaluation or {}, score),
        "Training": _training(records, score),
        "Evaluation": _evaluation(evaluation, command),
        "Figures": parts.figures(captions, images),
        "Config": parts.folded("config.json", parts.listing(json.dumps(config, indent=2))),
    }
    return parts.document(f"{config['model']['name']} on {config['data']['name']}", "A run", sections)


def curve(records: list[dict], score: str = "accuracy") -> bytes:
    """Accuracies on test, validation and training images by epoch, as SVG.

    Args:
      records: the lines of metrics.jsonl.
      score: what "accuracy" means for the run's task.
    """
    from matplotlib.figure import Figure

    from dropbn import plots

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = plots.style(figure.add_subplot(), "epoch", f"{score}, %")
    for color, (key, (label, line)) in zip(plots.COLORS, _CURVES.items(), strict=False):
        points = [(record["epoch"], 100 * record[key]) for record in records if key in record]
        if points:
            axes.plot(*zip(*points, strict=True), line, color=color, marker=".", label=label)
    axes.locator_params(axis="x", integer=True)
    axes.legend(frameon=False)
    return plots.svg(figure)


def _run_terms(name, config, evaluation):
    """term -> what it says: how a run was trained."""
    model, noise = config["model"], config["model"]["noise"]
    sizes = [f"{key} {model[key]}" for key in ("depth", "width") if model[key]]
    orders = [joined((key, parts.code(model[key])), " ") for key in ("block", "head") if model[key]]
    amount = noise["beta" if noise["kind"] == "uout" else "rate"]
    return {
        "network": joined([model["name"], *sizes]),
        "data": config["data"]["name"],
        "noise": f"{noise['kind']} {amount:g}" if amount else "none",
        "place": joined(filter(None, [model["place"], *orders])) or "as published",
        "seed": config["seed"],
        "training": f"{config['duration']}, {config['batch_size']} images a step",
        "evaluated": f"the checkpoint of step {evaluation['checkpoint_step']}" if evaluation else "",
        "workdir": parts.code(name),
    }


def _final_numbers(records, evaluation, score):
    if not records:
        return ""
    final = records[-1]
    shown = {key: label for key, (label, _) in _CURVES.items() if key in final}
    numbers = {f"{score} of {label}": f"{100 * final[key]:.2f} %" for key, label in shown.items()}
    ratios = [row["ratio"] for row in evaluation.get("shift", [])]
    if ratios:
        numbers["lowest ratio of real / moving variance of a BN layer"] = f"{min(ratios):.3f}"
    return f"<p>After {final['epoch']:.4g} epochs ({final['step']:,} steps).</p>\n{parts.counts(numbers)}"


def _training(records, score):
    if not records:
        return "<p>No epoch is finished yet.</p>\n"
    drawn = parts.figure("curve.svg", curve(records, score), f"By epoch: {score} in %.")
    return drawn + _table(records, "Metrics by epoch")


def _evaluation(found, command):
    if not found:
        asks = f"{parts.code(command)} measures its shift and explains its gap"
        return f"<p>This run has not been evaluated; {asks}.</p>\n"
    share = f"{100 * (found.get('flips') or 0):.2f} % of the training images"
    about = {
        "remedies" if found.get("remedies") else "gap": found.get("advice", ""),
        "flipped_images": f"{share} are right in train mode and wrong in test mode.",
    }
    html = ""
    for key in dict.fromkeys([*_TABLES, *found]):
        if isinstance(found.get(key), list):
            html += f"<p>{escape(about[key])}</p>\n" if key in about else ""
            html += _table(found[key], _TABLES.get(key, key), 0 if key == "shift_li2018" else 25)
    return html


def _table(rows, caption, longest=25):
    """A table, folded if it has more than `longest` rows."""
    table = table_of_rows(rows, caption)
    return parts.folded(f"{caption}: {len(rows)} rows", table) if len(rows) > longest else table
