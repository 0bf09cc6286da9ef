"""The tables of docs/results follow from the members that are committed beside them, without training."""

import pathlib

import pytest

from configs import noises, open_questions, small
from dropbn.results import Result
from dropbn.study import finished_runs, provenance, table, table_text, verdicts
from dropbn.train import workdir

RESULTS = pathlib.Path(__file__).parents[2] / "docs" / "results"


@pytest.mark.parametrize(
    ("module", "name", "directory"),
    [
        (small, "digits", "digits"),
        (small, "digits_few", "digits_few"),
        (small, "widths", "widths"),
        (small, "cifar10", "cifar10"),
        (noises, "digits", "noises"),
        (open_questions, "all", "open_questions"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_committed_members_give_the_committed_table(module, name, directory):
    published = finished_runs.published(RESULTS / directory)
    listed = module.sweep(name)
    is_whole = published.keys() == {cell["arg"] for cell in listed}
    is_part = published.keys() < {cell["arg"] for cell in listed}
    assert is_whole or (directory in ("cifar10", "noises") and is_part)
    cells = [
        finished_runs.cell(cell["arg"], cell["paper"], [], published.get(cell["arg"], [])) for cell in listed
    ]
    provenance.refuse_several_editions(cells)
    comparable = getattr(module, "COMPARABLE", True)
    rows = [
        table.row(cell, "accuracy", told.get("adjusted"), comparable)
        for cell, told in zip(cells, listed, strict=True)
    ]
    assert Result(rows).to_csv() == (RESULTS / directory / "table.csv").read_text()
    judged = {"claims": verdicts.judge(module.claims(name), cells), "comparable": comparable}
    text = (RESULTS / directory / "table.md").read_text()
    for row in table_text.formatted(table_text.claim_rows(judged)):
        assert f"| {' | '.join(value.replace('|', chr(92) + '|') for value in row.values())} |" in text


@pytest.mark.parametrize("name", ["digits", "digits_few", "widths"])
def test_configs_keep_the_digests_of_committed_members(name):
    for arg, of_cell in finished_runs.published(RESULTS / name).items():
        config = small.get_config(f"{arg},seed={of_cell[-1].seed}")
        config.model.num_classes = 10  # That of the data.
        assert workdir.digest(config) == of_cell[-1].provenance["config"], arg
