"""Every tool on models in the styles of public code, against plain Flax and float64 NumPy."""

import functools
import itertools
import re

import drawn_models
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import own_norms
import public_style_models
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from dropbn.diagnose import gap, lint, recalibrate, shift, surgery, uncertainty
from dropbn.errors import DropbnError
from dropbn.nn.noise import Uout

CASES = public_style_models.CASES | drawn_models.CASES
# These run by default; compilation makes the others slow.
_DEFAULT = ("vae", "conformer", "attention")

_numbers = itertools.count()


def _each(names=CASES):
    marks = {name: () if name in _DEFAULT else pytest.mark.slow for name in names}
    return pytest.mark.parametrize("name", [pytest.param(name, marks=marks[name]) for name in names])


_with_norm = _each([name for name in CASES if name != "spectral"])


@functools.cache
def _variables(name):
    """Variables whose running statistics are neither 0 and 1 nor those of the data."""
    variables = dict(CASES[name].init())
    leaves, tree = jax.tree.flatten(variables.get("batch_stats", {}))
    drawn = np.random.default_rng(0)
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    leaves = [leaf + jnp.asarray(drawn.uniform(0.1, 0.5, leaf.shape), leaf.dtype) for leaf in leaves]
    return variables | ({"batch_stats": jax.tree.unflatten(tree, leaves)} if leaves else {})


def _flat(tree):
    return flatten_dict(tree, sep="/")


class _Norms:
    """A plain call that sows the input and the mask of every BN, and notes what the model does with it."""

    def __init__(self, case, training, by_hand=False):
        self.momentum, self.epsilon, self.frozen, self.case = {}, {}, {}, case
        always = {norm for _, norm in case.findings.get("DBN305", ())}
        self.by_hand = lambda name: by_hand and name not in always

        def call(variables, batch, rngs):
            # nn.jit keeps what it traced, by the collections among others.
            mutable = ["batch_stats", "intermediates", "state", f"fresh {next(_numbers)}"]
            with nn.intercept_methods(self._intercept):
                return case.plain(variables, batch, training, rngs=rngs, mutable=mutable)

        self.call = jax.jit(call)

    def _intercept(self, run, args, kwargs, context):
        norm = context.module
        told = own_norms.Call.of(norm, args, kwargs) if context.method_name == "__call__" else None
        if told is None:
            return run(*args, **kwargs)
        name = "/".join(norm.path)
        self.momentum[name], self.epsilon[name], self.frozen[name] = told[:3]
        norm.sow("intermediates", "input", args[0])
        mask = kwargs.get("mask") if told.padding is None else told.padding[..., None] == 0
        if mask is not None:
            norm.sow("intermediates", "mask", jnp.broadcast_to(mask, args[0].shape))
        return _with_running(norm, args[0], told) if self.by_hand(name) else run(*args, **kwargs)

    def inputs(self, variables, rngs):
        """{layer: [values (values, channels) of each call]} of all batches, in float64."""
        found = {}
        for index, batch in enumerate(self.case.batches):
            _, updated = self.call(variables, batch, _fold_in(rngs, index))
            sown = flatten_dict(updated["intermediates"])
            for path in (path[:-1] for path in sown if path[-1] == "input"):
                calls = [_selected(sown, path, call) for call in range(len(sown[*path, "input"]))]
                is_stacked = own_norms.statistic(_layer(variables, "/".join(path)), "mean").ndim > 1
                for label, values in _layers("/".join(path), calls, is_stacked):
                    found.setdefault(label, []).append(values)
        return {label: np.concatenate(values) for label, values in found.items()}


def _with_running(norm, x, told):
    """Normalizes by the formula, with the running statistics."""
    mean, var = (own_norms.statistic(norm.variables["batch_stats"], key) for key in ("mean", "var"))
    y = (x - mean) / jnp.sqrt(var + told.epsilon) * told.scale + told.bias
    return (y if told.padding is None else y * (1 - told.padding[..., None])).astype(x.dtype)


