"""The page of a workdir: what it shows, that it needs nothing else, and that a browser sorts its tables."""

# ruff: noqa: RUF001 (minus signs and dashes are what the page shows)

import base64
import copy
import hashlib
import html.parser
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree

import pytest
from matplotlib.figure import Figure

from dropbn import __version__
from dropbn.errors import DropbnError
from dropbn.page import run as run_page
from dropbn.page.command import write_page
from dropbn.page.tables import table_of_rows

ROOT = pathlib.Path(__file__).parents[2]
NASTY = "<script>alert(\"1\")</script> & 'Ünïcode' σ² </table>"
VOID = {"meta", "link", "img", "wbr"}


class Document(html.parser.HTMLParser):
    """A page as a reader sees it; raises if tags do not nest.

    Attributes:
      tables: of each its "caption", "heads" and "rows": (text, data-value) of every cell.
      texts: tag -> the texts of its elements.
      attributes: (tag, attributes) of every element.
    """

    def __init__(self, text):
        super().__init__()
        self.open, self.tables, self.texts, self.attributes = [], [], {}, []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.attributes.append((tag, attributes))
        if tag in VOID:
            return
        self.open.append((tag, [], attributes))
        if tag == "table":
            self.tables.append({"caption": "", "heads": [], "rows": []})
        elif tag == "tr":
            self.tables[-1]["rows"].append([])

    def handle_data(self, data):
        for _, pieces, _ in self.open:
            pieces.append(data)

    def handle_endtag(self, tag):
        last, pieces, attributes = self.open.pop()
        assert last == tag, f"</{tag}> closes <{last}>"
        text = "".join(pieces)
        self.texts.setdefault(tag, []).append(text)
        if tag == "caption":
            self.tables[-1]["caption"] = text
        elif tag == "thead":
            self.tables[-1]["heads"] = [cell for cell, _ in self.tables[-1]["rows"].pop()]
        elif tag in ("td", "th"):
            self.tables[-1]["rows"][-1].append((" ".join(text.split()), attributes.get("data-value")))

    def all(self, tag):
        return [attributes for name, attributes in self.attributes if name == tag]


def _hash(text):
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _document(workdir):
    return Document(write_page(workdir).read_text(encoding="utf-8"))


def _image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(1, 1))
    figure.add_subplot().plot([0, 1])
    figure.savefig(path, dpi=30)


ROWS = [
    {"cell": "net,digits", "seeds": 5, "value": 9.5, "interval": 0.25, "paper": 94.77, "shift": 1.012},
    {"cell": "net,digits,place=P10", "seeds": 5, "value": 100.0, "interval": 0.125, "paper": None},
    {"cell": "net,digits,place=P2", "seeds": 0, "value": None, "interval": None, "paper": None},
    {"cell": NASTY, "seeds": 1234, "value": -2.0625, "interval": None, "paper": 9.0, "shift": 0.5},
    {"cell": "net,digits,place=P0", "seeds": 5, "value": 9.25, "interval": 0.5, "paper": None},
]
CLAIMS = [
    {"claim": "P5 is best", "source": "Kim & al.", "metric": "ratio", "paper": 1.5, "difference": 0.125}
    | {"interval": 0.5, "seeds": 5, "verdict": verdict}
    for verdict in ("undecided", "confirmed", "confirmed", "refuted")
] + [
    {"claim": NASTY, "source": "", "metric": "ratio", "paper": None, "difference": None}
    | {"interval": None, "seeds": 0, "verdict": "not run"}
]


