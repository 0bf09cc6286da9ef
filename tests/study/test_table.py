"""A table of two cells, computed by hand."""

import json

import pytest

from configs import small
from dropbn.study import claims, finished_runs, table


def test_a_table_by_hand(tmp_path):
    def member(seed, accuracy, adjusted, ratios):
        rows = [{"layer": "bn", "ratio": ratio} for ratio in ratios]
        records = [{"epoch": 1.0, "train/accuracy": 0.9, "train/accuracy_test_mode": 0.8}]
        summary = {"accuracy": accuracy, "shift": rows, "weights": []}
        summary["recalibrated"] = {"li2018_torch": adjusted}
        return finished_runs.member(seed, records, summary)

    config = small.get_config("preresnet8,digits").to_dict()
    plain = finished_runs.Cell(
        "plain", config, 95.0, [member(0, 0.9, 0.9, [1.0]), member(1, 0.94, 0.93, [0.8, 1.1])]
    )
    noisy = finished_runs.Cell(
        "noisy", config, None, [member(0, 0.8, 0.9, [0.5]), member(1, 0.85, 0.9, [0.4, 1.0])]
    )
    row = table.row(plain, "accuracy", 96.5)
    # t_{0.975, 1} = 12.7062; s of (90, 94) is 2.8284, so the half width is 12.7062 * 2.8284 / sqrt(2).
    assert (row["seeds"], row["value"]) == (2, pytest.approx(92))
    assert row["value_interval"] == pytest.approx(25.4124, abs=1e-3)
    assert (row["paper"], row["difference"], row["paper_adjusted"]) == (95.0, pytest.approx(-3), 96.5)
    assert row["shift"] == pytest.approx((1 + 1.25) / 2)
    assert table.row(plain, "error")["value"] == pytest.approx(8)
    assert row.keys() - table.row(plain, "accuracy", 96.5, comparable=False).keys() == {
        "paper",
        "difference",
        "paper_adjusted",
    }
    empty = table.row(plain._replace(members=[]), "accuracy")
    assert (empty["seeds"], empty["value"], empty["difference"], empty["shift"]) == (0, None, None, None)

    claim = claims.Claim("plain above noisy", "plain", "noisy", "accuracy", "a source", 3.0)
    facts = {
        "command": "python -m dropbn study",
        "seeds": [0, 1],
        "failed": [],
        "unfinished": 1,
        "config": "",
    }
    cells, given = [plain, noisy], ({"plain": 96.5}, [claim])
    found = table.collect("A title", "accuracy", cells, True, *given, **facts)
    table.write(tmp_path, found, cells, "accuracy")
    [judged] = found["claims"]
    assert (judged["difference"], judged["seeds"]) == (pytest.approx(9.5), 2)
    # 10 and 9 points: s = 0.7071, half width 12.7062 * 0.7071 / sqrt(2) = 6.3531.
    assert judged["interval"] == pytest.approx(6.3531, abs=1e-3)
    assert judged["verdict"] == "confirmed"
    assert json.loads((tmp_path / "table.json").read_text()) == found
    text = (tmp_path / "table.md").read_text()
    assert "| plain | 2 | 92.00 +- 25.41 | 95.00 | -3.00 |" in text
    assert "Not run: 1 member." in text and "recalibrated |" not in text
    assert (
        (tmp_path / "table.csv")
        .read_text()
        .splitlines()[0]
        .startswith("cell,seeds,value,value_interval,paper")
    )
    # One claim is its own family. t = 9.5 / 0.5 of one degree of freedom: p = 1 - 2 atan(t) / pi = 0.0335.
    assert "| plain above noisy | confirmed | 9.50 +- 6.35 | 3.00 | a source | accuracy |" in text
    assert "| seeds, images unknown | 2 | 0.50 | 0.033 | 0.033 | 0.033 |" in text
    assert "interval, which is not adjusted for the number of claims" in text
    assert "| claim | verdict | difference | paper | source | metric |" in text

    other = tmp_path / "other"
    found = table.collect("A title", "accuracy", cells, False, *given, **facts)
    table.write(other, found, cells, "accuracy")
    text = (other / "table.md").read_text()
    assert "| cell | seeds | value | adjusted | shift |" in text and "96.50" not in text
    assert "| difference | paper (other network and data) | source | metric |" in text
    assert "paper" not in (other / "table.csv").read_text()
