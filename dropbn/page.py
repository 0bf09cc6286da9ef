"""Pages: a study or a run as one HTML text that holds all it shows and asks no network for anything."""

import base64
import html
import io
import json
import math
import pathlib
import re
import statistics
from typing import NamedTuple

from dropbn import __version__

VERDICTS = ("confirmed", "refuted", "undecided", "not run")


def study(table: dict, images: dict[str, bytes | None]) -> str:
    """The page of a study.

    Args:
      table: of table.json: title, config, command, metric, seeds, device, versions, date; `rows` of cells
        and `claims`, each as `table_of_rows` takes them; `figures` with file and caption; `failed` with
        member and error; `unfinished`, a number of members. What is missing is left out.
      images: file of a figure -> its bytes, None where it cannot be read.

    Returns:
      The HTML.
    """
    claims = [_verdict_behind_claim(claim) for claim in table.get("claims", [])]
    cells = table_of_rows(table.get("rows", []), _about_cells(table))
    figures = [(figure["file"], figure.get("caption", "")) for figure in table.get("figures", [])]
    sections = [
        _section("What was run", _definitions(_study_terms(table)), _unfinished(table.get("unfinished"))),
        _section("Verdicts", _counts(_verdict_counts(claims))) if claims else "",
        _section("Claims", table_of_rows(claims, _ABOUT_CLAIMS)) if claims else "",
        _section("Results", cells or "<p>No cell has a result yet.</p>"),
        _figures(figures, images),
        _failed(table.get("failed")),
    ]
    return _document(str(table.get("title", "A study")), "A study", sections)


def run(
    name: str,
    config: dict,
    records: list[dict],
    evaluation: dict | None,
    images: dict[str, bytes | None],
    command: str,
) -> str:
    """The page of a run.

    Args:
      name: what the run is called.
      config: its config as nested dicts.
      records: of metrics.jsonl, a dict an epoch.
      evaluation: of eval/report.json, None before there is one.
      images: file of a figure -> its bytes, None where it cannot be read.
      command: the one that evaluates the run.

    Returns:
      The HTML.
    """
    score = "accuracy" if config.get("task", "classify") == "classify" else "variance explained"
    sections = [
        _section("What was run", _definitions(_run_terms(name, config, evaluation))),
        *(_training_sections(records, evaluation or {}, score) if records else [_NO_EPOCH]),
        *(_evaluation_sections(evaluation) if evaluation is not None else [_not_evaluated(command)]),
        _figures([(file, _CAPTIONS.get(pathlib.PurePath(file).name, file)) for file in images], images),
        _section(
            "Config", _folded("config.json", _listing(json.dumps(config, indent=2, ensure_ascii=False)))
        ),
    ]
    title = f"{config['model'].get('name', 'a network')} on {config['data'].get('name', 'data')}"
    return _document(title, "A run", sections)


def table_of_rows(rows: list[dict], caption: str) -> str:
    """A table that its reader can sort, a column for each key of the rows.

    A key K and K_interval make one column, "mean ± half width", sorted by the mean; a key "interval" goes
    with the key before it. Columns without any value are left out. Numbers of a column have the same
    decimals; the exact ones are in the attribute data-value.

    Args:
      rows: dicts of text, numbers, booleans and None.
      caption: what stands above the table.

    Returns:
      The HTML, "" without rows.
    """
    columns = _columns(rows)
    if not columns:
        return ""
    heads = "".join(
        f'<th scope="col"{_classes(column)}><button type="button">{_text(_label(column.key))}</button></th>'
        for column in columns
    )
    body = "\n".join(f"<tr>{_cells(row, columns)}</tr>" for row in rows)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{_text(caption)}">\n<table>\n'
        f"<caption><span>{_text(caption)}</span></caption>\n<thead><tr>{heads}</tr></thead>\n"
        f"<tbody>\n{body}\n</tbody>\n</table>\n</div>"
    )


