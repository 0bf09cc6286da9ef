"""Arrays as affine forms, which tell what numbers drawn by hand do to the data.

Every array of data is a form m * base + n, where base is the last array that was not made so, and m and n are
expressions (`expressions.Expression`). Products with what was drawn, sums, selections and reshapes change a
form. Everything else, such as an activation or a convolution, takes it: then the noise y = m * base + n is
complete. The same trace in test mode says what the array is there, m_t * base + n_t.
"""

import dataclasses
import itertools
import math
from collections.abc import Hashable
from typing import Any

import numpy as np

from dropbn.diagnose.noise_flow import expressions, functions
from dropbn.diagnose.noise_flow.expressions import ONE, ZERO, Expression
from dropbn.diagnose.noise_flow.values import Form, Value
from dropbn.diagnose.noises import Noise
from dropbn.diagnose.tracing import DRAWING

_MOVES = functions.SHAPES - {"pad", "convert_element_type", "dynamic_slice"}
_numbers = itertools.count()


class Forms:
    """The forms of one trace.

    Attributes:
      followed: where the draws stand that are followed. Others are taken for unknown constants.
      noises: the noises that were found, by where their draws stand.
      unknown: where draws stand that do something else than scale and shift data.
    """

    def __init__(self, followed: frozenset[str] = frozenset(), at_test: "Forms | None" = None) -> None:
        self.followed, self._at_test = followed, at_test
        self.noises: dict[str, Noise] = {}
        self.unknown: set[str] = set()
        self._judged: set[tuple[Expression, Expression]] = set()
        self._taken: dict[Hashable, tuple[Expression, Expression]] = {}
        self._by_label: dict[Hashable, list[tuple[Expression, Expression]]] = {}

    def drawn(self, eqn: Any, values: list[Value], where: str) -> list[Value]:
        """The outputs of an equation that takes drawn values and no data."""
        name = where if eqn.primitive.name in DRAWING | {"scan", "while", "cond"} else ""
        if name and not self.followed.intersection(name.split("; ")):
            return [Value()] * len(eqn.outvars)
        operands = tuple(map(_expression, values))
        return [Value(drawn=Expression(eqn, operands, i, name=name)) for i in range(len(eqn.outvars))]

    def affine(self, eqn: Any, values: list[Value]) -> Form | None:
        """The form of an equation's output; None if it is not affine in the base of one form."""
        forms, name = [value.form for value in values], eqn.primitive.name
        data = [form for form in forms if form is not None]
        if len({form.base for form in data}) != 1:
            return None
        slopes = [form.m if form else ZERO for form in forms]
        shifts = [form.n if form else _expression(value) for form, value in zip(forms, values, strict=True)]
        if name == "convert_element_type":
            return data[0]
        if name in _MOVES:
            m, n = (_moved(eqn, each) for each in (data[0].m, data[0].n))
            return dataclasses.replace(data[0], m=m, n=n) if len(values) == 1 else None
        if name == "mul" or (name == "div" and forms[0] is not None):
            if len(data) > 1:
                return None
            slopes = [form.m if form else shift for form, shift in zip(forms, shifts, strict=True)]
        elif name == "select_n" and forms[0] is None:
            slopes[0] = shifts[0]
        elif name not in ("add", "sub", "add_any", "neg"):
            return None
        return dataclasses.replace(
            data[0], m=Expression(eqn, tuple(slopes)), n=Expression(eqn, tuple(shifts))
        )

    def note_unknown(self, eqn: Any, values: list[Value]) -> None:
        """Notes drawn values that an equation takes together with data, where it is not affine."""
        if eqn.primitive.name in ("scan", "while"):
            return
        deciding = values[:1] if eqn.primitive.name == "cond" else values
        for value in deciding:
            self.unknown |= {draw.name for draw in value.drawn.draws} if value.drawn else set()

    def take(self, key: Hashable, value: Value) -> str:
        """Notes that an array is taken by what `key` names; returns the noise that is complete, or ""."""
        if (form := value.form) is None:
            return ""
        draws = form.m.draws | form.n.draws
        if not draws:
            self._taken[key] = pair = form.m, form.n
            self._by_label.setdefault(form.label, []).append(pair)
            return ""
        name = "; ".join(sorted({draw.name for draw in draws}))
        if (form.m, form.n) not in self._judged:
            self._judged.add((form.m, form.n))
            at_test = self._at_test.find(key, form.label) if self._at_test else None
            noise = _noise(form, draws, at_test)
            # A function that draws may be called with several amounts, all on its one line.
            is_same = _is_close(self.noises.get(name, noise).affine, noise.affine)
            self.noises[name] = noise if is_same else noise._replace(affine=None)
        return name

    def find(self, key: Hashable, label: Hashable) -> tuple[Expression, Expression] | None:
        """(m, n) of what test mode takes where training takes a noise; None if it cannot be told."""
        pairs = self._by_label.get(label, [])
        if key in self._taken or not pairs:
            return self._taken.get(key)
        return pairs[0] if all(expressions.equal(pairs[0], pair) for pair in pairs[1:]) else None

    def in_test_mode(self, key: Hashable, value: Value) -> Value:
        """A value with the distribution that the array has in test mode, as far as that is known."""
        form = value.form
        pair = self._at_test.find(key, form.label) if self._at_test and form else None
        if not form or pair is None or value.gauss is None or form.gauss is None:
            return value
        m, n = (expressions.by_channel(each, value.gauss.shape[-1]) for each in pair)
        if m is None or n is None:
            return dataclasses.replace(value, gauss=None, source="")
        return dataclasses.replace(value, gauss=m * form.gauss + n)


def fresh(value: Value, label: Hashable) -> Value:
    """The value as the base of forms."""
    return dataclasses.replace(value, form=Form(next(_numbers), label, ONE, ZERO, value.gauss))


def label_of(eqn: Any, values: list[Value]) -> Hashable:
    """A label of what an equation computes: the same in training as in test mode."""
    name, params = eqn.primitive.name, eqn.params
    labels = [value.form.label if value.form else value.name for value in values]
    if name == "dropbn_mark":
        return labels[1] if params["kind"] == "noise" else ("norm", params["name"])
    return hash((name, *labels))


def _noise(form, draws, at_test):
    shape = (form.m if form.m.draws else form.n).shape
    most, size = max(draw.size for draw in draws), math.prod(shape)
    return Noise(
        amount=None,
        affine=expressions.affine(form.m, form.n, at_test),
        is_positive=expressions.is_positive(form.m) and not form.n.draws,
        is_shared=any(draw.size < size for draw in draws),
        is_drawn=True,
        per_example=most <= shape[0] < size if shape else False,
    )


def _is_close(a, b):
    return a is b or (a is not None and b is not None and np.allclose(a, b, rtol=0.05, atol=1e-3))


def _expression(value):
    return value.drawn or Expression(value=value.constant, name=value.name)


def _moved(eqn, expression):
    # One number is the same at every place.
    return expression if expression in (ONE, ZERO) else Expression(eqn, (expression,))