def _selected(sown, path, call):
    """The values of a call that its mask leaves, in float64."""
    x = np.asarray(sown[*path, "input"][call], np.float64)
    if (*path, "mask") in sown:
        return x[np.asarray(sown[*path, "mask"][call])].reshape(-1, x.shape[-1])
    return x


def _layers(name, calls, is_stacked):
    """(the row's name, values (values, channels)) of every layer and call."""
    if is_stacked:
        return [(f"{name}[{i}]", x.reshape(-1, x.shape[-1])) for i, x in enumerate(calls[0])]
    several = len(calls) > 1
    return [
        (name + f"[call {call}]" * several, x.reshape(-1, x.shape[-1])) for call, x in enumerate(calls, 1)
    ]


def _fold_in(rngs, index):
    return {stream: jax.random.fold_in(key, index) for stream, key in rngs.items()}


def _layer(variables, name):
    return functools.reduce(dict.__getitem__, name.split("/"), variables["batch_stats"])


def _running(variables, row, key):
    """A running statistic of a row's layer, in float64."""
    name, bracket, rest = row["layer"].partition("[")
    leaf = np.asarray(own_norms.statistic(_layer(variables, name), key), np.float64)
    return leaf[int(rest[:-1])] if bracket and not rest.startswith("call") else leaf


def _check(rows, norms, case, variables, tolerance):
    """Rows of a shift against values (values, channels) of test mode."""
    inputs = norms.inputs(variables, case.keys)
    assert {row["layer"] for row in rows} == set(inputs)
    for row in rows:
        values = inputs[row["layer"]]
        mean, var = (_running(variables, row, key) for key in ("mean", "var"))
        distance = (values.mean(0) - mean) / np.sqrt(var + norms.epsilon[row["layer"].partition("[")[0]])
        assert row["count"] == len(values)
        assert row["moving_var"] == pytest.approx(var.mean(), rel=tolerance)
        assert row["real_var"] == pytest.approx(values.var(0).mean(), rel=tolerance)
        assert row["ratio"] == pytest.approx(values.var(0).mean() / var.mean(), rel=tolerance)
        shift = np.sqrt((distance**2).mean())
        assert row["mean_shift"] == pytest.approx(shift, rel=10 * tolerance, abs=tolerance)


def _loose(name, tolerance):
    # bfloat16 has 8 bits, and rounds differently in one program and in another.
    return 2e-2 if name == "half precision" else tolerance


@_with_norm
def test_measure_is_numpy_on_captured_inputs(name):
    case, variables = CASES[name], _variables(name)
    found = shift.measure(case.model, variables, case.batches, **case.call)
    _check(found.rows, _Norms(case, training=False), case, variables, _loose(name, 1e-6))


@functools.cache
def _trained(name):
    """The variables at the fixed point of plain training's running statistics for these weights.

    k calls of momentum m move r to m^k r + n, so that it is n / (1 - m^k); n is what they leave of r = 0.
    """
    case, variables = CASES[name], _variables(name)
    norms, total = _Norms(case, training=True), {}
    norms.call(variables, case.batches[0], case.keys)  # Notes which layers are frozen.
    live = {
        path
        for path in _flat(variables["batch_stats"])
        if not norms.frozen[path.rpartition("/")[0]] and own_norms.is_statistic(path.rpartition("/")[2])
    }
    flat = {path: leaf * (path not in live) for path, leaf in _flat(variables["batch_stats"]).items()}
    zero = {**variables, "batch_stats": unflatten_dict(flat, sep="/")}
    for index, batch in enumerate(case.batches):
        _, updated = norms.call(zero, batch, _fold_in(case.keys, index))
        calls = {path.rpartition("/")[0]: len(x) for path, x in _flat(updated["intermediates"]).items()}
        for path, leaf in _flat(updated["batch_stats"]).items():
            layer = path.rpartition("/")[0]
            grown = 1 - norms.momentum[layer] ** calls[layer] if path in live else 1
            total[path] = total.get(path, 0) + np.asarray(leaf, np.float64) / grown / len(case.batches)
    stats = {path: jnp.asarray(leaf, flat[path].dtype) for path, leaf in total.items()}
    return {**variables, "batch_stats": unflatten_dict(stats, sep="/")}


