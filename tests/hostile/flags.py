"""Wrong flags of every command, wrong fields of a config, and config files that fail."""

import random

from tests.hostile import made
from tests.hostile.doors import case
from tests.hostile.ends import Case

_MANY = 30  # combinations of wrong fields


def cases() -> list[Case]:
    """All cases of this file."""
    return [*_flags(), *_fields(), *_config_files()]


# Flags of every command.


def _flags():
    given = {
        "train.py": ["--confg=x", "--config.sed=1", "--config.seed", "--config.seed=", "stray"],
        "eval.py": ["", "--workdir=", "--workdir={}", "--workdir={}/none", "--workdir=gs://b/w", "stray"],
        "dropbn report": [
            "",
            "--workdir=",
            "--workdir={}",
            "--workdir={}/none",
            "--workdir=/dev/null",
            "stray",
        ],
        "dropbn study": ["", "--workdir={}/w", "--config=configs/small.py:digits", "stray"],
        "dropbn lint": ["", "x", "x:y", ":", "--input=2,3", "a:b c:d", "os:path --input=2,3"],
        "dropbn prepare": ["", "digts", made.LONG, "digits a b", "digits /dev/null", "digits {}/file"],
        "dropbn": ["", "lnt", made.LONG, "--no", "-x", "module-studies --workdir=/dev/null/x", "examine"],
    }
    given["train.py"] += [
        "--config=",
        "--config=x",
        f"--config={made.LONG}",
        f"--workdir={made.LONG}",
        "--config.seed=1e9",
    ]
    given["train.py"] += [
        "--workdir=/dev/null",
        "--workdir=/dev/null/x",
        "--workdir=/proc/x",
        "--workdir={}/file",
    ]
    given["train.py"] += [
        "--checkpoint_dir=gs://b/x",
        "--checkpoint_dir=foo://x",
        "--checkpoint_dir=/dev/null",
    ]
    given["train.py"] += [f"--checkpoint_dir={made.LONG}", "--config=configs/li2018.py:a", "--config=configs"]
    given["train.py"] += [
        "--config=configs/small.py:",
        f"--config=configs/small.py:{made.LONG}",
        "--config=/dev/null",
    ]
    given["train.py"] += ["--distributed", "--distributed=maybe", "--num_processes=0", "--process_id=-1"]
    given["train.py"] += ["--num_processes=2", "--process_id=0", "--wait=0", "--coordinator_address=x"]
    given["train.py"] += ["--coordinator_address=127.0.0.1:99999", f"--coordinator_address={made.LONG}:1"]
    given["train.py"] += ["--coordinator_address=127.0.0.1:1 --num_processes=2 --process_id=2"]
    given["train.py"] += ["--coordinator_address=127.0.0.1:9 --num_processes=2 --process_id=1 --wait=1"]
    run = f"--workdir={made.root()}/run"
    given["eval.py"] += [f"{run} {flag}" for flag in ("--checkpoint=7", "--checkpoint=", "--recalibrate=x")]
    given["eval.py"] += [
        f"{run} {flag}" for flag in ("--mc_samples=-1", "--mc_samples=x", f"--checkpoint={made.LONG}")
    ]
    given["eval.py"] += [
        f"{run} --checkpoint=-1",
        f"{run} --recalibrate={made.LONG}",
        f"--workdir={made.LONG}",
    ]
    given["dropbn report"] += [
        f"{run} --output={{}}",
        f"{run} --output=/dev/null",
        f"{run} --output={made.LONG}",
    ]
    given["dropbn report"] += [f"{run} --output=", f"{run} --output={{}}/no/x.html", f"--workdir={made.LONG}"]
    small = "--config=configs/small.py:digits"
    study = [
        "--seeds=0",
        "--seeds=x",
        "--only=nothing",
        f"--only={made.LONG}",
        "--parallel=all",
        "--config.modle=1",
    ]
    study += ["--config.seed=x", "--config.model.block=[", "stray", "--wait=-1"]
    given["dropbn study"] += [f"{small} --workdir={{}}/w --dry_run --quick {flag}" for flag in study]
    tables = (
        "configs/base.py:x",
        "configs/small.py:x",
        "x.py:y",
        made.LONG,
        "configs/digits.py:x",
        "configs:x",
        "",
    )
    given["dropbn study"] += [f"--config={table} --workdir={{}}/w --dry_run" for table in tables]
    given["dropbn study"] += [
        f"{small} --workdir={made.LONG} --dry_run --quick",
        f"{small} --workdir={{}}/file --quick",
    ]
    for command, lines in given.items():
        for i, line in enumerate(lines):
            # Digits is prepared; --help is printed without a command.
            # The list of commands is printed without one.
            may = "either" if not line and command == "dropbn" else "fail"
            words = [*command.split(), *line.split(" ")] if line else command.split()
            yield case("flags", f"{command} {line[:40]} #{i}", words, may, _with_file)


