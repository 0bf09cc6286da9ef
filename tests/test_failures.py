"""The last resort of every command: one sentence and a documented status, whatever is raised."""

import os
import pathlib
import re
import subprocess
import sys
import types

import jax
import pytest
from ml_collections import ConfigDict

from dropbn import cli, failures, runtime
from dropbn.errors import DropbnError
from dropbn.train import checkpoint, loop

ROOT = pathlib.Path(__file__).parent.parent


def _start(*command, **options):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *command], **{"cwd": ROOT, **pipes, **options})


def _ended(*command, status, message, **options):
    """Runs a command; it ends with the status and one sentence, which is returned."""
    process = _start(*command, **options)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == status, errors
    assert errors.startswith("error: ") and errors.count("\n") == 1 and message in errors, errors
    return errors


FILES = {
    "raises": ("import math\n\nmath.sqrt(-1)\n", "own.py, line 3: ValueError: math domain error"),
    "syntax": ("def get_config(:\n", "own.py, line 1: invalid syntax"),
    "exits": ("import sys\nsys.exit(0)\n", "sys.exit(0) in "),
    "recursive": ("def get_config():\n    return get_config()\n", "own.py, line 2: RecursionError"),
    "in ours": (
        "from dropbn.nn import order\ndef get_config():\n    return order.hoist(5)\n",
        "own.py, line 3: ",
    ),
    "lacks a package": ("import nosuchmodule\n", "own.py, line 1: ModuleNotFoundError"),
    "no config": ("def get_config():\n    return 5\n", "get_config() returns 5, not a ConfigDict"),
    "takes two": ("def get_config(a, b):\n    pass\n", "the config file: TypeError: get_config() missing 2"),
    "null": ("\0", "the config file is not Python: source code string cannot contain null bytes"),
    "no function": ("def get_conf():\n    pass\n", "the config file has no function get_config()"),
}


@pytest.mark.parametrize(("text", "message"), FILES.values(), ids=FILES)
def test_a_config_file_that_fails_is_named_with_its_line(text, message, tmp_path, monkeypatch, capsys):
    (tmp_path / "own.py").write_text(text)
    monkeypatch.setattr(sys, "argv", ["train.py", f"--config={tmp_path}/own.py"])
    monkeypatch.setattr(cli.flags, "FLAGS", cli.flags.FlagValues())
    monkeypatch.delitem(sys.modules, "config_config", raising=False)  # ml_collections would load into it.
    from ml_collections import config_flags

    with pytest.raises(cli.Ended) as ended:
        with cli.parsing():
            config_flags.DEFINE_config_file("config", flag_values=cli.flags.FLAGS)
        cli._parse(sys.argv)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and message in said, said


def test_a_config_that_is_a_pipe_is_not_waited_for(tmp_path, monkeypatch, capsys):
    os.mkfifo(tmp_path / "own.py")
    monkeypatch.setattr(sys, "argv", ["train.py", f"--config={tmp_path}/own.py:cell"])
    with pytest.raises(cli.Ended), cli.parsing():
        pass
    assert "own.py is not a regular file" in capsys.readouterr().err


def test_a_config_that_is_none_of_ours_is_refused(tmp_path):
    for fields in ({"a": 1}, {"seed": "x"}, {"seed": 1, "batch_size": 2.5}):
        with pytest.raises(DropbnError, match="The config"):
            loop.train_and_evaluate(ConfigDict(fields), tmp_path / "run")
    for given in (None, {"seed": 1}, "x y" * 5000):
        with pytest.raises(DropbnError, match="not a ConfigDict"):
            loop.train_and_evaluate(given, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def _raised(error):
    try:
        raise error
    except BaseException as caught:
        return caught


def test_any_exception_has_a_sentence():
    here = pathlib.Path(__file__).name
    assert failures.sentence(_raised(DropbnError("As it is."))) == "As it is."
    assert failures.sentence(_raised(OSError(28, "No space left on device"))) == "No space left on device"
    too_long = failures.sentence(_raised(OSError(36, "File name too long", "x y" * 5000)))
    assert too_long.startswith("File name too long: x y") and len(too_long) < 350
    assert "was closed" in failures.sentence(_raised(BrokenPipeError(32, "Broken pipe")))
    found = failures.sentence(_raised(KeyError("x")))
    assert here in found and "KeyError" in found
    assert f"{here}, line" in failures.place(_raised(ValueError()))


@pytest.mark.parametrize(
    ("message", "free", "said"),
    [
        # 32 of 128 would fit into 1 GB if 128 need 4 GB.
        ("RESOURCE_EXHAUSTED: Out of memory allocating 4000000000 bytes.", 1e9, "About 32 would fit"),
        ("RESOURCE_EXHAUSTED: ... Used 20.00G of 15.48G hbm.", 0, "About 64 would fit"),
        ("RESOURCE_EXHAUSTED: Failed to allocate request for 400.0GiB", 1e9, "Not even one image"),
        ("RESOURCE_EXHAUSTED: something", 0, "About 64 would fit"),
        ("INTERNAL: RET_CHECK failure: CUDA_ERROR_OUT_OF_MEMORY: out of memory", 0, "About 64 would fit"),
    ],
)
def test_memory_that_is_exhausted_names_the_batch_that_fits(message, free, said, monkeypatch):
    monkeypatch.setattr(cli.flags, "FLAGS", cli.flags.FlagValues())
    monkeypatch.setattr(failures, "_free", lambda: free)
    cli.flags.DEFINE_string("config", "", "", flag_values=cli.flags.FLAGS)
    cli.flags.FLAGS["config"].value = ConfigDict({"batch_size": 128})
    found = failures.sentence(_raised(jax.errors.JaxRuntimeError(message)))
    assert found.startswith("out of memory") and "with batch_size=128" in found and said in found
    plain = failures.sentence(_raised(MemoryError("Unable to allocate 7.45 GiB for an array")))
    assert plain.startswith("out of memory: 8 GB were asked for") and "batch" not in plain


def test_what_is_free_is_what_the_system_says():
    with open("/proc/meminfo") as file:
        total = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemTotal"))
    assert 0 < failures._free() <= total


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("gs://bucket/run", "need gcsfs, which is not installed: pip install gcsfs"),
        ("foo://bucket/run", "cannot be kept in foo://"),
        ("x" * 300, "No checkpoint in xxx"),
    ],
)
def test_places_that_cannot_be_reached(place, message):
    with pytest.raises(DropbnError, match=message), checkpoint.manager(place, read_only=True):
        pass