def curve(records: list[dict], score: str = "accuracy") -> bytes:
    """Accuracies by epoch as SVG: in train mode, in test mode, of validation and of test images.

    Args:
      records: of metrics.jsonl.
      score: what "accuracy" is for the run's task.
    """
    import matplotlib
    from matplotlib.figure import Figure

    from dropbn import plots

    # Without a fixed salt, two pages of one run would differ.
    with matplotlib.rc_context({"svg.hashsalt": "dropbn"}):
        figure = Figure(figsize=(7, 3.6), layout="constrained")
        axes = plots.style(figure.add_subplot(), "epoch", f"{score}, %")
        for color, (key, (label, line)) in zip(plots.COLORS, _CURVES.items(), strict=False):
            points = [(record["epoch"], 100 * record[key]) for record in records if key in record]
            look = {"color": color, "marker": "o" if len(points) <= 30 else "", "markersize": 4}
            if points:
                axes.plot(*zip(*points, strict=True), line, label=label, **look)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(frameon=False)
        drawn = io.BytesIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    return drawn.getvalue()


_ABOUT_CLAIMS = (
    "The papers' claims, and the difference measured here: mean ± half the width of its 95 % interval "
    "(Student's t), paired by seed. A claim is decided where the interval excludes 0."
)
_MEANINGS = {
    "difference": "value - paper",
    "adjusted": "value with BN statistics taken again as Li et al. do",
    "recalibrated": "value with the population's statistics",
    "shift": "the largest max(r, 1/r) over BN layers, r being real / remembered variance",
}
_CURVES = {
    "train/accuracy": ("training images, train mode", "-"),
    "test/accuracy": ("test images", "-"),
    "validation/accuracy": ("validation images", "-"),
    "train/accuracy_test_mode": ("training images, test mode", "--"),
}
_CAPTIONS = {
    "shift.png": "The shift of every BN layer.",
    "shift_overlay.png": "The shift of every BN layer, of several runs.",
    "flips.png": "Images that are right in train mode and wrong in test mode, with their outputs.",
}
_TABLES = {
    "modes": "Accuracy and loss by mode",
    "gap": "What is lost between two rows of the table of modes",
    "recalibrated": "Test mode before and after recalibration",
    "sampled": "Test images, deterministic and by Monte Carlo dropout",
    "shift": "Variance shift of every BN layer: ratio is real / moving variance (pooled)",
    "shift_li2018": "Variance shift by the estimator of Li et al. (2018)",
    "flipped_images": "Images that are right in train mode and wrong in test mode",
}
_MIMES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".svg": "svg+xml", ".gif": "gif", ".webp": "webp"}
_LONGEST_OPEN = 25  # rows; longer tables of a run are folded
_NO_EPOCH = "<p>No epoch is finished yet.</p>"


class _Column(NamedTuple):
    """A column: its key, that of the half widths or "", whether it is of numbers, and how they are set."""

    key: str
    half: str
    numeric: bool
    decimals: int
    half_width: int  # characters of the longest half width
    style: str  # class of a column of text


def _columns(rows):
    keys = list(dict.fromkeys(key for row in rows for key in row))
    half_of = {key: f"{key}_interval" for key in keys if f"{key}_interval" in keys}
    if "interval" in keys[1:]:
        half_of[keys[keys.index("interval") - 1]] = "interval"
    means = [key for key in keys if key not in half_of.values()]
    shown = [key for key in means if any(row.get(key) is not None for row in rows)]
    return [_column(rows, key, half_of.get(key, ""), key == shown[0]) for key in shown]


def _column(rows, key, half, is_first):
    values, widths = ([row[k] for row in rows if row.get(k) is not None] for k in (key, half))
    numeric = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    decimals = (_decimals_of_widths(widths) if any(widths) else _decimals(values)) if numeric else 0
    longest = max((len(_number(width, decimals, True)) for width in widths), default=0)
    text = 0 if numeric else max(len(_plain(value)) for value in values)
    style = "long" if text > 32 else "short"
    if is_first and text <= 48:
        style = "name wide" if text > 18 else "name"
    return _Column(key, half, numeric, decimals, longest, style)


