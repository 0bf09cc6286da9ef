"""A run's directory: nothing overwritten, no torn or stale line."""

import json
import os
import shutil

import pytest
from ml_collections import ConfigDict
from tensorboardX.proto import event_pb2

from configs import base, digits
from dropbn import readers, writers
from dropbn.errors import DropbnError
from dropbn.train import workdir
from dropbn.train.fields import FIELDS


def _files(path):
    return {str(file): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_a_workdir_is_claimed_once(tmp_path):
    config = digits.get_config()
    path = workdir.claim(tmp_path / "deep" / "run", config)
    assert workdir.claim(path, config) == path
    assert workdir.read_config(path).to_dict() == json.loads(json.dumps(config.to_dict()))
    before = _files(path)
    config.model.noise.rate, config.seed = 0.1, 3
    with pytest.raises(DropbnError, match="another config") as error:
        workdir.claim(path, config)
    assert "model.noise.rate: 0.5 there, 0.1 now" in str(error.value) and "seed: 0 there, 3 now" in str(
        error.value
    )
    assert "batch_size" not in str(error.value)
    assert _files(path) == before


def test_a_run_that_is_older_than_a_field_goes_on(tmp_path):
    config = digits.get_config()
    path, before = workdir.claim(tmp_path, config), workdir.digest(config)
    older = config.to_dict()
    assert older["model"]["noise"].pop("block_size") == 0
    (path / "config.json").write_text(json.dumps(older))
    assert workdir.claim(path, config) == path
    assert workdir.read_config(path).model.noise.block_size == 0
    assert workdir.digest(ConfigDict(older)) == before
    config.model.noise.block_size = 3
    assert workdir.digest(config) != before
    with pytest.raises(DropbnError, match="block_size: 0 there, 3 now"):
        workdir.claim(path, config)


def test_what_is_no_run_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("chapter 1")
    before = _files(tmp_path)
    with pytest.raises(DropbnError, match="holds no run"):
        workdir.claim(tmp_path, digits.get_config())
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DropbnError, match="not valid JSON"):
        workdir.claim(tmp_path, digits.get_config())
    for text, said in (('{"model_type": "bert"}', "holds no run of dropbn"), ("[1]", "no.* JSON object")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(DropbnError, match=said):
            workdir.read_config(tmp_path)
    (tmp_path / "config.json").unlink()
    assert _files(tmp_path) == before
    with pytest.raises(DropbnError, match="Cannot write to workdir"):
        workdir.claim(tmp_path / "thesis.tex", digits.get_config())


def test_lines_after_the_restored_step_are_cut_and_torn_ones_dropped(tmp_path):
    path = tmp_path
    lines = "".join(json.dumps({"step": step, "loss": step / 10}) + "\n" for step in (5, 10, 15))
    (path / "metrics.jsonl").write_text(lines + '{"step": 20, "lo')
    assert [record["step"] for record in workdir.read_metrics(path)] == [5, 10, 15]
    with workdir.log(path, 10) as log:
        log.record({"step": 15, "loss": 0.25})
    text = (path / "metrics.jsonl").read_text()
    assert text.endswith("\n")
    assert [json.loads(line) for line in text.splitlines()] == [
        {"step": 5, "loss": 0.5},
        {"step": 10, "loss": 1.0},
        {"step": 15, "loss": 0.25},
    ]


def test_a_second_process_is_kept_out(tmp_path):
    refused = pytest.raises(DropbnError, match="Another process is training")
    with workdir.lock(tmp_path), refused, workdir.lock(tmp_path):
        pass
    with workdir.lock(tmp_path):
        pass


def test_what_lies_in_the_place_of_a_file_is_not_opened(tmp_path):
    """Opening a pipe would wait for another process, opening a link would write into another file."""
    secret = tmp_path / "secret"
    secret.write_text("old")
    for name in (".lock", "metrics.jsonl"):
        for make in (os.mkfifo, lambda path: path.symlink_to(secret)):
            run = tmp_path / "run"
            run.mkdir()
            make(run / name)
            refused = pytest.raises(DropbnError, match=rf"/{name}: it is a (pipe|symbolic link), not a")
            with refused, workdir.lock(run) if name == ".lock" else workdir.log(run, 0):
                pass
            shutil.rmtree(run)
    assert secret.read_text() == "old"


def test_a_kill_while_the_config_is_written_leaves_a_new_directory(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / f".0123{writers.SUFFIX}").write_text("{")
    assert workdir.claim(tmp_path / "run", digits.get_config()) == tmp_path / "run"


def test_tensorboard_gets_the_same_numbers(tmp_path):
    with workdir.log(tmp_path, 0) as log:
        log.record({"step": 7, "test/accuracy": 0.75})
    raw = next(tmp_path.glob("events.*")).read_bytes()
    scalars, at = [], 0
    while at < len(raw):  # TFRecord: length (8 bytes), its checksum (4), the event, its checksum (4)
        length = int.from_bytes(raw[at : at + 8], "little")
        event = event_pb2.Event.FromString(raw[at + 12 : at + 12 + length])
        scalars += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        at += 16 + length
    assert scalars == [(7, "test/accuracy", 0.75)]


def test_the_fields_of_a_config_are_those_of_the_base():
    def flat(tree, prefix=""):
        for key, value in tree.items():
            yield from flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]

    found = dict(flat(base.get_config().to_dict()))
    assert sorted(found) == sorted(FIELDS)
    assert all(readers.is_a(value, FIELDS[name]) for name, value in found.items())


@pytest.mark.parametrize("name", list(FIELDS))
def test_a_config_without_a_field_or_with_another_type_is_refused(name, tmp_path):
    *groups, last = name.split(".")
    for value in (None, {"a": 1}, ["x", 1]):
        config = json.loads(json.dumps(base.get_config().to_dict()))
        inner = config
        for key in groups:
            inner = inner[key]
        if value is None:
            del inner[last]
        else:
            inner[last] = value
        (tmp_path / "config.json").write_text(json.dumps(config))
        if value is None and last == "block_size":
            assert workdir.read_config(tmp_path).model.noise.block_size == 0
            continue
        with pytest.raises(DropbnError, match=rf"config.json.*'{name}'"):
            workdir.read_config(tmp_path)


@pytest.mark.parametrize("text", ["", " \n", "here\nand there\n", "\0"])
def test_a_file_that_says_no_place_of_checkpoints_is_refused(text, tmp_path):
    (tmp_path / "checkpoint_dir").write_text(text)
    with pytest.raises(DropbnError, match="checkpoint_dir is not one line"):
        workdir.checkpoints(tmp_path)


@pytest.mark.parametrize("line", ["[1]", "{", '{"loss": 1}', '{"step": 1, "loss": "x"}', '{"step": 1.5}'])
def test_a_line_that_is_no_record_is_named(line, tmp_path):
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1, "loss": 0.5}}\n{line}\n')
    with pytest.raises(DropbnError, match=r"metrics.jsonl, line 2"):
        workdir.read_metrics(tmp_path)
