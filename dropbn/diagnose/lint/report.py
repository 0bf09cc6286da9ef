"""The findings of the rules in a model, as rows."""

import dataclasses
import fnmatch
from collections.abc import Sequence
from typing import Any

import rich.box
import rich.console
import rich.table
import rich.text

from dropbn.diagnose import noise_flow
from dropbn.diagnose.linen import Model, ModelOrPair
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
      noise, norm: paths of the layers that the finding is about, "" if it is not about one.
      way: how the noise reaches the BN, "directly", "through weights" or "into a skip"; "" in other findings.
      amount: rate or beta of the noise; None if unknown.
      ratio: the real / moving variance to expect at the BN; None if unknown.
      assumption: what the ratio supposes.
      advice: what to do.
    """

    def unseen(self, accepted: Sequence[str] = ()) -> list[dict]:
        """The random draws that reach a BN and are not understood, without the accepted ones.

        Args:
          accepted: patterns, with the wildcards of `fnmatch`, of where draws stand.
        """
        rows = [row for row in self.rows if row["code"] == "DBN401" and row["norm"]]
        return [row for row in rows if not any(fnmatch.fnmatchcase(row["noise"], each) for each in accepted)]

    def errors(self, below: float | None = None) -> list[dict]:
        """The errors; with `below` only those whose ratio is below it or unknown."""
        rows = [row for row in self.rows if row["severity"] == "error"]
        return [row for row in rows if below is None or row["ratio"] is None or row["ratio"] < below]

    def __rich__(self) -> rich.console.RenderableType:
        if not self.rows:
            return rich.text.Text(f"{self.title}: nothing found")
        table = rich.table.Table(title=self.title, title_justify="left", box=rich.box.SIMPLE_HEAD)
        for column in ("", "layer", "finding"):
            table.add_column(column, overflow="fold")
        table.add_column("ratio", justify="right", overflow="fold")
        for row in self.rows:
            layer = " -> ".join(filter(None, (row["noise"], row["norm"])))
            ratio = "" if row["ratio"] is None else f"{row['ratio']:.3f}"
            finding = f"{RULES[row['code']].title}{', ' + row['way'] if row['way'] else ''}"
            table.add_row(*map(rich.text.Text, (f"{row['severity']} {row['code']}", layer, finding, ratio)))
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
        for code in dict.fromkeys(row["code"] for row in self.rows):
            rows = [row for row in self.rows if row["code"] == code]
            first = min(rows, key=lambda row: 1.0 if row["ratio"] is None else row["ratio"])
            ratio = "" if first["ratio"] is None else f", ratio {first['ratio']:.2f}"
            layers = " -> ".join(filter(None, (first["noise"], first["norm"])))
            more = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
            lines.append(f"  {code} ({first['severity']}) {RULES[code].title}: {layers}{ratio}{more}")
        return lines


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
      model: any Linen module, or a pair (for training, for test); `dropbn.diagnose.modes` says which of its
        layers can be reached.
      *inputs: examples of its inputs, arrays or `jax.ShapeDtypeStruct`s; only shapes and types matter.
      variables: its variables, trained or not.
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
    called = Model.of(model, call)
    marked = marks.trace(called, inputs, {}, variables)
    facts = Facts(marked, noise_flow.follow(marked), num_steps)
    rows = [
        {"code": code, "severity": rule.severity} | finding
        for code, rule in RULES.items()
        for finding in rule.find(facts)
    ]
    rows.sort(key=lambda row: _SEVERITIES.index(row["severity"]))
    layers, noises = marked.layers, facts.followed.noises
    drawing = [path for path, use in layers.noises.items() if use.train or use.test]
    drawing += [name for name, noise in noises.items() if noise.is_drawn]
    counts = [_count(drawing, "noise"), _count(layers.norms, "batch normalization")]
    unknown = [where for where in layers.unswitched if where not in facts.followed.understood]
    counts += [f"{_count(unknown, 'random draw')} not understood"] * bool(unknown)
    return Report(rows, f"{called.name}: {', '.join(counts)}")


def _count(layers, noun):
    return f"{len(layers)} {noun}{'' if len(layers) == 1 else 's'}"


def assert_no_shift(
    model: ModelOrPair,
    *inputs: Any,
    below: float = 1.0,
    accept_unseen: Sequence[str] = (),
    **options: Any,
) -> None:
    """For tests: raises AssertionError if noise shifts a BN, or if a draw that may do so is not understood.

    Args:
      model, *inputs, **options: see `check`.
      below: the smallest ratio that is accepted; an unknown ratio is not.
      accept_unseen: patterns of draws that are accepted; see `Report.unseen`.
    """
    report = check(model, *inputs, **options)
    errors, unseen = report.errors(below), report.unseen(accept_unseen)
    lines = [f"{row['noise']} -> {row['norm']}: {row['way']}, ratio {row['ratio']}" for row in errors]
    assert not errors, "Noise shifts the variance of batch normalizations:\n" + "\n".join(lines)
    lines = [f"{row['noise']} -> {row['norm']}" for row in unseen]
    assert not unseen, "Random draws that are not understood reach batch normalizations:\n" + "\n".join(lines)
