"""The rules of lint: each is a function from the facts about a model to its findings."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from dropbn.diagnose import noise_flow, theory
from dropbn.diagnose.noise_flow import Followed, Path, Way
from dropbn.diagnose.noise_flow.marks import Marked
from dropbn.diagnose.tracing import name_of
from dropbn.nn import laws

# The ratio that advice aims at.
_GOOD = 0.95
# A ratio so near to 1 is no shift.
_HARMLESS = 1e-3
# Where drop path belongs, whose purpose is to drop a whole branch.
_END_OF_BRANCH = "Put it at the end of its branch, behind the last BN, right before the addition"


class Facts(NamedTuple):
    """What the rules judge: a traced model, where its noises lead, the number of training steps or None."""

    marked: Marked
    followed: Followed
    num_steps: int | None

    @property
    def drop_paths(self) -> set[str]:
        """The noises that draw at most one number for each example."""
        drawn = {name for name, noise in self.followed.noises.items() if noise.per_example}
        return drawn | self.marked.layers.per_example


_WAYS = {Way.DIRECT: "directly", Way.WEIGHTS: "through weights", Way.SKIP: "into a skip"}


class Rule(NamedTuple):
    """A rule: its title, its severity, and the function that finds and, by its docstring, explains."""

    title: str
    severity: str
    find: Callable[[Facts], Iterator[dict]]


def directly(facts: Facts) -> Iterator[dict]:
    """Only activations, reshapes, pooling or concatenation lie between a noise and a BN.

    The ratio is v / (v + s2 (c^2 + v)), 1 - rate for dropout on inputs of mean 0 (Li et al. 2018, eq. 8; Kim
    et al. 2023, positions P0, P1, P4, H2).
    """
    yield from _on_the_way(facts, Way.DIRECT)


def through_weights(facts: Facts) -> Iterator[dict]:
    """Noise reaches a BN through a weight layer, and no skip that is free of it is added between.

    Var_train = Var_test + s2 sum_i w_i^2 E[x_i^2]. If the weights have mean 0, the ratio is no better than
    directly (Li et al. 2018, eq. 12; Kim et al. 2023, Proposition 2, positions P2, P3, H1).
    """
    yield from _on_the_way(facts, Way.WEIGHTS)


def into_a_skip(facts: Facts) -> Iterator[dict]:
    """Noise reaches a BN after the addition of a skip that is free of it. The papers accept these places.

    The skip's variance dilutes what the noise adds (Kim et al. 2023, Proposition 4, positions P5, P6, P7).
    """
    yield from _on_the_way(facts, Way.SKIP)


def two_in_one_branch(facts: Facts) -> Iterator[dict]:
    """A branch holds more than one noise, and their shifts compound (Kim et al. 2023, suppl. G: P6 + P7).

    Drop path drops the branch with whatever it holds, so it does not count.
    """
    groups = {group - facts.drop_paths for group in facts.followed.together}
    for group in sorted((group for group in groups if len(group) > 1), key=sorted):
        first, *others = sorted(group, key=list(facts.followed.noises).index)
        advice = f"Keep one noise in each branch; this one holds {', '.join([first, *others])}."
        yield _finding(facts, first, advice=advice)


def after_last_weight(facts: Facts) -> Iterator[dict]:
    """Noise stands after the last weight layer of a branch, right before the addition (P7).

    Noise before the weights shifts less wherever sum_j sum_{k != j} w_j w_k E[x_j x_k] > 0 (Kim et al. 2023,
    Proposition 2, from which Guideline 1 prefers P5 and P6). Drop path belongs there.
    """
    for noise in _named(facts, facts.followed.after_last_weight - facts.drop_paths):
        yield _finding(facts, noise, advice="Put it before the branch's last weight layer (P5 or P6).")


def on_the_trunk(facts: Facts) -> Iterator[dict]:
    """Noise stands on the trunk, before it splits into branch and skip (P0).

    It adds up from block to block, and no skip is free of it. It is the worst place in Kim et al. (2023,
    Table 1).
    """
    for noise in _named(facts, facts.followed.on_trunk):
        if noise in facts.drop_paths:
            advice = f"{_END_OF_BRANCH}."
        else:
            advice = "Put it into the branch, after its last BN (P5 or P6)."
        yield _finding(facts, noise, advice=advice)


def after_pooling(facts: Facts) -> Iterator[dict]:
    """Noise stands after global average pooling (H5).

    Before pooling (H3, H4) the same noise averages out over the positions (Kim et al. 2023, Proposition 5 and
    Guideline 2). A noise with one draw for each example does not.
    """
    pooled = {name for name, origin in facts.followed.origins.items() if origin == "pool"}
    for noise in _named(facts, pooled - facts.drop_paths):
        yield _finding(facts, noise, advice="Put it before the pooling, after the last BN (H3 or H4).")


def before_max_pooling(facts: Facts) -> Iterator[dict]:
    """Noise stands right before max pooling, which picks what the noise has enlarged.

    The maximum of noisy values has a larger mean than that of clean ones, so even the mean differs in test
    mode (Wu & Gu 2015, arXiv:1512.00242: the noise draws the unit that wins). One draw for each example
    enlarges all alike.
    """
    for noise in _named(facts, facts.followed.max_pooled - facts.drop_paths):
        yield _finding(facts, noise, advice="Put it after the pooling.")


def bias_before_norm(facts: Facts) -> Iterator[dict]:
    """A BN subtracts the bias of the weight layer right before it (Ioffe & Szegedy 2015, section 3.2)."""
    for norm, bias in facts.followed.biased.items():
        advice = "The weight layer right before it needs no bias: give it use_bias=False."
        yield _finding(facts, norm=norm, other=bias.rpartition("/")[0], advice=advice)


def momentum_too_long(facts: Facts) -> Iterator[dict]:
    """Running statistics will not have forgotten their initial values when training ends.

    The initial mean 0 and variance 1 keep the weight momentum^num_steps in the moving average of
    `flax.linen.BatchNorm`, which every call in a step moves once. A weight above 1 % is reported.
    """
    if facts.num_steps is None:
        return
    for name, norm in facts.marked.norms.items():
        num_moves = facts.num_steps * (1 if math.isnan(norm.calls) else norm.calls)
        left = norm.momentum**num_moves
        if left > 0.01:
            fits = 0.01 ** (1 / max(num_moves, 1))
            advice = (
                f"After {facts.num_steps} steps {left:.0%} of the initial statistics remain: train longer, "
                f"take momentum {fits:.3g} or less, or recalibrate at the end."
            )
            yield _finding(facts, norm=name, advice=advice)


def never_updated(facts: Facts) -> Iterator[dict]:
    """The variables' running statistics are still at mean 0, variance 1.

    Training without mutable=["batch_stats"] leaves them there; so does a checkpoint restored without them.
    """
    for name, norm in facts.marked.norms.items():
        if _is_untrained(norm):
            advice = 'Train with mutable=["batch_stats"] and keep them, restore them, or recalibrate.'
            yield _finding(facts, norm=name, advice=advice)


def several_calls(facts: Facts) -> Iterator[dict]:
    """A forward pass calls a BN more than once, and all its calls share one running mean and variance.

    Call j of k, counted from 0, has the weight m^(k-1-j) (1-m) / (1-m^k) in them; m is the momentum of
    `flax.linen.BatchNorm`. Calls whose inputs have the same distribution may share them. Inputs of different
    domains are each normalized by their own batch in training, but all by the average in test mode.
    """
    for name, norm in facts.marked.norms.items():
        if norm.calls > 1:
            advice = "Give every domain a BN of its own; calls with inputs of one distribution may share it."
            yield _finding(facts, norm=name, advice=advice)


def never_switched_off(facts: Facts) -> Iterator[dict]:
    """Noise is on in test mode too. It shifts no BN, but predictions are random.

    Monte Carlo dropout (Gal & Ghahramani 2016) wants it; otherwise the layer does not get the model's flag.
    """
    for path, use in facts.marked.layers.noises.items():
        if use.test:
            advice = "Pass it the flag that says training, unless predictions are meant to be random."
            yield _finding(facts, name_of(path), advice=advice)
    for where in facts.marked.layers.draws_in_both:
        advice = "Draw in training alone, unless predictions are meant to be random."
        yield _finding(facts, where, advice=advice)


def never_updates(facts: Facts) -> Iterator[dict]:
    """A BN uses its running statistics in training too, and they never move.

    A frozen backbone wants it; otherwise the layer does not get the model's flag.
    """
    for path, use in facts.marked.layers.norms.items():
        if use.train is False:
            advice = "Pass it the flag that says training, unless it is meant to be frozen."
            yield _finding(facts, norm=name_of(path), advice=advice)


def never_uses_running(facts: Facts) -> Iterator[dict]:
    """A BN uses the statistics of the batch in test mode too, so a prediction depends on the other images."""
    for path, use in facts.marked.layers.norms.items():
        if use.test:
            advice = (
                "Pass it the flag that says training, unless predictions are meant to depend on the batch."
            )
            yield _finding(facts, norm=name_of(path), advice=advice)


def unknown_draw(facts: Facts) -> Iterator[dict]:
    """Training draws random numbers that belong to no registered noise and do not just scale or shift data.

    They end in indices, a sort or a choice, for example. So there is no ratio. `shift.predict` runs the
    model's own modes and counts them in.
    """
    for where in (
        each for each in facts.marked.layers.training_draws if each not in facts.followed.understood
    ):
        advice = "Ask shift.predict for the ratio, or use a noise of dropbn.nn.noise."
        for norm in facts.marked.layers.draws[where] or [""]:
            yield _finding(facts, where, norm, advice=advice)


def other_state(facts: Facts) -> Iterator[dict]:
    """A module keeps running state that no tool measures.

    It is no batch normalization by what it does, or it keeps its statistics outside `batch_stats`. Spectral
    normalization is the most common: its state follows from its weights. Codebooks that follow the data are
    another.
    """
    for name in facts.marked.other_state:
        if name not in facts.marked.layers.unseen_states:
            advice = (
                "If it is a batch normalization, register its type, or keep its statistics in batch_stats."
            )
            yield _finding(facts, norm=name, advice=advice)


def unknown_norm(facts: Facts) -> Iterator[dict]:
    """A module keeps running state that may be a batch normalization's, and lint does not know how it works.

    Its input moves two or more leaves with one number for each channel, as it moves a mean and a variance. A
    noise may shift it, or it may shift a batch normalization that it reaches.
    """
    for name in facts.marked.layers.unseen_states:
        yield _finding(facts, norm=name, advice="Register its type in dropbn.diagnose.registry.NORMS.")


RULES = {
    "DBN101": Rule("noise before batch normalization", "error", directly),
    "DBN102": Rule("noise before batch normalization", "error", through_weights),
    "DBN103": Rule("noise in front of a skip", "info", into_a_skip),
    "DBN201": Rule("two noises in one branch", "warning", two_in_one_branch),
    "DBN202": Rule("noise after the branch's last weights", "warning", after_last_weight),
    "DBN203": Rule("noise on the trunk", "warning", on_the_trunk),
    "DBN204": Rule("noise after global average pooling", "info", after_pooling),
    "DBN205": Rule("noise before max pooling", "info", before_max_pooling),
    "DBN206": Rule("bias before batch normalization", "info", bias_before_norm),
    "DBN207": Rule("noise never switched off", "warning", never_switched_off),
    "DBN301": Rule("momentum too long for the run", "warning", momentum_too_long),
    "DBN302": Rule("statistics never updated", "error", never_updated),
    "DBN303": Rule("batch normalization called several times", "info", several_calls),
    "DBN304": Rule("batch normalization never updates in training", "warning", never_updates),
    "DBN305": Rule("batch normalization uses the batch in test mode", "warning", never_uses_running),
    "DBN401": Rule("random draw that is not understood", "warning", unknown_draw),
    "DBN402": Rule("running state that is not measured", "info", other_state),
    "DBN403": Rule("running state that may be a batch normalization's", "warning", unknown_norm),
}


def _finding(facts, noise="", norm="", way="", ratio=None, assumption="", advice="", other=""):
    amount = facts.followed.noises[noise].amount if noise in facts.followed.noises else None
    marked = facts.marked.layers.marked
    lines = {name: _line(marked, name) for name in (noise, norm)}
    layers = {name: lines.get(name, "") for name in (noise, norm, other) if name}
    return {"noise": noise, "norm": norm, "way": way, "amount": amount, "ratio": ratio} | {
        "assumption": assumption,
        "advice": advice,
        "line": next(iter(layers.values()), ""),
        "count": 1,
        "layers": layers,
    }


def _line(marked, name):
    module, is_elsewhere, _ = name.partition(" in '")
    if module in marked:
        return marked[module].line
    # A draw has no mark: where it stands says its line.
    return "" if is_elsewhere else name.partition(" ")[2]


def _named(facts, noises):
    return [name for name in facts.followed.noises if name in noises]


def _on_the_way(facts, way):
    for (noise, norm), carried in facts.followed.reached.items():
        if carried.way == way:
            ratio, assumption = _ratio(facts, noise, norm, carried)
            is_drop_path = noise in facts.drop_paths
            advice = _advice(facts.followed.noises[noise].s2, ratio, way, is_drop_path)
            found = _finding(facts, noise, norm, _WAYS[way], ratio, assumption, advice)
            # Alpha dropout keeps the variance of its input.
            is_harmless = ratio is not None and abs(ratio - 1) < _HARMLESS
            yield found | ({"severity": "info"} if is_harmless else {})


def _ratio(facts: Facts, noise: str, norm: str, carried: Path) -> tuple[float | None, str]:
    """The real / moving variance of a BN if this noise were alone, and what that supposes."""
    drawn, reached = facts.followed.noises[noise], facts.marked.norms[norm]
    if drawn.affine is None:
        return None, "unknown, as is the noise's variance"
    if carried.way == Way.DIRECT and carried.degree != 1 and not carried.is_factor:
        return None, "unknown behind a function of what the noise adds to"
    if reached.var is not None and not _is_untrained(reached):
        variance, how = noise_flow.variance_without_noise(reached, [(drawn, carried)])
        if variance is not None:
            given = "running statistics" + ("" if how.startswith("directly") else " and weights")
            return float(variance.mean() / reached.var.mean()), f"that of the {given}"
    if not carried.is_whole and carried.partial is None:
        return None, "unknown where the noise changes a part of the data"
    known = carried.mean is not None and carried.variance
    c, v = 0.0, 1.0
    if carried.mean is not None and carried.variance:
        c, v = carried.mean, carried.variance
    assumption = f"for inputs of mean {c:.2g} and variance {v:.2g}" + (
        " behind a unit Gaussian" if known else ""
    )
    if carried.way == Way.DIRECT and carried.degree != 1 and carried.is_whole:
        assumption += ", as if nothing lay between"
    elif carried.way != Way.DIRECT and carried.weights:
        assumption += ", weights of mean 0"
    if carried.way == Way.SKIP:
        assumption += "; at least this, because the skip adds variance"
    in_training = drawn.affine.train_variance(c, v) if carried.partial is None else v + carried.partial
    return float(v / in_training), assumption


def _advice(s2, ratio, way, is_drop_path):
    if way == Way.SKIP:
        return "Accepted by the papers; nothing to do unless shift.measure says otherwise."
    advice = _END_OF_BRANCH if is_drop_path else "Move it after the last BN (surgery.move_to_last_bn)"
    if s2 is None or ratio is None or not 0 < ratio < 1:
        return advice + "."
    largest = theory.largest_s2_from(_GOOD, s2, ratio)
    limit = f"a rate up to {laws.Dropout.of_s2(largest).rate:.2g}"
    if not is_drop_path:  # A factor that is near 1 would drop no path.
        limit += f" or Uout up to {laws.Uout.of_s2(min(largest, laws.Uout(1).s2)).beta:.2g}"
    return f"{advice}, or keep the ratio above {_GOOD} with {limit}."


def _is_untrained(norm):
    return norm.var is not None and not np.any(norm.mean) and np.all(norm.var == 1)