def _decimals(values):
    """Four digits for the largest number, three for a far smaller one; fewer where all have fewer."""
    finite = [abs(value) for value in values if isinstance(value, float) and value and math.isfinite(value)]
    if not finite:
        return 0
    smallest = min(value for value in finite if value >= max(finite) / 100)
    wanted = min(
        max(3 - _exponent(max(finite)), 2 - _exponent(smallest), 0), max(2 - _exponent(max(finite)), 4)
    )
    needed = max(len(f"{value:.6f}".rstrip("0").partition(".")[2]) for value in finite)
    return min(wanted, needed, 6)


def _exponent(value):
    return math.floor(math.log10(value))


def _decimals_of_widths(widths):
    """Two digits for a half width in the middle of the others, and one for a far smaller one."""
    finite = [width for width in widths if width and math.isfinite(width)]
    if not finite:
        return 2
    middle = statistics.median(finite)
    smallest = min(width for width in finite if width >= middle / 100)
    return min(max(1 - _exponent(middle), -_exponent(smallest), 0), 6)


def _number(value, decimals, rounds=False):
    """A number as text; unless it rounds, with three digits of its own where the decimals show below two."""
    if isinstance(value, int):
        text = f"{value:,}" if not decimals else f"{value:,.{decimals}f}"
    elif not math.isfinite(value):
        text = str(value)
    elif abs(value) >= 1e12 or (not rounds and 0 < abs(value) < 10 ** (1 - decimals)):
        text = f"{value:.3g}"
    else:
        text = f"{value:,.{decimals}f}"
        text = text.lstrip("-") if not float(text.replace(",", "")) else text
    return text.replace("-", "\N{MINUS SIGN}")


def _cells(row, columns):
    return "".join(_cell(row, column, "th" if i == 0 else "td") for i, column in enumerate(columns))


def _cell(row, column, tag):
    value, scope = row.get(column.key), ' scope="row"' if tag == "th" else ""
    start = f"<{tag}{scope}{_classes(column)}"
    if value is None:
        return f'{start} data-value=""><span class="none">\N{EN DASH}</span>{_half(None, column)}</{tag}>'
    if not column.numeric:
        marked = column.key == "verdict" and value in VERDICTS
        text = _breakable(_plain(value)) if tag == "th" else _text(_plain(value))
        return f"{start}>{_verdict(value, text) if marked else text}</{tag}>"
    exact = str(value).replace("inf", "Infinity") if value == value else ""
    text = _number(value, column.decimals, bool(column.half_width))
    return f'{start} data-value="{exact}">{text}{_half(row.get(column.half), column)}</{tag}>'


def _half(width, column):
    """As wide in every row, so that the means stand below each other."""
    if not column.half_width:
        return ""
    text = "" if width is None else f"± {_number(width, column.decimals, True)}"
    return f' <span class="half" style="min-width:{column.half_width + 2}ch">{text}</span>'


def _classes(column):
    name = "number" if column.numeric else column.style
    return f' class="{name}"' if name else ""


def _verdict(value, text):
    return f'<span class="verdict {value.replace(" ", "-")}">{text}</span>'


def _plain(value):
    if isinstance(value, bool):
        return "yes" if value else "no"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else str(value)


def _text(value):
    return html.escape(str(value))


def _breakable(value, behind=",/"):
    """Text that may break behind these characters, as names of cells and layers may."""
    return re.sub(rf"(?<=[{behind}])(?=[^\s{behind}])", "<wbr>", _text(value))


def _label(key):
    return key.replace("_", " ").replace("/", " ")


def _verdict_behind_claim(claim):
    """On a narrow screen the first two columns are all that is seen at once."""
    first = {key: claim[key] for key in ("claim", "verdict") if key in claim}
    return first | claim


