"""README's Python runs as it stands, and its first screen has the two commands."""

import pathlib
import re

README = (pathlib.Path(__file__).parent.parent / "README.md").read_text()


def test_the_snippet_runs():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    # Uout 0.5 directly before BN: v / (v + s2 (c^2 + v)) with s2 = 1/12 and the convolution's c near 0.
    assert 0.9 < names["found"].rows[0]["ratio"] < 0.94
    assert names["y"].shape == (256, 4, 4, 32)


def test_two_commands_install_and_run():
    first, second = re.findall(r"```\n(python3 -m venv .*?)\n```", README, re.DOTALL)
    assert first.endswith("train.py --config=configs/digits.py")
    assert "pytest" in second
    ci = (pathlib.Path(__file__).parent.parent / ".ci" / "run").read_text()
    for words in ("-r tests/requirements.txt", "-m pytest -n 2", "train.py --config=configs/digits.py"):
        assert words in ci and words in first + second
