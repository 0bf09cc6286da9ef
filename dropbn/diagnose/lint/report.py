"""The findings of the rules in a model, as rows."""

import dataclasses
import fnmatch
from collections.abc import Sequence
from typing import Any

import rich.box
import rich.console
import rich.table
import rich.text

from dropbn.diagnose import entry, noise_flow
from dropbn.diagnose.entry import ModelOrPair
from dropbn.diagnose.given import check_count, check_inputs
from dropbn.diagnose.lint.rules import RULES, Facts
from dropbn.diagnose.noise_flow import marks
from dropbn.results import Result

_SEVERITIES = ("error", "warning", "info")


@dataclasses.dataclass(frozen=True)
class Report(Result):
    """Findings, the severest first.

    Each row holds:
      code: the rule, a key of `RULES`.
      severity: "error", "warning" or "info".
      noise, norm: paths of the layers that the finding is about, "" if it is not about one; the first of them
        if it is about several.
      way: how the noise reaches the BN, "directly", "through weights" or "into a skip"; "" in other findings.
      amount: rate or beta of the noise; None if unknown.
      ratio: the real / moving variance to expect at the BN; None if unknown.
      assumption: what the ratio supposes.
      advice: what to do.
      line: the user's line that calls the first layer, such as "net.py:41"; "" if it is not known.
      count: about how many BNs the same is found; one row stands for them all.
      layers: every layer of the row, and the line that calls it.
    """

    def unseen(self, accepted: Sequence[str] = ()) -> list[dict]:
        """What is not understood, and may shift a BN or be one that is shifted, without what is accepted.

        Args:
          accepted: patterns, with the wildcards of `fnmatch`, of where draws stand and of modules that keep
            running state.
        """
        draws = [(row, [row["noise"]]) for row in self.rows if row["code"] == "DBN401" and row["norm"]]
        states = [(row, row["layers"]) for row in self.rows if row["code"] == "DBN403"]
        return [
            row
            for row, names in draws + states
            if not all(any(fnmatch.fnmatchcase(name, each) for each in accepted) for name in names)
        ]

    def errors(self, below: float | None = None) -> list[dict]:
        """The errors; with `below` only those whose ratio is below it or unknown."""
        rows = [row for row in self.rows if row["severity"] == "error"]
        return [row for row in rows if below is None or row["ratio"] is None or row["ratio"] < below]

    def __rich__(self) -> rich.console.RenderableType:
        if not self.rows:
            return rich.text.Text(f"{self.title}: nothing found")
        table = rich.table.Table(title=self.title, title_justify="left", box=rich.box.SIMPLE_HEAD)
        for column in ("", "layer", "line", "finding"):
            table.add_column(column, overflow="fold")
        table.add_column("ratio", justify="right", overflow="fold")
        for (code, *_), rows in _grouped(self.rows, "code", "noise", "way", "norm"):
            row, finding = _worst(rows), RULES[code].title
            ratio = "" if row["ratio"] is None else f"{row['ratio']:.3f}"
            finding += f", {row['way']}" if row["way"] else ""
            cells = f"{row['severity']} {code}", _layers(rows), row["line"], finding, ratio
            table.add_row(*map(rich.text.Text, cells))
        worst = {row["code"]: row for row in reversed(self.rows)}
        lines = []
        for code in sorted(worst):
            row = worst[code]
            about = f"The ratio is {row['assumption']}. " if row["assumption"] else ""
            lines.append(rich.text.Text(f"{code}  {about}{row['advice']}"))
        return rich.console.Group(table, *lines)

    def summary(self) -> list[str]:
        """A heading and a line for every code, with its worst example; no lines if nothing is found."""
        lines = ["Lint's findings about this network:"] if self.rows else []
        for (code,), rows in _grouped(self.rows, "code"):
            first = _worst(rows)
            ratio = "" if first["ratio"] is None else f", ratio {first['ratio']:.2f}"
            lines.append(f"  {code} ({first['severity']}) {RULES[code].title}: {_layers(rows, ratio)}")
        return lines


def _grouped(rows, *keys):
    """(values of the keys, rows that share them), in the order of the rows.

    A noise that reaches several BNs in one way is one group.
    """
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        values = tuple(row[key] for key in keys if key != "norm" or not row["noise"])
        groups.setdefault(values, []).append(row)
    return groups.items()


def _worst(rows):
    return min(rows, key=lambda row: 1.0 if row["ratio"] is None else row["ratio"])