@_with_norm
def test_predict_is_plain_training_and_then_plain_test_mode(name):
    case, variables = CASES[name], _variables(name)
    found = shift.predict(case.model, variables, case.batches, **case.call)
    trained = _trained(name)
    _check(found.rows, _Norms(case, training=False), case, trained, _loose(name, 1e-5))


@_with_norm
def test_no_shift_is_left_by_recalibration(name):
    case, variables = CASES[name], _variables(name)
    new = recalibrate.recalibrate(case.model, variables, case.batches, **case.call)
    after = {**variables, "batch_stats": new.batch_stats}
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, variables)
    values = {}  # of all calls of a layer, whose union has the new statistics
    for layer, found in _Norms(case, training=False).inputs(after, case.keys).items():
        values.setdefault(layer.partition("[call")[0], []).append(found)
    frozen = {norm for _, norm in case.findings.get("DBN304", ())}
    for layer, found in values.items():
        if layer in frozen:
            continue
        for key, wanted in (("mean", np.concatenate(found).mean(0)), ("var", np.concatenate(found).var(0))):
            loose = _loose(name, 1e-4)
            np.testing.assert_allclose(_running(after, {"layer": layer}, key), wanted, rtol=loose, atol=loose)
    for path in frozen:
        jax.tree.map(np.testing.assert_array_equal, *(_layer(given, path) for given in (after, variables)))
    for row in shift.measure(case.model, after, case.batches, **case.call).rows:
        if "[call" not in row["layer"] and row["layer"] not in frozen:
            assert row["ratio"] == pytest.approx(1, abs=_loose(name, 1e-4))
    assert not frozen & {row["layer"] for row in new.rows}


@_with_norm
@pytest.mark.slow
def test_every_recipe_gives_statistics(name):
    case, variables = CASES[name], _variables(name)
    recipes = [(recipe, {}) for recipe in recalibrate.RECIPE_NAMES[1:]]
    for recipe, options in [*recipes, ("precise_bn", {"noise": True})]:
        if recipe == "closed_form" and not _has_shift(case):
            continue
        new = recalibrate.recalibrate(case.model, variables, case.batches, recipe, **options, **case.call)
        old, new = _flat(variables["batch_stats"]), _flat(new.batch_stats)
        assert {path: leaf.shape for path, leaf in new.items()} == {p: leaf.shape for p, leaf in old.items()}
        assert all(np.isfinite(leaf).all() for leaf in new.values())


def _has_shift(case):
    return {"DBN101", "DBN102", "DBN103"} & case.findings.keys()


def _losses(task, outputs, labels):
    """(losses, correct or None) of examples, by the formulas, in float64."""
    outputs, labels = np.asarray(outputs, np.float64), np.asarray(labels)
    number = len(outputs)
    if task == "regress":
        return np.square(outputs.reshape(labels.shape) - labels).reshape(number, -1).mean(-1), None
    if task == "classify":
        labels = labels.argmax(-1) if labels.shape == outputs.shape else labels
        p = np.exp(outputs) / np.exp(outputs).sum(-1, keepdims=True)
        losses = -np.log(np.take_along_axis(p, labels[..., None], -1))[..., 0]
        right = outputs.argmax(-1) == labels
    else:
        labels = labels.reshape(outputs.shape)
        losses = -np.log(1 / (1 + np.exp(np.where(labels, -outputs, outputs))))
        right = (outputs > 0) == labels
    return losses.reshape(number, -1).mean(-1), right.reshape(number, -1).mean(-1)


def _plain(case, variables, batch, training, rngs):
    """The output of a plain call."""
    mutable = ["batch_stats", "state"]
    return case.output(case.plain(variables, batch, training, rngs=rngs, mutable=mutable)[0])


