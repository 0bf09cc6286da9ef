"""Members are the runs that train.py would make."""

import pytest

from configs import small
from dropbn import cli
from dropbn.errors import DropbnError
from dropbn.study import members


def test_members_are_what_train_py_would_run(tmp_path):
    found = members.create(
        "configs/small.py",
        ["preresnet8,digits,place=a,rate=0.5"],
        2,
        tmp_path,
        ["--config.batch_size=32"],
        True,
    )
    assert [member.name for member in found] == [
        "preresnet8,digits,place=a,rate=0.5, seed 0",
        "preresnet8,digits,place=a,rate=0.5, seed 1",
    ]
    config = small.get_config("preresnet8,digits,place=a,rate=0.5,quick")
    config.batch_size, config.seed = 32, 1
    assert found[1].config.to_dict() == config.to_dict()
    assert found[1].directory == tmp_path / "members" / "preresnet8-digits-place=a-rate=0.5" / "seed1"


def test_files_that_are_no_studies_are_refused():
    with pytest.raises(DropbnError, match=r"no config file configs/nothing\.py"):
        members.load("configs/nothing.py")
    with pytest.raises(DropbnError, match="no sweep"):
        members.load("configs/digits.py")


def test_a_command_that_is_ended_while_a_file_loads_ends(tmp_path):
    """As by SIGTERM, whose handler raises this."""
    (tmp_path / "own.py").write_text("from dropbn import cli\nraise cli.Ended(143)\n")
    with pytest.raises(cli.Ended):
        members.load(str(tmp_path / "own.py"))