def _layers(rows, ratio=""):
    """The layers of the worst row, its ratio, and how many others there are."""
    worst, more = _worst(rows), sum(row["count"] for row in rows) - 1
    layers = " -> ".join(filter(None, (worst["noise"], worst["norm"])))
    return layers + ratio + (f" and {more} more" if more else "")


def check(
    model: ModelOrPair,
    *inputs: Any,
    variables: dict | None = None,
    num_steps: int | None = None,
    **call: Any,
) -> Report:
    """Reports what `RULES` find in a model.

    The ratio of a finding is the variance of the BN's input without the noise over the variance that the BN
    remembers with it. It comes from the weights and statistics of `variables` if they are trained, otherwise
    from closed forms that suppose a unit Gaussian out of every BN and weights of mean zero; `assumption` says
    which.

    Args:
      model: any module of Linen or NNX, or a pair of Linen modules (for training, for test);
        `dropbn.diagnose.modes` says which of its layers can be reached.
      *inputs: examples of its inputs, arrays or `jax.ShapeDtypeStruct`s; only shapes and types matter.
      variables: its variables, trained or not. Those inside an NNX model count if they are trained.
      num_steps: how many steps it will be trained, for DBN301.
      **call: how the model is called; see `dropbn.diagnose.call.Call`.

    Returns:
      A `Report`, which rich prints as a table.

    Raises:
      DropbnError: the model cannot be traced with these inputs.

    >>> import flax.linen as nn
    >>> import jax.numpy as jnp
    >>> class Net(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x, train):
    ...         x = nn.Dropout(0.5)(nn.Dense(8)(x), deterministic=not train)
    ...         return nn.BatchNorm()(x, use_running_average=not train)
    >>> [(row["code"], row["norm"], row["ratio"]) for row in check(Net(), jnp.ones((2, 4))).errors()]
    [('DBN101', 'BatchNorm_0', 0.5)]
    """
    if num_steps is not None:
        check_count("num_steps", num_steps)
    called, state = entry.model_to_trace(model, variables, call)
    for x in inputs[:1]:
        check_inputs(x)
    marked = marks.trace(called, inputs, {}, state)
    facts = Facts(marked, noise_flow.follow(marked), num_steps)
    rows = [
        {"code": code, "severity": rule.severity} | finding
        for code, rule in RULES.items()
        for finding in rule.find(facts)
    ]
    rows = _gathered(rows)
    rows.sort(key=lambda row: _SEVERITIES.index(row["severity"]))
    layers, noises = marked.layers, facts.followed.noises
    registered = layers.noises.keys() - (layers.by_hand | layers.within).values()
    drawing: list = [path for path in registered if layers.noises[path].train or layers.noises[path].test]
    drawing += [name for name, noise in noises.items() if noise.is_drawn]
    counts = [_count(drawing, "noise"), _count(layers.norms, "batch normalization")]
    unknown = [where for where in layers.training_draws if where not in facts.followed.understood]
    counts += [f"{_count(unknown, 'random draw')} not understood"] * bool(unknown)
    return Report(rows, f"{called.name}: {', '.join(counts)}")


def _gathered(rows):
    """The rows, those that say the same of several BNs as one."""
    gathered: dict[tuple, dict] = {}
    for row in rows:
        # A noise is moved one by one, so each has a row of its own.
        alike = (row["code"], row["advice"]) if not row["noise"] else (len(gathered),)
        if alike in gathered:
            first = gathered[alike]
            first |= {"count": first["count"] + 1, "layers": first["layers"] | row["layers"]}
        else:
            gathered[alike] = row
    return [*gathered.values()]


def _count(layers, noun):
    return f"{len(layers)} {noun}{'' if len(layers) == 1 else 's'}"


def assert_no_shift(
    model: ModelOrPair,
    *inputs: Any,
    below: float = 1.0,
    accept_unseen: Sequence[str] = (),
    **options: Any,
) -> None:
    """For tests: raises AssertionError if noise shifts a BN, or if what may do so is not understood.

    Args:
      model, *inputs, **options: see `check`.
      below: the smallest ratio that is accepted; an unknown ratio is not.
      accept_unseen: patterns of draws and of modules that are accepted; see `Report.unseen`.
    """
    report = check(model, *inputs, **options)
    errors, unseen = report.errors(below), report.unseen(accept_unseen)
    lines = [f"{row['noise']} -> {row['norm']}: {row['way']}, ratio {row['ratio']}" for row in errors]
    assert not errors, "Noise shifts the variance of batch normalizations:\n" + "\n".join(lines)
    lines = [" -> ".join(filter(None, (row["noise"], row["norm"]))) for row in unseen]
    assert not unseen, "What is not understood may shift batch normalizations:\n" + "\n".join(lines)