def _evaluated(case, variables, training):
    """(accuracy or None, loss) of plain evaluation of all batches."""
    losses, right = [], []
    for index, batch in enumerate(case.batches):
        returned = _plain(case, variables, batch, training, _fold_in(case.keys, index))
        loss, correct = _losses(case.task, returned, case.labels(batch))
        losses, right = [*losses, loss], [*right, correct]
    return None if right[0] is None else np.concatenate(right).mean(), np.concatenate(losses).mean()


@_each()
def test_the_gap_begins_and_ends_with_plain_evaluation(name):
    case, variables = CASES[name], _variables(name)
    found = gap.explain(case.model, variables, case.batches, case.batches, num_samples=2, **case.call)
    cells = {(row["noise"], row["batch_norm"]): row for row in found.rows if row["data"] == "test"}
    has_noise, has_norm = ("on", "running") in cells, ("off", "batch") in cells
    training = cells["on" if has_noise else "off", "batch" if has_norm else "running"]
    for row, is_training in ((cells["off", "running"], False), (training, True)):
        accuracy, loss = _evaluated(case, variables, is_training)
        assert row["accuracy"] == pytest.approx(accuracy)
        assert row["loss"] == pytest.approx(loss, rel=_loose(name, 1e-4))
    if has_norm:
        _, loss = _evaluated(case, _trained(name), False)
        assert cells["off", "converged"]["loss"] == pytest.approx(loss, rel=_loose(name, 1e-4))
    assert not found.remedies.failed


def _predictions(task, outputs):
    outputs = np.asarray(outputs, np.float64)
    if task == "regress":
        return outputs
    if task == "classify":
        return np.exp(outputs) / np.exp(outputs).sum(-1, keepdims=True)
    p = 1 / (1 + np.exp(-(outputs.reshape(-1) if task == "binary" else outputs)))
    return np.stack([1 - p, p], -1)


def _padded(case, batch):
    """A shorter batch with its last example repeated, which decides the shape of the masks."""
    if "DBN305" in case.findings:  # It is part of the batch for a BN that uses the batch in test mode too.
        return batch
    missing = len(case.labels(case.batches[0])) - len(case.labels(batch))
    return (np.pad(batch[0], ((0, missing), (0, 0)), "edge"), *batch[1:]) if missing else batch


@_each()
def test_the_mean_of_draws_is_that_of_a_loop(name):
    case, variables = CASES[name], _variables(name)
    call = {**case.call, "task": case.task}
    found = uncertainty.sample(case.model, variables, case.batches, num_samples=2, **call)
    loop, drawn = _Norms(case, training=True, by_hand=True), []
    for draw in range(2):
        keys = _fold_in(case.keys, draw)
        outputs = []
        for index, batch in enumerate(case.batches):
            returned, _ = loop.call(variables, _padded(case, batch), _fold_in(keys, index))
            outputs.append(np.float32(case.output(returned))[: len(case.labels(batch))])
        drawn.append(_predictions(case.task, np.concatenate(outputs)))
    loose = _loose(name, 1e-5)
    np.testing.assert_allclose(found.mean, np.mean(drawn, 0), rtol=loose, atol=loose)
    np.testing.assert_allclose(found.spread, np.std(drawn, 0), rtol=0, atol=10 * loose)
    assert len(found.rows) == sum(len(case.labels(batch)) for batch in case.batches)
    assert found.spread.max() > 1e-3


@_each()
def test_lint_finds_what_is_there(name):
    case = CASES[name]
    args, kwargs = case.given(case.batches[0])
    call = {key: value for key, value in case.call.items() if key not in ("inputs", "outputs")}
    call["kwargs"] = {**kwargs, **call.get("kwargs", {})}
    for variables in (None, _variables(name)):
        found = lint.check(case.model, *args, variables=variables, **call)
        layers = {}
        for row in found.rows:
            if row["code"] != "DBN206":  # Biases are the taste of the models, and told elsewhere.
                layers.setdefault(row["code"], set()).add((_module(row["noise"]), row["norm"]))
        assert layers == case.findings
    number = len(_layer_names(name))
    assert f"{number} batch normalization" + "s" * (number != 1) in found.title