INSTEAD = """
import os, runpy, signal, sys
from dropbn import data
def load(config):
    {}
data.load = load
sys.argv[0] = "train.py"
runpy.run_path("train.py", run_name="__main__")
"""


@pytest.mark.parametrize(
    ("line", "status", "message"),
    [
        ("os.kill(os.getpid(), signal.SIGTERM)", 143, "stopped by SIGTERM .* so nothing was saved"),
        ("raise KeyboardInterrupt", 130, "interrupted; the same command goes on"),
        ("[][1]", 1, "IndexError: list index out of range.*DROPBN_TRACEBACK=1"),
        pytest.param("sys.exit(0)", 1, r"sys.exit\(0\)", marks=pytest.mark.slow),
    ],
)
def test_train_ends_with_a_sentence_and_its_status(line, status, message, tmp_path):
    environment = os.environ | {"DROPBN_TRACEBACK": str(int(status == 1))}
    process = _start("-c", INSTEAD.format(line), f"--workdir={tmp_path}/run", env=environment)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == status, errors
    if status == 1:
        shown, _, errors = errors.rpartition("\nerror: ")
        assert shown.startswith("Traceback (most recent call last)")
        errors = "error: " + errors
    assert errors.startswith("error: ") and errors.count("\n") == 1
    assert re.search(message, errors)
    assert not (tmp_path / "run").exists()


# A process that a shell has started in the background ignores Ctrl-C, and so do its children.
SLOW_IMPORT = """
import os, runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
class Finder:
    def find_spec(self, name, *_):
        if name == "jax":
            os.kill(os.getpid(), {number})
sys.meta_path.insert(0, Finder())
runpy.{run}
"""


@pytest.mark.parametrize(
    "run", ["run_path('train.py')", "run_path('eval.py')", "run_module('dropbn.__main__')"]
)
@pytest.mark.parametrize(
    ("number", "status", "says"), [(15, 143, "stopped by SIGTERM"), (2, 130, "interrupted")]
)
def test_a_signal_during_imports_ends_with_a_sentence(run, number, status, says):
    if "module" in run:
        run = run.replace(")", ", run_name='__main__')")
    process = _start("-c", SLOW_IMPORT.format(number=number, run=run), "study")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status and errors.startswith(f"error: {says} during start-up"), errors
    assert errors.count("\n") == 1


def test_late_reads_are_not_shown_but_other_errors_are(monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", seen.append)
    runtime._ignore_late_reads()
    late, other = (
        types.SimpleNamespace(exc_value=RuntimeError(text)) for text in ("Event loop is closed", "x")
    )
    sys.unraisablehook(late)
    sys.unraisablehook(other)
    assert seen == [other]


NET = """
import sys
import flax.linen as nn


def build():
    sys.exit(0)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        sys.exit(0)
"""


@pytest.mark.parametrize(
    ("target", "given", "message"),
    [
        ("net:build", "2,3", "net.py, line 7"),
        ("net:Net", "2,3", "net.py, line 13"),
        pytest.param("net:Net", "2,3:foo", "--input=2,3:foo", marks=pytest.mark.slow),
        pytest.param("net:Net", "0" * 5000 + "x", "is not a shape", marks=pytest.mark.slow),
    ],
)
def test_lint_ends_with_2_where_nothing_was_checked(target, given, message, tmp_path):
    (tmp_path / "net.py").write_text(NET)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    said = _ended(
        "-m",
        "dropbn",
        "lint",
        target,
        f"--input={given}",
        status=2,
        message=message,
        cwd=tmp_path,
        env=environment,
    )
    assert len(said) < 600


def test_a_closed_standard_output_is_said(tmp_path):
    (tmp_path / "net.py").write_text("import flax.linen as nn\nnet = nn.Dense(3)\n")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = ["-m", "dropbn", "lint", "net:net", "--input=2,3"]
    read, write = os.pipe()
    os.close(read)
    process = _start(*command, cwd=tmp_path, env=environment, stdout=write)
    os.close(write)
    _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (
        2,
        "error: nobody reads what this command prints: its standard output was closed\n",
    )