def _with_file(directory):
    (directory / "file").write_text("notes")


# Fields of a config, one and several wrong ones.

_WRONG = {
    int: ["-1", "0", "3", "-99999999999", "99999999999", "1e3", "nan", "x", ""],
    float: ["-1", "nan", "inf", "-inf", "2", "1e300", "x", ""],
    bool: ["2", "x", "", "True"],
    str: ["x", "0", "[", "conv", "\x7f", "-1 steps", "nan epochs", "1e999 epochs", made.LONG, "٣ steps"],
    tuple: ["()", "(1,)", "('x',)", "x", "(nan,)", "(-1, 5)"],
}


def _fields():
    from configs import base

    flat, draw = {}, random.Random(0)

    def walk(tree, prefix):
        for name, value in tree.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{name}.")
            else:
                flat[prefix + name] = type(value)

    walk(base.get_config().to_dict(), "")
    singles = [(name, text) for name, kind in flat.items() for text in _WRONG.get(kind, _WRONG[str])]
    # Those that would be done, but not soon.
    slow = {("duration", "0"), ("model.width", "99999999999"), ("model.depth", "99999999999")}
    singles = [pair for pair in draw.sample(singles, 110) if pair not in slow]
    for name, text in singles:
        yield case("config fields", f"{name}={text[:20]}", [*made.TRAIN, f"--config.{name}={text}"])
    for i in range(_MANY):
        chosen = draw.sample(singles, 3)
        yield case("config fields", f"several #{i}", [*made.TRAIN, *(f"--config.{n}={t}" for n, t in chosen)])


# Config files are code.

_LINES = (
    "1 / 0",
    "raise SystemExit(0)",
    "raise KeyboardInterrupt",
    f"raise KeyError({made.LONG!r})",
    "raise Exception",
    "raise MemoryError",
    "import no_such_module",
    "open('no such file')",
    "def",
    "return 5",
    "return None",
    "return {}",
    "return get_config()",
    "del config.data",
    "del config.model.noise",
    "config.seed = None",
    "config.model = None",
    "config.model.noise = []",
    "config.optimizer.lr = 1",
    "config.model.noise.rate = 'x'",
    "config.seed = 'x'",
    "config.update({'seed': [1]})",
    "config = config.to_dict()",
    "import signal, os; os.kill(os.getpid(), signal.SIGINT)",
    "assert False, 'no'",
    "from dropbn.nn import order; order.parse(5)",
    "from dropbn.nn import order; order.parse('[')",
    "print(config.nothing)",
    "raise StopIteration",
    "raise UnicodeDecodeError('utf-8', b'x', 0, 1, 'bad')",
)


def _config_files():
    for i, line in enumerate(_LINES):

        def prepare(directory, line=line):
            text = (
                f"from configs import base\n\ndef get_config():\n    config = base.get_config()\n    {line}\n"
            )
            (directory / "own.py").write_text(f"{text}    return config\n")

        yield case(
            "config files", line[:40], ["train.py", "--config={}/own.py", "--workdir={}/w"], "fail", prepare
        )
        if i % 3 == 0:
            study = ["dropbn", "study", "--config={}/own.py:table", "--workdir={}/w", "--dry_run"]
            yield case("config files", f"study: {line[:40]}", study, "fail", prepare)
    contents = {"empty": b"", "binary": bytes(range(256)), "null": b"\0", "latin": "# ä".encode("latin-1")}
    contents |= {"no function": b"x = 1\n", "deep": b"(" * 5000, "takes two": b"def get_config(a, b): pass\n"}
    for name, content in contents.items():

        def prepare(directory, content=content):
            (directory / "own.py").write_bytes(content)

        yield case("config files", name, ["train.py", "--config={}/own.py"], "fail", prepare)
    for name, make in made.INSTEAD.items():

        def prepare(directory, make=make):
            make(directory / "own.py")

        yield case("config files", name, ["train.py", "--config={}/own.py"], "fail", prepare)
