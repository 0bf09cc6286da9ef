"""README and docs: their Python runs as it stands, their links lead somewhere, the two commands are first."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def _run(page):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    names = {}
    exec(compile(code, page, "exec"), names)
    return names


def test_the_readmes_model_is_measured_and_repaired():
    names = _run("README.md")
    # Dropout 0.5 directly before BN, on a convolution's outputs of mean near 0: v / (v + (c^2 + v)).
    assert 0.47 < names["measured"].rows[0]["ratio"] < 0.51
    after = names["shift"].measure(names["net"], names["repaired"], [names["images"]])
    assert after.rows[0]["ratio"] == pytest.approx(1, abs=1e-5)
    [row] = names["lint"].check(names["net"], names["images"]).errors()
    assert (row["code"], row["ratio"]) == ("DBN101", 0.5)


def test_the_layers_run():
    names = _run("docs/layers.md")
    # Uout 0.5 directly before BN: v / (v + s2 (c^2 + v)) with s2 = 1/12 and the convolution's c near 0.
    assert 0.9 < names["found"].rows[0]["ratio"] < 0.94
    assert names["y"].shape == (256, 4, 4, 32)


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