@pytest.fixture
def study(tmp_path):
    """The workdir of a study with two figures, one of which is missing."""
    workdir = tmp_path / "a study"
    _image(workdir / "figures" / "shift.png")
    table = {
        "title": f"Title {NASTY}",
        "config": "configs/small.py:digits",
        "command": "python -m dropbn study --workdir='a study'",
        "metric": "test accuracy, %",
        "seeds": [0, 1, 2],
        "device": "2-core x86 CPU",
        "versions": {"python": "3.11.9", "jax": "0.10.2"},
        "date": "2026-11-21",
        "rows": [row | {"adjusted": None, "adjusted_interval": None} for row in ROWS],
        "claims": CLAIMS,
        "figures": [
            {"file": "figures/shift.png", "caption": f"Shift {NASTY}"},
            {"file": "figures/go<ne.png", "caption": "Removed."},
        ],
        "failed": [{"member": "net,digits,seed=3", "error": f"Traceback:\n  {NASTY}\nKeyError: {NASTY}"}],
        "unfinished": 2,
    }
    (workdir / "table.json").write_text(json.dumps(table))
    return workdir


@pytest.fixture
def run(tmp_path):
    """The workdir of an evaluated run of two epochs, as train.py and eval.py leave it."""
    from configs import digits

    workdir = tmp_path / "run"
    _image(workdir / "eval" / "shift.png")
    config = digits.get_config()
    (workdir / "config.json").write_text(json.dumps(config.to_dict()))
    records = [
        {"step": 22 * i, "epoch": float(i), "train/accuracy": 0.25 * i, "train/loss": 2.5 / i}
        | {"train/accuracy_test_mode": 0.375 * i, "test/accuracy": 0.34375 * i}
        for i in (1, 2)
    ]
    torn = '{"step": 66, "ep'
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records) + torn)
    shift = [{"layer": f"stage{i}/bn", "count": 5748, "ratio": 1 / (1 + i)} for i in range(3)]
    flips = [{"image": i, "loss_train_mode": 0.5, "loss_test_mode": 1.0} for i in range(30)]
    found = {
        "evaluation_grid": [{"noise": "off", "batch_norm": "running", "accuracy": 0.75, "loss": 1e-9}],
        "gap": [{"cause": "variance shift", "accuracy": -0.0625, "error": 0.0078125}],
        "remedies": [{"remedy": "batch statistics", "gain": 0.125, "error": None, "call": f"f({NASTY})"}],
        "advice": f"The largest gain: {NASTY}",
        "flips": 0.0223,
        "flipped_images": flips,
        "shift": shift,
        "shift_li2018": shift,
        "something_new": [{"name": "new", "amount": 7}],
        "config": config.to_dict(),
        "checkpoint_step": 44,
    }
    (workdir / "eval" / "report.json").write_text(json.dumps(found))
    return workdir


def test_a_study_shows_all_it_holds(study):
    found = _document(study)
    assert found.texts["title"] == found.texts["h1"] == [f"Title {NASTY}"]
    order = ["What was run", "Verdicts", "Claims", "Results", "Figures", "Failed members"]
    assert found.texts["h2"] == order
    terms = dict(zip(found.texts["dt"], found.texts["dd"], strict=True))
    assert terms["command"] == "python -m dropbn study --workdir='a study'"
    assert terms["seeds"] == "0, 1, 2" and terms["versions"] == "python 3.11.9, jax 0.10.2"
    assert terms["date"] == "2026-11-21" and terms["device"] == "2-core x86 CPU"
    counts = [" ".join(text.split()) for text in found.texts["li"]]
    assert counts == [
        "2 confirmed",
        "0 confirmed, smaller here",
        "1 refuted",
        "0 smaller here",
        "1 undecided",
        "1 not run",
    ]
    assert terms["unfinished"] == "2 members; the tables hold the others"
    assert found.texts["footer"] == [f"Made by dropbn {__version__}."]

    claims, results, failed = found.tables
    assert claims["heads"] == ["claim", "verdict", "difference", "paper", "source", "metric", "seeds"]
    row = ["P5 is best", "undecided", "0.12 ± 0.50", "1.5", "Kim & al.", "ratio", "5"]
    assert [text for text, _ in claims["rows"][0]] == row
    assert [text for text, _ in claims["rows"][-1]] == [NASTY, "not run", "–", "–", "", "ratio", "0"]
    assert "value: test accuracy, %; shift: the largest max(r, 1/r)" in results["caption"]
    assert results["heads"] == ["cell", "seeds", "value", "paper", "shift"]  # None is adjusted.
    assert [text for text, _ in results["rows"][0]] == ["net,digits", "5", "9.50 ± 0.25", "94.77", "1.012"]
    assert [text for text, _ in results["rows"][3]] == [NASTY, "1,234", "−2.06", "9.00", "0.500"]
    assert [value for _, value in results["rows"][3]] == [NASTY, "1234", "-2.0625", "9.0", "0.5"]
    assert results["rows"][2][2] == ("–", "")
    assert failed["rows"] == [[(text, text) for text in ("net,digits,seed=3", f"KeyError: {NASTY}")]]
    assert found.texts["pre"] == [f"Traceback:\n  {NASTY}\nKeyError: {NASTY}"]

    (image,) = found.all("img")
    kind, _, data = image["src"].partition(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data) == (study / "figures" / "shift.png").read_bytes()
    assert found.texts["figcaption"] == [image["alt"]] == [f"Figure 1. Shift {NASTY}"]
    assert any("The file figures/go<ne.png cannot be read." in text for text in found.texts["p"])