def _verdict_counts(claims):
    found = [claim.get("verdict") for claim in claims]
    counted = [(str(found.count(verdict)), verdict, verdict) for verdict in VERDICTS]
    return [(number, words, verdict.replace(" ", "-")) for number, words, verdict in counted]


def _study_terms(table):
    """(term, HTML) of what a study was."""
    seeds = ", ".join(map(str, table.get("seeds", [])))
    versions = ", ".join(f"{name} {version}" for name, version in table.get("versions", {}).items())
    terms = [
        ("command", table.get("command") and _code(table["command"])),
        ("config", table.get("config") and _code(table["config"])),
        ("metric", _text(table.get("metric") or "")),
        ("seeds", _text(seeds)),
        ("device", _text(table.get("device") or "")),
        ("versions", _text(versions)),
        ("date", _text(table.get("date") or "")),
    ]
    return [(term, value) for term, value in terms if value]


def _run_terms(name, config, evaluation):
    """(term, HTML) of what a run was."""
    model, data = config["model"], config["data"]
    sizes = [f"{key} {model[key]}" for key in ("depth", "width") if model.get(key)]
    orders = [f"{key} {_code(model[key])}" for key in ("block", "head") if model.get(key)]
    place = [_text(model["place"])] if model.get("place") else []
    length = f"{config.get('duration', '')}, {config.get('batch_size', '')} images a step"
    checkpoint = evaluation and evaluation.get("checkpoint_step")
    return [
        ("network", _text(", ".join([str(model.get("name", "")), *sizes]))),
        ("data", _text(data.get("name", ""))),
        ("noise", _text(_noise(model.get("noise", {})))),
        ("place", ", ".join(place + orders) or "as published"),
        ("seed", _text(config.get("seed", ""))),
        ("training", _text(length)),
        *([("evaluated", f"the checkpoint of step {_text(checkpoint)}")] if checkpoint is not None else []),
        ("workdir", _code(name)),
    ]


def _noise(noise):
    kind = noise.get("kind", "dropout")
    amount = noise.get("beta" if kind == "uout" else "rate", 0)
    return f"{kind} {amount:g}" if amount else "none"


def _training_sections(records, evaluation, score):
    final = records[-1]
    names = {
        "test/accuracy": f"test {score}",
        "train/accuracy": f"training {score}, in train mode",
        "train/accuracy_test_mode": f"training {score}, in test mode",
    }
    numbers = [(f"{100 * final[key]:.2f} %", words, "") for key, words in names.items() if key in final]
    ratios = [row["ratio"] for row in evaluation.get("shift", []) if row.get("ratio") is not None]
    if ratios:
        numbers.append((f"{min(ratios):.3f}", "lowest ratio of real / moving variance of a BN layer", ""))
    after = f"<p>After {final.get('epoch', 0):.4g} epochs ({final.get('step', 0):,} steps).</p>"
    drawn = _figure("", "curve.svg", curve(records, score), f"By epoch: {score} in %.")
    return [
        _section("Final numbers", after, _counts(numbers)),
        _section("Training", drawn, _perhaps_folded(records, "Metrics by epoch")),
    ]


def _evaluation_sections(evaluation):
    keys = [key for key in _TABLES if key in evaluation]
    keys += [key for key in evaluation if key not in _TABLES and _is_rows(evaluation[key])]
    tables = {
        key: _perhaps_folded(evaluation[key], _TABLES.get(key, _label(key)), folds=key == "shift_li2018")
        for key in keys
    }
    flips = evaluation.get("flips")
    about = {"gap": _paragraph(evaluation.get("advice"))}
    if flips is not None:
        share = f"{100 * flips:.2f} % of the training images are right in train mode and wrong in test mode."
        about["flipped_images"] = _paragraph(share)
    return [_section("Evaluation", *(about.get(key, "") + tables[key] for key in keys))]


