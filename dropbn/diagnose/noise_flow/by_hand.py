"""Noises followed through a jaxpr, those included that the model draws by hand."""

import dataclasses
from collections.abc import Hashable
from typing import Any

from dropbn.diagnose import random_draws
from dropbn.diagnose.noise_flow import forms
from dropbn.diagnose.noise_flow.expressions import Expression
from dropbn.diagnose.noise_flow.followed import Followed
from dropbn.diagnose.noise_flow.follower import Follower
from dropbn.diagnose.noise_flow.forms import Forms
from dropbn.diagnose.noise_flow.marks import Key, Marked, Parameter
from dropbn.diagnose.noise_flow.values import Value


def follow(marked: Marked, probe_norms: bool = False) -> Followed:
    """Follows every noise of a traced model to the first BN on each of its paths.

    Args:
      marked: the traced model.
      probe_norms: also follow a supposed noise on the output of each BN, under the BN's name.
    """
    if marked.at_test is None:
        return Follower(marked, probe_norms).follow()
    at_test = Forms()
    _ByHand(marked.at_test, False, at_test).follow()
    found = Forms(frozenset(marked.layers.training_draws), at_test)
    return _ByHand(marked, probe_norms, found).follow()


class _ByHand(Follower):
    """A follower that keeps the form of every array, and completes a noise where something takes it."""

    def __init__(self, marked: Marked, probe_norms: bool, found: Forms) -> None:
        super().__init__(marked, probe_norms)
        self.forms = found

    def follow(self) -> Followed:
        super().follow()
        self.followed.unknown |= self.forms.unknown
        return self.followed

    def given(self, number: int, given: Parameter | Key | None) -> Value:
        if isinstance(given, Key):
            return Value(drawn=Expression(value=given.value, is_key=True))
        return self.fresh(super().given(number, given), ("input", number))

    def apply(self, eqn: Any, values: list[Value]) -> list[Value]:
        has_data, has_drawn = any(v.data for v in values), any(v.drawn for v in values)
        if not has_data:
            return self._drawn(eqn, values) if has_drawn else self.described(eqn, values)
        form = self.forms.affine(eqn, values)
        if form is not None:
            # The description is that of the array without what is drawn.
            x = next(v for v in values if v.data) if has_drawn else self.described(eqn, values)[0]
            return [dataclasses.replace(x, form=form)]
        self.forms.note_unknown(eqn, values)
        label, is_mark = forms.label_of(eqn, values), eqn.primitive.name == "dropbn_mark"
        outputs = self.described(eqn, [*values[:is_mark], *self.taken(label, values[is_mark:])])
        return [self.fresh(each, (label, number) if number else label) for number, each in enumerate(outputs)]

    def taken(self, label: Hashable, values: list[Value]) -> list[Value]:
        return [self._completed((label, number), value) for number, value in enumerate(values)]

    def fresh(self, value: Value, label: Hashable) -> Value:
        return forms.fresh(value, label) if value.data else value

    def _completed(self, key, value):
        if not (name := self.forms.take(key, value)):
            return value
        self.followed.noises[name] = self.forms.noises[name]
        return forms.fresh(self.noise(name, self.forms.in_test_mode(key, value)), value.form.label)

    def _drawn(self, eqn, values):
        where = random_draws.where(self.calls)
        if eqn.primitive.name in ("scan", "while", "cond"):
            inside = [output.drawn.draws for output in self.described(eqn, values) if output.drawn]
            where = "; ".join(sorted({draw.name for draw in frozenset().union(*inside)}))
        return self.forms.drawn(eqn, values, where)
