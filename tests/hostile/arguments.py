"""Wrong arguments for the tools, layers and functions that users import, each call in its own process."""

import os
import sys
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tests.hostile import doors
from tests.hostile.ends import Case, judge

LONG = "x y" * 10_000
X = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
Y = np.arange(8) % 2


class Given(NamedTuple):
    """What a tool is given, one of which is wrong."""

    model: object
    variables: object
    batches: object
    call: dict


def cases() -> list[Case]:
    """All cases of this file."""
    return [*_tools(), *_others()]


def _right():
    """A trained model, its variables and batches."""
    import flax.linen as nn
    import jax

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train: bool):
            x = nn.Dropout(0.5)(nn.Dense(4)(x), deterministic=not train)
            x = nn.BatchNorm()(x, use_running_average=not train)
            return nn.Dense(2)(x)

    net = Net()
    variables = net.init(jax.random.key(0), X, train=False)
    variables |= {"batch_stats": jax.tree.map(lambda leaf: leaf + 0.5, variables["batch_stats"])}
    return Given(net, variables, [(X, Y)], {})


_ANYTHING = {
    "None": lambda: None,
    "5": lambda: 5,
    "nan": lambda: float("nan"),
    "text": lambda: "text",
    "long": lambda: LONG,
    "bytes": lambda: b"x",
    "object": object,
    "[]": list,
    "{}": dict,
    "()": tuple,
    "a class": lambda: dict,
    "a function": lambda: len,
    "no examples": lambda: X[:0],
    "texts": lambda: np.array(["a"] * 8),
    "objects": lambda: np.array([object()] * 8),
    "a scalar": lambda: np.float32(1),
    "nested": lambda: [[[[[1]]]]],
    "a set": lambda: {1, 2},
}
_BATCHES = {
    "another width": lambda: [(X[:, :2], Y)],
    "other labels": lambda: [(X, Y[:3])],
    "labels of text": lambda: [(X, np.array(["a"] * 8))],
    "nan": lambda: [(X * np.nan, Y)],
    "infinite": lambda: [(X * np.inf, Y)],
    "one image": lambda: [(X[:1], Y[:1])],
    "complex": lambda: [(X * 1j, Y)],
    "ints": lambda: [(X.astype(int), Y)],
    "used up": lambda: iter(()),
    "a dict": lambda: [{"x": X}],
    "several shapes": lambda: [(X, Y), (X[:, :1], Y)],
    "lists": lambda: [X.tolist()],
}
_CALLS = {
    "inputs=5": {"inputs": 5},
    "inputs=long": {"inputs": LONG},
    "rngs=0": {"rngs": 0},
    "rngs of text": {"rngs": {"dropout": "a"}},
    "method=5": {"method": 5},
    "method=text": {"method": "no"},
    "args=5": {"args": 5},
    "outputs=5": {"outputs": 5},
    "another flag": {"no_such_flag": 1},
    "train=5": {"train": "x"},
    "kwargs=5": {"kwargs": 5},
}


def _call(name, given):
    from dropbn.diagnose import gap, lint, modes, recalibrate, shift, surgery, uncertainty

    model, variables, batches, call = given
    if name == "explain":
        return gap.explain(model, variables, batches, batches, **call)
    if name == "apply":
        first = (
            batches[0][0]
            if isinstance(batches, list) and batches and isinstance(batches[0], tuple)
            else batches
        )
        return modes.apply(model, variables, first, **{"mode": modes.TEST} | call)
    if name == "check":
        return lint.check(model, batches if not isinstance(batches, list) else X, variables=variables, **call)
    if name == "without_noise":
        return surgery.without_noise(model)
    tools = {"measure": shift.measure, "predict": shift.predict, "recalibrate": recalibrate.recalibrate}
    return (tools | {"sample": uncertainty.sample})[name](model, variables, batches, **call)


def _tools():
    names = ("measure", "predict", "recalibrate", "explain", "sample", "apply", "check")
    own = {
        "measure": {"estimator=x": {"estimator": "x"}, "estimator=5": {"estimator": 5}},
        "recalibrate": {"recipe=x": {"recipe": LONG}, "passes=0": {"passes": 0}, "passes=x": {"passes": "x"}},
        "sample": {
            "samples=0": {"num_samples": 0},
            "samples=x": {"num_samples": "x"},
            "bn": {"batch_norm": "x"},
        },
        "explain": {"task=x": {"task": "x"}, "labels=5": {"labels": 5}, "score=5": {"score": 5}},
        "apply": {"mode=train": {"mode": "train"}, "mode=None": {"mode": None}, "mode=5": {"mode": 5}},
        "check": {"steps=x": {"num_steps": "x"}, "steps=-1": {"num_steps": -1}},
    }
    for name in names:
        for field in ("model", "variables", "batches"):
            wrong = _ANYTHING | (_BATCHES if field == "batches" else {})
            for i, (what, make) in enumerate(wrong.items()):
                if field == "model" and what == "long":
                    continue
                if i % 2 == len(name) % 2 or what in ("None", "[]", "no examples"):
                    yield _api(f"{name}: {field} {what}", name, **{field: make})
        yield _api(f"{name}: a class of models", name, model=lambda: type(_right().model))
        for what, call in {**_CALLS, **own.get(name, {})}.items():
            yield _api(f"{name}: {what}", name, call=lambda call=call: call)


def _api(title, name, **wrong: Callable):
    def go():
        return _call(name, _right()._replace(**{field: make() for field, make in wrong.items()}))

    return _case(title, go)


def _case(title, call):
    """A case of one call; a warning may be printed, and what is no DropbnError is a traceback."""

    def become():
        from dropbn.errors import DropbnError

        try:
            call()
            os._exit(0)
        except DropbnError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            os._exit(1)

    return Case(
        "arguments",
        title,
        lambda directory: judge(doors.run([f"api: {title}"], directory, before=become)),
    )


def _others():
    """Layers, orders, laws, results and the trainer, each with something wrong."""
    import ml_collections

    def layer(name, *args, **kwargs):
        def go():
            import jax

            from dropbn.nn import noise

            made = getattr(noise, name)(*args, deterministic=False, **kwargs)
            made.apply({}, X, rngs={"dropout": jax.random.key(0)})

        return _case(f"{name}{args[:1]}{kwargs}"[:60], go)

    for value in (-0.1, 1.1, 2, float("nan"), "x", None, [], LONG):
        yield layer("Dropout", value)
        yield layer("GaussianDropout", value)
        yield layer("Uout", value)
    for options in ({"restore": "x"}, {"scale_at": "x"}, {"broadcast_dims": "x"}, {"rng_collection": 5}):
        yield layer("Dropout", 0.5, **options)

    def parse(text):
        def go():
            from dropbn.nn import order

            order.parse(text)

        return _case(f"parse {str(text)[:20]}", go)

    for text in ("", "[", "x", LONG, 5, None, b"conv", "[" * 400, "conv | conv", "drop {", [], "\0"):
        yield parse(text)

    def train(what, config, *rest):
        def go():
            from dropbn.train import loop

            loop.train_and_evaluate(config, *rest)

        return _case(f"train_and_evaluate {what}", go)

    yield train("no fields", ml_collections.ConfigDict({}), "x")
    yield train("a dict", {}, "x")
    yield train("None", None, "x")
    yield train("text", LONG, "x")
    yield train("wrong fields", ml_collections.ConfigDict({"seed": "x"}), "x")