@pytest.mark.parametrize("kind", ["study", "run"])
def test_a_page_needs_nothing_else(kind, request):
    workdir = request.getfixturevalue(kind)
    found = _document(workdir)
    (policy,) = [meta["content"] for meta in found.all("meta") if "http-equiv" in meta]
    style, script = (_hash(found.texts[tag][0]) for tag in ("style", "script"))
    assert " ".join(policy.split()) == (
        f"default-src 'none'; img-src data:; style-src '{style}'; script-src '{script}'; base-uri 'none'; "
        "form-action 'none'"
    )
    assert "width=device-width" in next(
        m["content"] for m in found.all("meta") if m.get("name") == "viewport"
    )
    assert found.all("html") == [{"lang": "en"}] and len(found.all("main")) == 1
    for _, attributes in found.attributes:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            assert attributes.get(name, "data:").startswith("data:")
        assert not any(name.startswith("on") for name in attributes)
        assert "style" not in attributes  # A hash would not allow it.
    (style,), (script,) = found.texts["style"], found.texts["script"]
    assert "url(" not in style and "@import" not in style and "prefers-color-scheme: dark" in style
    assert not re.search(r"fetch|XMLHttp|import|http", script)
    assert all(image["alt"] for image in found.all("img"))
    assert len(found.all("caption")) == len(found.all("table")) > 2
    heads = [attributes for attributes in found.all("th") if attributes.get("scope") == "col"]
    assert len(heads) == len(found.all("button")) and {b["type"] for b in found.all("button")} == {"button"}


