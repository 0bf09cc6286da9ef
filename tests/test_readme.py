"""README and docs: their Python runs as it stands, their links lead somewhere, the two commands are first."""

import functools
import pathlib
import re

import numpy as np
import pytest
import rich.console

from dropbn.nn import layers, noise, norm

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def _run(page, section=""):
    """The names that the page's Python defines, or that of one of its sections."""
    text = (ROOT / page).read_text()
    if section:
        (text,) = re.findall(rf"^## {section}\n(.*?)^## ", text, re.DOTALL | re.MULTILINE)
    names = {}
    exec(compile("\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)), page, "exec"), names)
    return names


def test_the_readmes_model_is_measured_and_repaired():
    names = _run("README.md")
    # Dropout 0.5 directly before BN, on a convolution's outputs of mean near 0: v / (v + (c^2 + v)).
    assert 0.47 < names["measured"].rows[0]["ratio"] < 0.51
    after = names["shift"].measure(names["net"], names["repaired"], [names["images"]])
    assert after.rows[0]["ratio"] == pytest.approx(1, abs=1e-5)
    [row] = names["lint"].check(names["net"], names["images"]).errors()
    assert (row["code"], row["ratio"]) == ("DBN101", 0.5)


def test_an_nnx_model_is_measured_and_repaired():
    names = _run("docs/diagnose.md", "NNX")
    # Dropout 0.5 directly before BN, on a convolution's outputs of mean near 0.
    assert 0.47 < names["predicted"].rows[0]["ratio"] < 0.51
    assert 0.47 < names["measured"].rows[0]["ratio"] < 0.51
    measure = names["shift"].measure
    assert measure(names["repaired"], [names["images"]]).rows[0]["ratio"] == pytest.approx(1, abs=1e-5)
    assert (
        type(names["gentle"].dropout).__name__ == "Uout" and type(names["net"].dropout).__name__ == "Dropout"
    )


def test_the_layers_run():
    names = _run("docs/layers.md")
    # Uout 0.5 directly before BN: v / (v + s2 (c^2 + v)) with s2 = 1/12 and the convolution's c near 0.
    assert 0.9 < names["found"].rows[0]["ratio"] < 0.94
    assert names["y"].shape == (256, 4, 4, 32)
    linen = names["block"].clone(parts=layers.Parts(norm.BatchNorm, functools.partial(noise.Dropout, 0.2)))
    np.testing.assert_array_equal(names["tested"], linen.apply(names["linen_variables"], names["images"]))
    assert (names["trained"] != names["tested"]).any()


@pytest.mark.filterwarnings("ignore:'backbone_bn' is called in training")
def test_models_are_called_as_the_diagnosis_says(capsys, monkeypatch):
    # rich.print keeps one console, which another test may have made for another width.
    monkeypatch.setattr("rich._console", rich.console.Console(width=120))
    names = _run("docs/diagnose.md", "How your model is called")
    assert names["found"].rows == names["same"].rows
    # Dropout directly before BN, on inputs of mean 0 but for the sample: 1 - rate.
    for found, rate in (("found", 0.2), ("encoder", 0.3), ("by_pair", 0.5)):
        assert names[found].rows[0]["ratio"] == pytest.approx(1 - rate, abs=0.02)
    assert names["decoded"].mean.shape == names["observations"].shape

    def words(line):  # Here the page itself is the user's file.
        return tuple(re.sub(r"\w+\.\w+:\d+|─+", "", line).split())

    printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    page = map(words, (ROOT / "docs" / "diagnose.md").read_text().splitlines())
    assert printed[0].startswith("Finetuned") and {*map(words, printed[:8])} <= {*page}
    assert names["sampled"].rows[0].keys() == {"image", "prediction", "variance", "spread"}


def test_two_commands_install_and_run():
    first, second = re.findall(r"```\n(python3 -m venv .*?)\n```", README, re.DOTALL)
    assert first.endswith("train.py --config=configs/digits.py")
    assert "pytest" in second
    ci = (ROOT / ".ci" / "run").read_text()
    for words in ("-r tests/requirements.txt", "-m pytest -n 2", "train.py --config=configs/digits.py"):
        assert words in ci and words in first + second
    assert len(README.splitlines()) <= 130


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), target
