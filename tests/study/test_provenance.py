"""What a run says it comes from, and what may not stand in one table."""

import pathlib
import subprocess

import pytest

from configs import small
from dropbn.errors import DropbnError
from dropbn.study import finished_runs, provenance

ROOT = pathlib.Path(__file__).parents[2]


def test_members_of_several_editions_are_no_table():
    def cell(*editions):
        members = [
            finished_runs.Finished(seed, {}, {}, {"edition": edition} if edition else {}, [], {})
            for seed, edition in enumerate(editions)
        ]
        return finished_runs.Cell("net,digits", {}, None, members)

    provenance.refuse_several_editions([cell("2", "2"), cell("2")])
    with pytest.raises(DropbnError, match="edition 1, such as net,digits, seed 1; edition 2"):
        provenance.refuse_several_editions([cell("2", None)])
    config = small.get_config()
    with pytest.raises(DropbnError, match="edition 1 of the code, this is edition"):
        provenance.refuse_another(cell(None).members[0], config)


def test_a_member_names_the_commit_that_trained_it():
    def git(*words):
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    changed = git("status", "--porcelain", "--untracked-files=no")
    wanted = git("rev-parse", "HEAD")[:12] + "+" * bool(changed)
    assert provenance.of_run(small.get_config())["commit"] == wanted