def test_a_run_shows_all_it_holds(run):
    found = _document(run)
    assert found.texts["h1"] == ["preresnet on digits"]
    order = ["What was run", "Final numbers", "Training", "Evaluation", "Figures", "Config"]
    assert found.texts["h2"] == order
    terms = dict(zip(found.texts["dt"], found.texts["dd"], strict=True))
    assert terms["network"] == "preresnet, depth 20, width 16" and terms["noise"] == "dropout 0.5"
    assert terms["place"] == "block [bn relu conv drop bn relu conv | conv]" and terms["seed"] == "0"
    assert terms["evaluated"] == "the checkpoint of step 44"
    numbers = [text.split()[0] for text in found.texts["li"]]
    assert numbers == ["68.75", "50.00", "75.00", "0.333"]

    tables = {table["caption"].partition(":")[0]: table for table in found.tables}
    metrics = tables["Metrics by epoch"]
    assert metrics["heads"][:3] == ["step", "epoch", "train accuracy"]
    assert [text for text, _ in metrics["rows"][1]] == ["44", "2", "0.50", "1.25", "0.750", "0.6875"]
    assert tables["Evaluation grid"]["rows"][0][-2:] == [("0.75", "0.75"), ("1e−09", "1e-09")]
    layer = tables["Variance shift of every BN layer"]["rows"][2]
    assert layer == [("stage2/bn", "stage2/bn"), ("5,748", "5748"), ("0.3333", str(1 / 3))]
    assert tables["something_new"]["rows"] == [[("new", "new"), ("7", "7")]]
    paragraphs = "\n".join(found.texts["p"])
    remedy = tables["The gain of each remedy on test images"]["rows"][0]
    assert remedy == [(text, text) for text in ("batch statistics", "0.125", f"f({NASTY})")]
    assert f"The largest gain: {NASTY}" in paragraphs and "2.23 % of the training images" in paragraphs
    config, flips = (next(s for s in found.texts["details"] if words in s) for words in ("config", "30 rows"))
    assert json.loads(config.partition("config.json")[2])["model"]["noise"]["rate"] == 0.5
    assert "Images that are right in train mode" in flips
    curve, _ = found.all("img")
    drawn = base64.b64decode(curve["src"].removeprefix("data:image/svg+xml;base64,"))
    assert xml.etree.ElementTree.fromstring(drawn).tag.endswith("svg")
    assert found.texts["figcaption"] == ["By epoch: accuracy in %.", "Figure 1. The shift of every BN layer."]
    assert write_page(run).read_bytes() == write_page(run).read_bytes()


def _leaves(tree, path=()):
    """The path of every leaf of nested lists and dicts."""
    if isinstance(tree, dict | list):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _leaves(value, (*path, key))
    else:
        yield path


def _with(tree, path, leaf):
    """A copy of the tree with another leaf."""
    tree = inner = copy.deepcopy(tree)
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = leaf
    return tree


@pytest.mark.parametrize(
    ("kind", "file"),
    [("study", "table.json"), ("run", "config.json"), ("run", "eval/report.json"), ("run", "metrics.jsonl")],
)
def test_no_value_becomes_an_element(kind, file, request, monkeypatch):
    """Each value in turn is markup, or something else of another kind: it is shown, or refused."""
    monkeypatch.setattr(run_page, "curve", lambda records, score: b"")  # It takes long.
    path = request.getfixturevalue(kind) / file
    (whole, *_) = path.read_text().splitlines()
    whole, shown, before = json.loads(whole), 0, _document(path.parents[file.count("/")])
    tags = {tag for tag, _ in before.attributes}
    names = {name for _, attributes in before.attributes for name in attributes}
    if file == "eval/report.json":
        del whole["config"]  # It is not shown.
    leaves = [leaf for leaf in _leaves(whole) if not {*leaf} & {*range(1, 99)}]  # Of rows the first.
    for leaf in leaves:
        for value in ("\"'><script>evil()</script><img src=x onerror=evil()>", [{"<b>": "<i>"}]):
            path.write_text(json.dumps(_with(whole, leaf, value)) + "\n")
            try:
                found = _document(path.parents[file.count("/")])
            except DropbnError:
                continue
            assert {tag for tag, _ in found.attributes} <= tags, leaf
            assert {name for _, attributes in found.attributes for name in attributes} <= names, leaf
            assert len(found.all("script")) == 1
            shown += any("evil()" in text for texts in found.texts.values() for text in texts[1:])
    assert shown or file == "metrics.jsonl"  # Whose values are numbers, or it is refused.


