"""Files that were edited, cut or replaced: one sentence that names the file, whatever is in it."""

import json
import os

import pytest

from dropbn import readers
from dropbn.errors import DropbnError, shown, unknown

BAD = {
    "empty": b"",
    "cut": b'{"step": 1',
    "a list": b"[1]",
    "a number": b"1",
    "binary": b"\xff\xfe\x00\x01",
    "deep": b"[" * 200_000,
    "deep objects": b'{"a":' * 200_000,
    "digits": b'{"step": ' + b"9" * 5000 + b"}",
    "another field": b'{"steps": 1}',
    "a string": b'{"step": "1"}',
    "a bool": b'{"step": true}',
    "null": b'{"step": null}',
    "long": b'{"step": "' + b"x y" * 10_000 + b'"}',
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD)
def test_what_is_no_object_with_the_fields_is_said_in_a_sentence(content, tmp_path):
    file = tmp_path / "some.json"
    file.write_bytes(content)
    with pytest.raises(DropbnError, match=r"some\.json") as error:
        readers.read_json(file, {"step": int})
    assert len(str(error.value)) < 600
    file.write_bytes(b'{"step": 1}\n' + content + b"\n")
    with pytest.raises(DropbnError, match=r"some\.json(, line 2| is not text)"):
        readers.read_json_lines(file, {"step": int})


def test_what_is_no_regular_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # which would be waited for without end
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(DropbnError, match=f"{name} is not a regular file"):
            readers.read_json(tmp_path / name)
    with pytest.raises(DropbnError, match=r"Cannot read .*missing: No such file"):
        readers.read_json(tmp_path / "missing")
    with pytest.raises(DropbnError, match="File name too long") as error:
        readers.read_json(tmp_path / ("x" * 5000))
    assert len(str(error.value)) < 700


def test_what_is_right_is_returned(tmp_path):
    found = {"step": 1, "model": {"noise": {"rate": 0}}, "at": ["1 epochs"], "loss": 0.5}
    (tmp_path / "some.json").write_text(json.dumps(found))
    fields = {"step": int, "model.noise.rate": readers.NUMBER, "at": [str], "loss": readers.NUMBER}
    assert readers.read_json(tmp_path / "some.json", fields) == found
    (tmp_path / "some.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert readers.read_json_lines(tmp_path / "some.jsonl") == [{"step": 1}, {"step": 2}]
    assert readers.read_json_lines(tmp_path / "none.jsonl") == []


def test_messages_repeat_at_most_300_characters():
    assert len(shown("x y" * 1000)) == len(shown(["x"] * 1000)) == 300
    assert shown("as it is") == "as it is" and shown(5) == "5"
    assert len(str(DropbnError("x" * 10_000))) == 300
    assert str(DropbnError("x" * 300)) == "x" * 300
    assert len(str(unknown("word", "a b" * 1000, ["a"]))) < 350
