"""train.py and eval.py as a user runs them: what goes wrong is one sentence and changes nothing."""

import importlib
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from dropbn import __main__, runtime

ROOT = pathlib.Path(__file__).parent.parent
TRAIN, EVAL = "train.py --workdir={run} ", "eval.py "
CASES = {
    "unknown key": (TRAIN + "--config.modle.depth=8", 2, "no field 'modle'. Did you mean \"model\""),
    "unknown nested key": (TRAIN + "--config.model.noise.rat=0", 2, "no field 'rat'. Did you mean \"rate\""),
    "key of another config": (TRAIN + "--config.xyzzy=0", 2, "no field 'xyzzy'"),
    "wrong type": (TRAIN + "--config.seed=many", 2, "--config.seed=many"),
    "unknown flag": (TRAIN + "--confg=x", 2, "Unknown command line flag 'confg'. Did you mean: config"),
    "no such config": (
        TRAIN + "--config=configs/nothing.py",
        2,
        "No such file or directory: 'configs/nothing.py'",
    ),
    "cell": (TRAIN + "--config=configs/li2018.py:preresnet,cifar10", 2, "Did you mean 'preresnet200'?"),
    "space for =": (TRAIN + "--config.seed=1 stray", 2, "unexpected argument 'stray'"),
    "order": (TRAIN + "--config.model.block=[bn,relu", 1, "^^^"),
    "eval without workdir": (EVAL, 2, "--workdir"),
    "eval of nothing": (EVAL + "--workdir={run}", 1, "holds no run"),
}


# Each is a process of its own: the others run by -m slow.
QUICK = "unknown key", "cell", "space for =", "order", "eval without workdir", "eval of nothing"