def test_only_images_in_the_workdir_are_shown(study, tmp_path):
    """table.json names files, eval/ may hold anything: none of it is embedded unless it is a PNG of ours."""
    image = (study / "figures" / "shift.png").read_bytes()
    (tmp_path / "outside.png").write_bytes(image)
    (study / "figures" / "link.png").symlink_to(tmp_path / "outside.png")
    (study / "figures" / "inside.png").symlink_to("shift.png")
    (study / "out").symlink_to(tmp_path)
    (study / "loop.png").symlink_to("loop.png")
    (study / "notes.png").write_text("secret")
    os.mkfifo(study / "pipe.png")
    with (study / "large.png").open("wb") as file:
        file.write(image)
        file.truncate(21 * 1024**2)
    given = ["../outside.png", str(tmp_path / "outside.png"), "/etc/passwd", "/dev/zero", "x" * 5000, "\0"]
    given += ["figures/link.png", "out/outside.png", "loop.png", "notes.png", "pipe.png", "large.png", "."]
    shown = [
        "figures/shift.png",
        "figures/inside.png",
        "figures/../figures/shift.png",
        str(study / "figures/shift.png"),
    ]
    table = {"figures": [{"file": file, "caption": "a figure"} for file in (*given, *shown)]}
    (study / "table.json").write_text(json.dumps(table))
    found = _document(study)
    refused = [text for text in found.texts["p"] if "cannot be read" in text]
    assert len(refused) == len(given) and all(file in text for file, text in zip(given, refused, strict=True))
    sources = [image["src"] for image in found.all("img")]
    assert sources == ["data:image/png;base64," + base64.b64encode(image).decode()] * len(shown)


@pytest.mark.parametrize(
    "text",
    [
        '{"rows": 5}',
        '{"rows": [{"a": 1, "a_interval": "x"}]}',
        '{"figures": [{"file": 3, "caption": ""}]}',
        '{"figures": [{}]}',
        '{"claims": [{}]}',
        '{"failed": [{"member": [], "error": ""}]}',
        f'{{"rows": [{{"value": 1{"0" * 400}}}]}}',
        '{"rows": [{"value": NaN, "value_interval": Infinity}]}',
        '{"title": 5, "seeds": {"a": 1}, "unfinished": -1, "metric": []}',
    ],
)
def test_fields_that_dropbn_does_not_write(tmp_path, text):
    (tmp_path / "table.json").write_text(text)
    try:
        write_page(tmp_path)
    except DropbnError as error:
        assert re.match(r"No page can be made of .*: its files do not hold what dropbn writes \(", str(error))


def test_a_run_that_is_not_evaluated_or_has_only_begun(run):
    shutil.rmtree(run / "eval")
    found = _document(run)
    sentence = f"not been evaluated; python eval.py --workdir={run} measures"
    assert any(sentence in text for text in found.texts["p"]) and "Figures" not in found.texts["h2"]
    (run / "metrics.jsonl").unlink()
    found = _document(run)
    assert "No epoch is finished yet." in found.texts["p"] and not found.tables


def test_a_study_without_anything(tmp_path):
    (tmp_path / "table.json").write_text("{}")
    found = _document(tmp_path)
    assert not found.tables and "No cell has a result yet." in found.texts["p"]


def test_an_error_of_several_lines_begins_with_its_sentence(tmp_path):
    error = "W holds a run of another config.\n  seed: 0 there, 1 now"
    (tmp_path / "table.json").write_text(json.dumps({"failed": [{"member": "net", "error": error}]}))
    found = _document(tmp_path)
    assert [text for text, _ in found.tables[0]["rows"][0]] == ["net", error.splitlines()[0]]
    assert found.texts["pre"] == [error]


def test_what_a_study_of_another_network_heads_its_claims_with(study):
    file = study / "table.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"comparable": False}))
    claims = _document(study).tables[0]
    assert claims["heads"][2:4] == ["difference", "paper (other network and data)"]
    assert [text for text, _ in claims["rows"][0]][2:4] == ["0.12 ± 0.50", "1.5"]
    assert "interval, which is not adjusted for the number of claims" in claims["caption"]