def _is_rows(value):
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _not_evaluated(command):
    sentence = f"This run has not been evaluated; {_code(command)} measures its shift and explains its gap."
    return _section("Evaluation", f"<p>{sentence}</p>")


def _perhaps_folded(rows, caption, folds=False):
    table = table_of_rows(rows, caption)
    folds = table and (folds or len(rows) > _LONGEST_OPEN)
    return _folded(f"{caption}: {len(rows)} rows", table) if folds else table


def _folded(summary, inner):
    return f"<details>\n<summary>{_text(summary)}</summary>\n{inner}\n</details>"


def _listing(text):
    return f'<pre class="scroll" tabindex="0">{_text(text)}</pre>'


def _code(text):
    """Code that breaks between words, not at the hyphens of flags."""
    words = " ".join(f"<span>{_breakable(word, ',/=')}</span>" for word in str(text).split(" "))
    return f"<code>{words}</code>"


def _paragraph(text):
    return f"<p>{_text(text)}</p>\n" if text else ""


def _definitions(terms):
    pairs = "\n".join(f"<dt>{_text(term)}</dt><dd>{value}</dd>" for term, value in terms)
    return f"<dl>\n{pairs}\n</dl>"


def _counts(numbers):
    """A list of (number, what it counts, class) in large digits."""
    items = "\n".join(
        f'<li class="{name}"><b>{_text(number)}</b> <span>{_text(words)}</span></li>'
        for number, words, name in numbers
    )
    return f'<ul class="counts">\n{items}\n</ul>'


def _about_cells(table):
    keys = {key for row in table.get("rows", []) for key in row if row[key] is not None}
    meanings = {"value": table.get("metric")} | _MEANINGS
    said = [f"{key}: {meaning}" for key, meaning in meanings.items() if meaning and key in keys]
    means = "Means over the seeds ± half the width of their 95 % intervals (Student's t)."
    return f"{means} {'; '.join(said)}{'.' if said else ''}"


def _failed(members):
    """A table of the errors' last lines, and what is above them in a traceback, folded."""
    if not members:
        return ""
    rows = [{"member": m["member"], "error": (m["error"].strip().splitlines() or [""])[-1]} for m in members]
    whole = [
        _folded(f"{m['member']}: the whole error", _listing(m["error"].strip()))
        for m in members
        if len(m["error"].strip().splitlines()) > 1
    ]
    return _section("Failed members", table_of_rows(rows, "Runs that ended in an error."), *whole)


def _unfinished(number):
    if not number:
        return ""
    members = "1 member is" if number == 1 else f"{_text(number)} members are"
    return f"<p>{members} not finished yet; the tables hold what the others found.</p>"


def _figures(captions, images):
    drawn = [
        _figure(f"Figure {i}. ", file, images.get(file), caption)
        for i, (file, caption) in enumerate(captions, 1)
    ]
    return _section("Figures", *drawn) if drawn else ""


def _figure(number, file, image, caption):
    mime = _MIMES.get(pathlib.PurePath(file).suffix.lower())
    if image is None or not mime:
        why = "cannot be read" if image is None else "is no image that a page can show"
        return f'<p class="absent">{number}The file {_code(file)} {why}. {_text(caption)}</p>'
    source = f"data:image/{mime};base64,{base64.b64encode(image).decode()}"
    words, alt = f"<b>{number}</b>{_text(caption)}", f"{number}{_text(caption)}"
    return (
        f'<figure>\n<div class="plate"><img src="{source}" alt="{alt}"></div>\n'
        f"<figcaption>{words}</figcaption>\n</figure>"
    )


def _section(title, *parts):
    inner = "\n".join(part for part in parts if part)
    return f"<section>\n<h2>{_text(title)}</h2>\n{inner}\n</section>"


def _document(title, kind, sections):
    body = "\n".join(section for section in sections if section)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{_text(title)}</title>
