"""The page of an examination, and the command that writes it and the repaired variables."""

import dataclasses
import os
import pathlib
import subprocess
import sys
import types

import flax
import jax.numpy as jnp
import numpy as np
import pytest
from test_page import NASTY, Document

from dropbn.diagnose.examine import examine
from dropbn.errors import DropbnError
from dropbn.page import examination
from dropbn.page import examine as command

ROOT = pathlib.Path(__file__).parents[2]
# A perceptron on two classes; its running variance is twice that of the data, as of dropout at rate 0.5.
NET = """
import flax.linen as nn
import numpy as np


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Dropout(0.5)(x, deterministic=not train)
        return nn.Dense(2)(nn.BatchNorm(use_running_average=not train)(x))


build = Net()
x = np.random.default_rng(0).normal(size=(4, 200, 3)).astype(np.float32)
batches = [(each, (each[:, 0] > 0).astype(int)) for each in x]


def once():
    yield from batches
"""
VARIABLES = {
    "params": {
        "BatchNorm_0": {"scale": jnp.ones(3), "bias": jnp.zeros(3)},
        "Dense_0": {"kernel": jnp.eye(3, 2)[:, ::-1], "bias": jnp.zeros(2)},
    },
    "batch_stats": {"BatchNorm_0": {"mean": jnp.zeros(3), "var": jnp.full(3, 2.0)}},
}


@pytest.fixture(scope="module")
def net():
    names = {"__name__": "net"}
    exec(NET, names)
    return names


@pytest.fixture(scope="module")
def found(net):
    return examine(net["build"], VARIABLES, net["batches"], net["batches"])


def test_the_page_shows_what_was_found(found):
    text = examination.page(dataclasses.replace(found, name=NASTY))
    assert text == examination.page(dataclasses.replace(found, name=NASTY))
    document = Document(text)
    assert document.texts["h1"] == [NASTY] and "<script>alert" not in text
    assert {sentence for sentence in [*found.verdict]} <= {*document.texts["p"]}
    assert f"Recommended: {found.recommendation}" in document.texts["p"]
    tables = {table["caption"]: table for table in document.tables}
    (((_, layer), *_),) = tables["Ratios, measured"]["rows"]
    assert layer == "BatchNorm_0"
    ratio = tables["Ratios, measured"]["heads"].index("ratio")
    assert float(tables["Ratios, measured"]["rows"][0][ratio][1]) == found.measured.rows[0]["ratio"]
    lost = [float(row[1][1]) for row in tables["Shares of the gap"]["rows"]]
    np.testing.assert_allclose(sum(lost[:-1]), lost[-1], atol=1e-9)
    assert lost[-1] == 100 * found.gap.shares.rows[-1]["accuracy"]
    gains = [float(row[3][1]) for row in tables["Gains on test data"]["rows"]]
    assert gains == [100 * row["gain"] for row in found.gap.remedies.rows]
    meanings = [attributes.get("title") for attributes in document.all("button")]
    assert any(meaning and "that it remembers" in meaning for meaning in meanings)


def test_steps_that_were_not_done_are_said(net):
    found = examine(net["build"], VARIABLES, net["batches"])
    document = Document(examination.page(found))
    said = "The step 'splitting the gap and trying remedies' was not done: No test batches were given."
    assert said in document.texts["p"]
    assert not any(table["caption"] == "Shares of the gap" for table in document.tables)


@pytest.mark.parametrize(
    "given", [{"repair": "dropout_off"}, {"save": "new"}, {"repair": "li2018", "save": "new"}]
)
def test_a_repair_needs_its_variables_its_batches_and_a_place(given, monkeypatch):
    asked = types.SimpleNamespace(repair=None, save=None, variables=None, batches=None)
    monkeypatch.setattr(command.flags, "FLAGS", types.SimpleNamespace(**{**vars(asked), **given}))
    with pytest.raises(DropbnError, match="give all four"):
        command.main("net:build")


def test_the_command_examines_and_repairs(tmp_path, net):
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "model.msgpack").write_bytes(flax.serialization.to_bytes({**VARIABLES, "step": 7}))
    flags = ["--batches=net:once", "--test=net:batches", "--variables=model.msgpack", "--html=page.html"]
    flags += ["--repair=dropout_off", "--save=repaired.msgpack"]
    command = [sys.executable, "-m", "dropbn", "examine", "net:build", *flags]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Recommended:" in done.stdout and "Written to page.html" in done.stdout
    assert Document((tmp_path / "page.html").read_text("utf-8")).texts["h1"] == ["Net"]
    repaired = flax.serialization.msgpack_restore((tmp_path / "repaired.msgpack").read_bytes())
    assert repaired["step"] == 7
    stats, x = repaired["batch_stats"]["BatchNorm_0"], np.concatenate([x for x, _ in net["batches"]])
    np.testing.assert_allclose(stats["mean"], x.mean(0), atol=1e-6)
    np.testing.assert_allclose(stats["var"], x.var(0), rtol=1e-5)