def test_the_answer_to_a_question_is_counted(tmp_path):
    (tmp_path / "table.json").write_text('{"claims": [{"claim": "P5 against P4", "verdict": "more"}]}')
    counts = [text.split() for text in _document(tmp_path).texts["li"]]
    assert counts[-2:] == [["0", "not", "run"], ["1", "more"]]


def _column(*values, widths=None):
    rows = [{"x": value} for value in values]
    for row, width in zip(rows, widths or (), strict=False):
        row["x_interval"] = width
    found = Document(table_of_rows(rows, "caption"))
    return [row[0][0] for row in found.tables[0]["rows"]]


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ((0.8086, 0.75), ["0.8086", "0.7500"]),
        ((10.549, 0.19779), ["10.549", "0.198"]),
        ((-0.0723712, 0.0091), ["−0.07237", "0.00910"]),
        ((93.5, 95.0), ["93.5", "95.0"]),
        ((1.0, 2.0), ["1", "2"]),
        ((1169.128, 1068.7, 9), ["1,169", "1,069", "9"]),
        ((0.0, -1e-9, 2.125), ["0.000", "0.000", "2.125"]),
        ((2e-9, None), ["2e−09", "–"]),
        ((1e30, 2.125, 3.5), ["1e+30", "2.125", "3.500"]),
        ((123456, -7), ["123,456", "−7"]),
        ((float("nan"), float("-inf"), 0.5), ["nan", "−inf", "0.5"]),
        ((True, False, None), ["True", "False", "–"]),
        (("text", 1.5, None), ["text", "1.5", "–"]),
    ],
)
def test_numbers_as_they_are_set(values, texts):
    assert _column(*values) == texts


@pytest.mark.parametrize(
    ("values", "widths", "texts"),
    [
        ((98.831, 7.0), (0.3111, 0.27), ["98.83 ± 0.31", "7.00 ± 0.27"]),
        ((1.87, 0.5124), (0.33, 0.0041), ["1.87 ± 0.33", "0.512 ± 0.004"]),
        ((-0.001, 50.0), (0.1, None), ["0.00 ± 0.10", "50.00"]),
        ((5.0, 6.0), (0.0, None), ["5 ± 0", "6"]),
        ((98.6111, 97.0), (1e-14, 0.25), ["98.61 ± 0.00", "97.00 ± 0.25"]),
    ],
)
def test_means_and_half_widths_as_they_are_set(values, widths, texts):
    assert _column(*values, widths=widths) == texts


def test_refusals_leave_the_old_page(tmp_path, study):
    with pytest.raises(DropbnError, match=r"neither a study .* nor a run"):
        write_page(tmp_path)
    with pytest.raises(DropbnError, match=r"neither a study .* nor a run"):
        write_page(tmp_path / "missing")
    (tmp_path / "members").mkdir()
    with pytest.raises(DropbnError, match=rf"`python -m dropbn study .* --workdir={tmp_path}`"):
        write_page(tmp_path)
    before = write_page(study).read_bytes()
    (study / "table.json").write_text('{"rows": [')
    with pytest.raises(DropbnError, match=r"table\.json is not valid JSON"):
        write_page(study)
    assert (study / "report.html").read_bytes() == before
    (study / "table.json").write_text("[]")
    with pytest.raises(DropbnError, match="does not hold a JSON object"):
        write_page(study)
    (study / "table.json").write_text("{}")
    for output in (study / "figures", study / "missing" / "page.html"):
        with pytest.raises(DropbnError, match="Cannot write to"):
            write_page(study, output)
    assert not list(tmp_path.rglob("*.tmp"))
    (tmp_path / "config.json").write_text('{"some": "file"}')
    with pytest.raises(DropbnError, match="holds no run of dropbn"):
        write_page(tmp_path)


