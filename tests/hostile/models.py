"""Models that lint cannot check."""

import os

from tests.hostile import made
from tests.hostile.doors import case
from tests.hostile.ends import Case


def cases() -> list[Case]:
    """All cases of this file."""
    return [*_models()]


_HEAD = """import flax.linen as nn
import jax


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        """
_BODIES = {
    "raises": "1 / 0",
    "exits": "import sys; sys.exit(0)",
    "interrupts": "raise KeyboardInterrupt",
    "recursive": "return self(x)",
    "no value": "pass",
    "text": "return 'x'",
    "wrong shape": "return nn.Dense(3)(x.reshape(7, 7, 7))",
    "python branch": "return x if x.sum() > 0 else -x",
    "long": f"raise ValueError({made.LONG!r})",
    "a rate of 2": "return nn.BatchNorm(use_running_average=False)(nn.Dropout(2.0)(x, deterministic=False))",
    "object": "return object()",
    "host": "import numpy; return nn.Dense(2)(numpy.asarray(x))",
}


def _models():
    def lint(name, text, words, may="fail"):
        def prepare(directory):
            (directory / "net.py").write_text(text)

        def before():
            import sys

            sys.path.insert(0, os.getcwd())

        def go(directory):
            inner = case("models", name, words, may, prepare, before=before)
            return inner.run(directory)

        return Case("models", name, go)

    for name, body in _BODIES.items():
        may = "either" if name == "no value" else "fail"  # There is nothing in it to be found.
        yield lint(name, _HEAD + body + "\n", ["dropbn", "lint", "net:Net", "--input=2,3"], may)
    good = _HEAD + "return nn.Dense(2)(x)\n"
    for given in (
        "",
        "x",
        "-1",
        "2,",
        "2,3:foo",
        "2,3:int32:x",
        "0",
        "9" * 400,
        made.LONG,
        "2,3:object",
        "99999999999,3",
    ):
        yield lint(f"--input={given[:20]}", good, ["dropbn", "lint", "net:Net", f"--input={given}"], "either")
    for target in (
        "net:Nt",
        "nt:Net",
        "net",
        "net:",
        "net:nn",
        "net:jax.numpy",
        made.LONG + ":x",
        "net:Net.x",
        "../net:Net",
    ):
        yield lint(target[:30], good, ["dropbn", "lint", target, "--input=2,3"])
    for flag in (
        "--num_steps=0",
        "--format=x",
        "--fail_below=x",
        "--fail_below=nan",
        "--accept_unseen=(",
        "--num_steps=x",
    ):
        yield lint(flag, good, ["dropbn", "lint", "net:Net", "--input=2,3", flag], "either")
    for name, text in {
        "syntax": "def",
        "exit": "import sys; sys.exit(0)",
        "binary": "\0",
        "loop": "import net",
    }.items():
        yield lint(f"module {name}", text, ["dropbn", "lint", "net:Net", "--input=2,3"])