@pytest.mark.parametrize(
    ("command", "status", "message"),
    [
        pytest.param(*case, id=name, marks=[pytest.mark.slow] * (name not in QUICK))
        for name, case in CASES.items()
    ],
)
def test_mistakes_end_in_a_sentence(command, status, message, tmp_path):
    run = tmp_path / "run"
    script, *flags = command.format(run=run).split()
    done = subprocess.run([sys.executable, script, *flags], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert message in done.stderr
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 4
    assert not run.exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("config.optimizer.lr = 0.5", "Unknown field 'lr'. Known: learning_rate, momentum, nesterov"),
        ("config.model.noise.rat = 0.5", "Unknown field 'rat'. Did you mean 'rate'?"),
        ("config.learning_rate = 0.5", "Unknown field 'learning_rate'. Known: seed, batch_size"),
        ("config.model.noise.rate = 'x'", "own.py, line 4: TypeError: Could not override field 'rate'"),
        ("config.model.nois.rate = 0.5", "nois"),
    ],
)
def test_a_config_file_sets_fields_that_exist(line, message, tmp_path):
    file = tmp_path / "own.py"
    file.write_text(
        f"from configs import base\ndef get_config():\n    config = base.get_config()\n    {line}\n"
    )
    done = subprocess.run(
        [sys.executable, "train.py", f"--config={file}", f"--workdir={tmp_path}/run"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and message in done.stderr
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_train_then_eval_from_any_directory(mlp_flags, tmp_path):
    """The main job in small, with overrides, from another directory and into a path with a space."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    common = [*mlp_flags, "--config.duration=2 epochs"]

    def go(script, *flags):
        done = subprocess.run(
            [sys.executable, ROOT / script, *flags],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return done.stdout

    uout = ["--config.model.noise.kind=uout", "--config.model.noise.beta=0.5", "--workdir=my runs/uout"]
    printed = go("train.py", *common, *uout)
    assert printed.startswith("Lint's findings about this network:\n  DBN101 (error) noise before")
    assert "epoch     2   loss" in printed and "Most shifted BN layers" in printed
    assert "python eval.py --workdir='my runs/uout'" in printed
    go("train.py", *common, "--config.model.block=dense bn relu", "--config.model.place=a")
    assert (tmp_path / "runs" / "digits" / "metrics.jsonl").exists()
    printed = go("eval.py", "--workdir=my runs/uout", "--workdir=runs/digits", "--checkpoint=best")
    assert printed.count("Flips:") == 2
    assert (tmp_path / "my runs" / "uout" / "eval" / "shift_overlay.png").exists()


@pytest.mark.slow
def test_without_noise_neither_command_sees_a_shift(mlp_flags, tmp_path):
    """Crops have black borders that plain images lack: on these its ratio is 0.66."""
    crops = ["--config.data.crop_padding=2", "--config.model.noise.rate=0", "--config.eval.train_examples=0"]
    workdir = f"--workdir={tmp_path}/run"
    printed = ""
    for command in (["train.py", *mlp_flags, *crops, "--config.duration=8 epochs"], ["eval.py"]):
        done = subprocess.run(
            [sys.executable, *command, workdir], cwd=ROOT, capture_output=True, text=True, check=True
        )
        printed += done.stdout
    summary = re.findall(r"^  layer1/bn1 +(\d\.\d+)$", printed, re.MULTILINE)
    report = json.loads((tmp_path / "run" / "eval" / "report.json").read_text())
    ratios = [row["ratio"] for key in ("shift", "shift_li2018") for row in report[key]]
    assert len(summary) == 1 and len(ratios) == 2
    for ratio in (*map(float, summary), *ratios):
        assert 0.97 < ratio < 1.03


def test_the_console_script_names_its_commands(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["dropbn"])
    __main__.main()
    printed = capsys.readouterr().out
    assert all(f"  {command} " in printed for command in __main__.COMMANDS)
    for module, _ in __main__.COMMANDS.values():
        assert callable(importlib.import_module(module).run)
    monkeypatch.setattr(sys, "argv", ["dropbn", "lnt"])
    with pytest.raises(SystemExit) as stop:
        __main__.main()
    assert stop.value.code == 2 and "Did you mean 'lint'?" in capsys.readouterr().err


def test_a_run_does_not_wait_for_what_it_has_no_use_for():
    imports = (
        "from dropbn import data; from dropbn.diagnose import lint; "
        "from dropbn.train import console, loop, measurements"
    )
    code = f"import sys; {imports}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"matplotlib", "sklearn", "scipy", "grain", "tensorflow"} & set(done.stdout.split())


def test_convolutions_go_to_eigen_where_the_user_says_nothing(monkeypatch):
    name = runtime._XLA_FLAG.partition("=")[0]
    for given, wanted in (
        ("", runtime._XLA_FLAG),
        ("--xla_dump_to=x", f"--xla_dump_to=x {runtime._XLA_FLAG}"),
        (f"{name}=DOT", f"{name}=DOT"),
    ):
        monkeypatch.setenv("XLA_FLAGS", given)
        runtime.convolve_on_all_cores()
        assert os.environ["XLA_FLAGS"] == wanted
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(runtime.jaxlib.version, "__version_info__", (0, 13))
    runtime.convolve_on_all_cores()
    assert os.environ["XLA_FLAGS"] == ""


@pytest.mark.parametrize("mode", [0o700, 0o777])
def test_compiled_programs_are_kept_where_only_the_user_writes(mode, tmp_path, monkeypatch):
    directory = tmp_path / "dropbn" / "xla"
    directory.mkdir(parents=True)
    directory.chmod(mode)
    kept, passing, newest = (directory / name for name in ("kept", "passing", "newest"))
    for age, path in ((3, passing), (2, kept), (1, newest)):
        path.write_bytes(bytes(10))
        os.utime(path, (1e9 - age,) * 2)
    monkeypatch.setattr(runtime, "_CACHE_BYTES", 25)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    set_to = {}
    monkeypatch.setattr(runtime.jax.config, "update", set_to.__setitem__)
    runtime._keep_compiled()
    private = mode == 0o700
    assert set_to.get("jax_compilation_cache_dir") == (str(directory) if private else None)
    assert passing.exists() is not private
    assert kept.exists() and newest.exists()


def test_a_cache_directory_is_made_for_the_user_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "new"))
    directory = runtime._private_directory()
    assert directory == tmp_path / "new" / "dropbn" / "xla"
    assert directory.stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("XDG_CACHE_HOME", str(directory / "file"))
    (directory / "file").touch()
    assert runtime._private_directory() is None


def test_a_cache_that_the_user_has_chosen_stays(monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
    monkeypatch.setattr(runtime.jax.config, "update", lambda *given: pytest.fail(f"{given}"))
    runtime._keep_compiled()