def test_the_command(study):
    output = study / "ä page.html"
    command = [sys.executable, "-m", "dropbn", "report", f"--workdir={study}", f"--output={output}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kilobytes = f"{output.stat().st_size / 1000:,.0f}"
    assert done.stdout == f"Written to {output} ({kilobytes} kB)\n"
    assert output.read_bytes() == write_page(study).read_bytes()
    (study / "table.json").rename(study / "members")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {study} ") and len(done.stderr.splitlines()) == 1


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# Clicks the heads of the table of results and puts down the order of its rows after each click.
CLICKS = """
const results = document.querySelectorAll("table")[1];
const heads = [...results.tHead.rows[0].cells];
const found = [];
for (const name of ["value", "value", "seeds", "cell", "value", "value", "value", "shift", "paper"]) {
  const head = heads.find(head => head.textContent === name);
  head.querySelector("button").click();
  const places = [...results.tBodies[0].rows].map(row => Number(row.dataset.place));
  found.push([name, heads.map(head => head.getAttribute("aria-sort")), places]);
}
const widths = [innerWidth, document.documentElement.scrollWidth];
const size = getComputedStyle(document.body).fontSize;
const shown = [...document.images].every(image => image.naturalWidth > 0);
document.title = JSON.stringify({found, widths, size, shown});
console.log("clicked");
"""


def _browsed(text, directory):
    """A page as chromium leaves it, and what it printed on its console."""
    file = directory / "page.html"
    file.write_text(text, encoding="utf-8")
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={directory / 'profile'}"]
    flags += ["--enable-logging=stderr", "--virtual-time-budget=2000", "--window-size=390,800"]
    flags += ["--disable-background-networking"]
    command = [CHROMIUM, *flags, "--dump-dom", f"file://{file}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return Document(done.stdout), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the PATH"
)


@needs_browser
def test_a_browser_runs_no_other_script(study, tmp_path):
    """Even if a value were not escaped: neither an element nor a handler."""
    evil = "<script>document.title = 1</script><img src=x onerror='document.title = 2' alt=x>"
    text = write_page(study).read_text(encoding="utf-8").replace("<main>", f"<main>{evil}")
    found, messages = _browsed(text, tmp_path)
    assert found.texts["title"] == [f"Title {NASTY}"]
    assert sum("Content Security Policy" in line for line in messages) >= 2, messages


@needs_browser
def test_a_browser_sorts_and_has_nothing_to_complain_about(study, tmp_path):
    text = write_page(study).read_text(encoding="utf-8")
    text = text.replace("script-src ", f"script-src '{_hash(CLICKS)}' ")
    text = text.replace("</body>", f"<script>{CLICKS}</script></body>")
    found, messages = _browsed(text, tmp_path)
    assert len(messages) == 1 and "clicked" in messages[0], messages

    seen = json.loads(found.texts["title"][0])
    assert seen["shown"] and float(seen["size"].removesuffix("px")) >= 16
    width, scrolled = seen["widths"]
    assert width <= 500 and scrolled <= width  # Wide tables scroll by themselves, the page does not.
    # Values in the order given: 9.5, 100, none, -2.0625, 9.25.
    up, down, given = [3, 4, 0, 1, 2], [1, 0, 4, 3, 2], [0, 1, 2, 3, 4]
    ascending, descending = ([None, None, how, None, None] for how in ("ascending", "descending"))
    by_cell = ["ascending", None, None, None, None]
    values = [step for step in seen["found"] if step[0] == "value"]
    assert values[0] == ["value", ascending, up] and values[1] == ["value", descending, down]
    assert values[2:] == [*values[:2], ["value", [None] * 5, given]]
    assert seen["found"][2][2] == [2, 0, 1, 4, 3]  # Equal numbers stand as they were given.
    assert seen["found"][3] == ["cell", by_cell, [3, 0, 4, 2, 1]]  # P2 before P10.
    assert [step[2] for step in seen["found"][-2:]] == [[3, 0, 1, 2, 4], [3, 0, 1, 2, 4]]