def _module(noise):
    """The modules of draws, without the lines where they stand."""
    return re.sub(r" ?[a-z_]+\.py:\d+", "", noise)


def _layer_names(name):
    return {
        path[:-1]
        for path in flatten_dict(_variables(name).get("batch_stats", {}))
        if own_norms.is_statistic(path[-1])
    }


@_each([name for name, case in CASES.items() if not case.method])
def test_surgery_keeps_the_checkpoint_and_test_mode(name):
    case, variables = CASES[name], _variables(name)
    args, kwargs = case.given(case.batches[0])
    call = {key: value for key, value in case.call.items() if key not in ("inputs", "outputs")}
    call["kwargs"] = {**kwargs, **call.get("kwargs", {})}
    module = case.modules(training=False)
    changed = {"swapped": surgery.swap_noise(module, to=Uout(0.1)), "without": surgery.without_noise(module)}
    try:
        moved = surgery.move_to_last_bn(case.model, *args, **call)
        changed["moved"] = moved[1] if isinstance(moved, tuple) else moved
    except DropbnError as error:
        assert "none is the last" in str(error)
    wanted = _plain(case, variables, case.batches[0], False, case.keys)
    for model in changed.values():
        shapes = jax.eval_shape(functools.partial(case.init, model))
        assert jax.tree.map(jnp.shape, dict(shapes)) == jax.tree.map(jnp.shape, variables)
        output = _plain(case._replace(built=(model, model)), variables, case.batches[0], False, case.keys)
        # Swapped, a layer of noise that is always on draws otherwise.
        if not any(noise for noise, _ in case.findings.get("DBN207", ())):
            np.testing.assert_allclose(output, wanted, rtol=_loose(name, 1e-5), atol=1e-6)


def test_a_model_whose_norms_training_freezes():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            x = nn.Dropout(0.5)(nn.Dense(4)(x), deterministic=not train)
            return nn.Dense(3)(nn.BatchNorm(name="frozen")(x, use_running_average=True))

    batches = CASES["one-hot"].batches
    variables = Model().init(jax.random.key(0), batches[0][0])  # Training leaves its mean 0, variance 1.
    row = shift.predict(Model(), variables, batches).rows[0]
    assert row["moving_var"] == 1 and row["ratio"] == row["real_var"]
    with pytest.raises(DropbnError, match="Training freezes every batch normalization of the model"):
        recalibrate.recalibrate(Model(), variables, batches)
    found = gap.explain(Model(), variables, batches, batches, num_samples=0)
    assert {row["batch_norm"] for row in found.rows} == {"running"}
    assert found.advice.startswith("No BN takes statistics in training, so no share of the gap is")


def test_running_state_that_is_no_batch_normalization():
    case, variables = CASES["spectral"], _variables("spectral")
    for tool in (shift.measure, shift.predict, recalibrate.recalibrate):
        with pytest.raises(DropbnError, match="The model has no batch normalization"):
            tool(case.model, variables, case.batches)


def test_groups_of_an_axis_are_the_whole_batch_where_nothing_binds_it():
    class Model(nn.Module):
        axis_name: str | None

        @nn.compact
        def __call__(self, x, train=False):
            groups = [[0, 1], [2, 3]] if self.axis_name else None
            norm = nn.BatchNorm(axis_name=self.axis_name, axis_index_groups=groups)
            return norm(nn.Dropout(0.5)(x, deterministic=not train), use_running_average=not train)

    batches = [x for x, _ in CASES["one-hot"].batches]
    variables = Model(None).init(jax.random.key(0), batches[0])
    rows, wanted = (shift.predict(Model(axis), variables, batches).rows for axis in ("data", None))
    assert rows == wanted