<link rel="icon" href="data:,">
<style>{_STYLE}</style>
</head>
<body>
<main>
<header>
<p class="kind">{_text(kind)}</p>
<h1>{_text(title)}</h1>
</header>
{body}
<footer>Made by dropbn {_text(__version__)}.</footer>
</main>
<script>{_SCRIPT}</script>
</body>
</html>
"""


_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

_STYLE = """
:root {
  --paper: #fff; --ink: #1d1c1a; --soft: #5f5c56; --rule: #dcdad4; --wash: #f6f5f1; --shade: #0003;
  --confirmed: #0b6b4d; --refuted: #ab330b; --undecided: #765800; --not-run: #65625c;
  --serif: "Iowan Old Style", Charter, "Bitstream Charter", "Palatino Linotype", Palatino, "Noto Serif",
    "Liberation Serif", Georgia, serif;
  --sans: "Helvetica Neue", "Segoe UI", Roboto, "Liberation Sans", Helvetica, Arial, sans-serif;
  --mono: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #17181a; --ink: #e7e5df; --soft: #a9a69e; --rule: #37383c; --wash: #202225; --shade: #000a;
    --confirmed: #62c9a2; --refuted: #f18d65; --undecided: #dbb655; --not-run: #a9a69e;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 1.0625rem/1.625rem var(--serif); }
main { max-width: 70rem; margin: 0 auto; padding: clamp(1.5rem, 5vw, 4rem) clamp(1rem, 4vw, 2.5rem); }
header, p, dl { max-width: 46rem; }
.kind { margin: 0 0 .25rem; color: var(--soft); font-style: italic; }
h1 { margin: 0; font-size: clamp(1.6rem, 1.2rem + 2vw, 2.4rem); font-weight: 600; line-height: 1.2;
  text-wrap: balance; overflow-wrap: anywhere; }
h2 { margin: 3rem 0 .75rem; font-size: 1.35rem; font-weight: 600; line-height: 1.3; }
p { margin: .75rem 0; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .3rem 1.5rem; margin: 1rem 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
code, pre { font-family: var(--mono); font-size: .875em; }
code { white-space: pre-wrap; }
code span { display: inline-block; max-width: 100%; overflow-wrap: anywhere; }
pre { margin: .75rem 0; padding: 1rem; background: var(--wash); line-height: 1.5; tab-size: 2; }
.counts { display: flex; flex-wrap: wrap; gap: 1rem 2.75rem; margin: 1rem 0; padding: 0; list-style: none; }
.counts li { max-width: 13rem; line-height: 1.3; }
.counts b { display: block; font: 600 2rem/1.2 var(--sans); font-variant-numeric: tabular-nums;
  white-space: nowrap; }
.counts span { color: var(--soft); }
.counts .confirmed b, .verdict.confirmed { color: var(--confirmed); }
.counts .refuted b, .verdict.refuted { color: var(--refuted); }
.counts .undecided b, .verdict.undecided { color: var(--undecided); }
.counts .not-run b, .verdict.not-run { color: var(--not-run); }
.verdict { font-weight: 600; white-space: nowrap; }
.scroll { overflow-x: auto; margin: 1rem 0 1.5rem; }
.scroll:focus-visible, button:focus-visible, summary:focus-visible {
  outline: 2px solid currentColor; outline-offset: 2px; }
table { border-collapse: separate; border-spacing: 0;
  font: .9375rem/1.4 var(--sans); font-variant-numeric: tabular-nums lining-nums; }
caption { padding-bottom: .5rem; text-align: left; font: italic 1rem/1.5 var(--serif); color: var(--soft); }
caption span { position: sticky; left: 0; display: block; max-width: min(46rem, 100vw - 2rem); }
th, td { padding: .375rem .75rem; text-align: left; vertical-align: top; font-weight: inherit; }
tr > :first-child { padding-left: .25rem; }
thead th { padding-top: .25rem; padding-bottom: .25rem; border-top: 2px solid var(--ink);
  border-bottom: 1px solid var(--ink); vertical-align: bottom; background: var(--paper); }
tbody tr + tr > * { border-top: 1px solid var(--rule); }
tbody tr:last-child > * { border-bottom: 2px solid var(--ink); }
.number { text-align: right; white-space: nowrap; }
.half { display: inline-block; color: var(--soft); }
.name { position: sticky; left: 0; background: var(--paper); white-space: nowrap; }
.short { white-space: nowrap; }
.long { min-width: 17rem; overflow-wrap: anywhere; text-wrap: pretty; }
.none { color: var(--soft); }
tbody tr:hover > * { background: var(--wash); }
th button { margin: 0; padding: .25rem 0; border: 0; background: none; color: inherit; font: inherit;
  font-weight: 600; text-align: inherit; cursor: pointer; }
thead button::before, thead button::after { color: var(--soft); font-weight: 400; opacity: .55; }
thead [aria-sort] button::before, thead [aria-sort] button::after { color: inherit; opacity: 1; }
thead { --arrow: "\\2195"; }
thead [aria-sort=ascending] { --arrow: "\\2191"; }
thead [aria-sort=descending] { --arrow: "\\2193"; }
thead th:not(.number) button::after { content: "\\2002" var(--arrow); }
thead .number button::before { content: var(--arrow) "\\2002"; }
@supports (content: "" / "") {
  thead th:not(.number) button::after { content: "\\2002" var(--arrow) / ""; }
  thead .number button::before { content: var(--arrow) "\\2002" / ""; }
}
figure { max-width: 46rem; margin: 1.5rem 0 2.5rem; }
.plate { background: #fff; }
.plate img { display: block; max-width: 100%; height: auto; }
figcaption { margin-top: .6rem; color: var(--soft); overflow-wrap: anywhere; }
figcaption b { color: var(--ink); font-weight: 600; }
summary { padding: .25rem 0; cursor: pointer; }
footer { margin-top: 4rem; padding-top: .75rem; border-top: 1px solid var(--rule); color: var(--soft);
  font-size: 1rem; }
@media (prefers-color-scheme: dark) { .plate { padding: .75rem; border-radius: 4px; } }
@media (max-width: 40rem) {
  h2 { margin-top: 2.25rem; }
  th, td { padding: .375rem .5rem; }
  .wide { min-width: 8.5rem; max-width: 11rem; white-space: normal; overflow-wrap: anywhere; }
  .short { white-space: nowrap; }
.long { min-width: 13rem; }
  .counts { gap: 1rem 1.75rem; }
  .counts b { font-size: 1.6rem; }
}
@media print {
  .scroll { overflow: visible; }
  figure, tr { break-inside: avoid; }
  th button::after, th button::before { content: none !important; }
}
"""

_SCRIPT = """
"use strict";
const text = new Intl.Collator(undefined, {numeric: true});

function value(row, column) {
  const cell = row.cells[column];
  return cell.dataset.value ?? cell.textContent;
}

function sort(table, column, direction, numeric) {
  const rows = [...table.tBodies[0].rows];
  for (const [place, row] of rows.entries()) row.dataset.place ??= place;
  rows.sort((one, other) => {
    const places = one.dataset.place - other.dataset.place;
    if (!direction) return places;
    const [a, b] = [value(one, column), value(other, column)];
    if (a === "" || b === "") return (a === "") - (b === "") || places;
    return direction * (numeric ? Number(a) - Number(b) || 0 : text.compare(a, b)) || places;
  });
  table.tBodies[0].append(...rows);
}

for (const button of document.querySelectorAll("thead button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th");
    const next = {ascending: "descending", descending: ""}[head.getAttribute("aria-sort")] ?? "ascending";
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    if (next) head.setAttribute("aria-sort", next);
    const direction = {ascending: 1, descending: -1, "": 0}[next];
    sort(head.closest("table"), head.cellIndex, direction, head.classList.contains("number"));
  });
}
"""
