"""What the sources leave open or only assert, each as a small experiment on digits.

    python -m dropbn study --config=configs/open_questions.py:all --workdir=runs/open_questions
    python train.py --config=configs/open_questions.py:bn_scale,sqrt2
    python train.py --config=configs/open_questions.py:pooling,after_avgpool,seed=3
    python train.py --config=configs/open_questions.py:one_image,dropout,data=cifar10
    python train.py --config=configs/open_questions.py:sparse_autoencoder,negative,quick

The first word is a question of `QUESTIONS`, which says what is asked and what to look at. The second word is
one of its arms. Further words: seed, data (another dataset, with images in memory), and `quick` (two steps).
`sweep(question)` lists the arms, for "all" those of every question; no values of theirs are published.
`claims(question)` lists the comparisons that answer the question.

Most networks are a small `lenet`, whose orders hold noise, BN and pooling. For questions about the variance
look at the shift in eval.py's report; for those about one image against a batch, at its evaluation grid.
"""

from ml_collections import ConfigDict

from configs import base
from dropbn.errors import DropbnError, unknown
from dropbn.study import cells
from dropbn.study.claims import Side, compare

_LENET = {
    "model.name": "lenet",
    "model.depth": 2,
    "model.width": 16,
    "model.head": "flatten dense relu dense",
    "batch_size": 64,
    "duration": "20 epochs",
    "checkpoint_every": "10 epochs",
    "optimizer.learning_rate": 0.05,
    "optimizer.schedule": "cosine",
}
_DROPOUT = {"model.noise.rate": 0.3}
_MLP = {**_LENET, "model.name": "mlp", "model.width": 128, "model.head": "dense"}
_RESTORE = {
    "plain": {},
    "sqrt_keep": {"model.noise.restore": "sqrt_keep"},
    "exact": {"model.noise.restore": "exact"},
}
_SQRT2 = {"model.bn.scale_init": 2**0.5}
_SPEED = ("loss_after_a_tenth", "loss_after_a_third", "steps_to_loss_0.1")
# Each factor against no factor, and the simple factor against the exact one.
_RESTORED = (("plain", "sqrt_keep"), ("plain", "exact"), ("sqrt_keep", "exact"))


def _blocks(**orders):
    return {arm: {"model.block": order} for arm, order in orders.items()}


def _accuracy_and_shift(*pairs):
    """What "compare" holds for networks with noise before a BN."""
    return {"accuracy": pairs, "shift": pairs}


# "compare": metric of dropbn.study.claims -> the pairs of arms whose comparison answers the question; (): the
# first arm with each of the others. "asserted": (arm with more, arm with less, metric, difference, source).
QUESTIONS = {
    "bn_scale": {
        "asks": "Does a BN scale that begins at sqrt(2) before ReLU train faster? A forum post asks; its "
        "writer had not tried it.",
        "fields": {**_LENET, "model.block": "conv bn relu maxpool"},
        "arms": {"one": {}, "sqrt2": _SQRT2},
        "compare": dict.fromkeys((*_SPEED, "loss"), ()),
    },
    "bn_scale_mixed": {
        "asks": "The same in a network that mixes ReLU and sigmoid.",
        "fields": {
            **_LENET,
            "model.block": "conv bn relu maxpool",
            "model.head": "flatten dense bn sigmoid dense",
        },
        "arms": {"one": {}, "sqrt2": _SQRT2},
        "compare": dict.fromkeys((*_SPEED, "loss"), ()),
    },
    "sparse_autoencoder": {
        "asks": "Does a BN bias that begins at -3.5 before a sigmoid speed up a sparse autoencoder of target "
        "0.05 (sigmoid(-3.5) = 0.03), as the same post asserts, and does it change the reconstruction?",
        "fields": {
            **_LENET,
            "task": "reconstruct",
            "model.name": "autoencoder",
            "model.width": 100,
            "model.num_classes": 64,
            "model.head": "dense",
        },
        "arms": {
            "zero": {},
            "negative": {"model.bn.bias_init": -3.5},
            "no_bn": {"model.block": "dense sigmoid sparse"},
        },
        "compare": dict.fromkeys((*_SPEED[:2], "penalty", "loss", "accuracy"), ()),
        "asserted": [
            ("zero", "negative", metric, None, "asserted in a forum post")
            for metric in ("objective_after_a_tenth", "objective_after_a_third", "steps_to_objective_0.6")
        ],
    },
    "relu": {
        "asks": "Dropout before or after ReLU? They are equal for the same mask (Kim et al., Prop. 1).",
        "fields": {**_LENET, **_DROPOUT},
        "arms": _blocks(before="conv bn drop relu maxpool", after="conv bn relu drop maxpool"),
        "compare": _accuracy_and_shift(),
    },
    "pooling": {
        "asks": "Dropout before or after max pooling and average pooling? Look at the next BN's shift.",
        "fields": {**_LENET, **_DROPOUT},
        "arms": _blocks(
            before_maxpool="conv bn relu drop maxpool",
            after_maxpool="conv bn relu maxpool drop",
            before_avgpool="conv bn relu drop avgpool",
            after_avgpool="conv bn relu avgpool drop",
        ),
        "compare": _accuracy_and_shift(
            ("before_maxpool", "after_maxpool"), ("before_avgpool", "after_avgpool")
        ),
    },
    "restore_zero_mean": {
        "asks": "Does multiplying by sqrt(keep) after dropout restore the variance of a zero-mean input, as "
        "the exact factor does? Dropout stands between two BN.",
        "fields": {**_LENET, **_DROPOUT, "model.block": "conv bn drop bn relu maxpool"},
        "arms": _RESTORE,
        "compare": _accuracy_and_shift(*_RESTORED),
    },
    "restore_nonzero_mean": {
        "asks": "The same for an input whose mean is not zero, ReLU's output.",
        "fields": {**_LENET, **_DROPOUT, "model.block": "conv bn relu drop bn maxpool"},
        "arms": _RESTORE,
        "compare": _accuracy_and_shift(*_RESTORED),
    },
    "restore_skewed": {
        "asks": "The same for a zero-mean but skewed input: BN of ReLU.",
        "fields": {**_LENET, **_DROPOUT, "model.block": "conv relu bn drop bn maxpool"},
        "arms": _RESTORE,
        "compare": _accuracy_and_shift(*_RESTORED),
    },
    "scale_at": {
        "asks": "Is the shift ratio the same when dropout scales in test instead of in training?",
        "fields": {**_LENET, **_DROPOUT, "model.block": "conv drop bn relu maxpool"},
        "arms": {scale_at: {"model.noise.scale_at": scale_at} for scale_at in ("train", "test")},
        "compare": _accuracy_and_shift(),
    },
    "both": {
        "asks": "Dropout alone, BN alone, both, or neither?",
        "fields": {**_LENET},
        "arms": {
            "neither": {"model.block": "conv relu maxpool"},
            "dropout": {"model.block": "conv relu drop maxpool", **_DROPOUT},
            "bn": {"model.block": "conv bn relu maxpool"},
            "both": {"model.block": "conv bn relu drop maxpool", **_DROPOUT},
        },
        # Only the arms with BN have a shift.
        "compare": {"accuracy": (), "shift": (("both", "bn"),)},
    },
    "activation": {
        "asks": "BN before or after the activation, for sigmoid and for ReLU?",
        "fields": {**_LENET},
        "arms": {
            f"{side}_{activation}": {
                "model.block": "conv act maxpool",
                "model.head": "flatten dense act dense",
                "model.activation": activation,
                "model.place": side,
            }
            for side in ("before", "after")
            for activation in ("relu", "sigmoid")
        },
        "compare": {"accuracy": (("after_sigmoid", "before_sigmoid"),)},
        "asserted": [
            (
                "after_relu",
                "before_relu",
                "accuracy",
                2.5,
                "caffenet-benchmark, batchnorm.md, CaffeNet, ImageNet",
            )
        ],
    },
    "bn_and_pooling": {
        "asks": "BN before or after pooling (where LeNet normalized)?",
        "fields": {**_LENET},
        "arms": _blocks(before="conv bn relu maxpool", after="conv relu maxpool bn"),
        "compare": {"accuracy": ()},
    },
    "where": {
        "asks": "Dropout only in convolutions, only in dense layers, or in both?",
        "fields": {**_LENET, **_DROPOUT, "model.block": "conv bn relu maxpool"},
        "arms": {
            "conv": {"model.block": "conv bn relu drop maxpool"},
            "dense": {"model.head": "flatten dense relu drop dense"},
            "both": {
                "model.block": "conv bn relu drop maxpool",
                "model.head": "flatten dense relu drop dense",
            },
        },
        "compare": _accuracy_and_shift(),
    },
    "nonzero_at_zero": {
        "asks": "Dropout before or after an activation with f(0) != 0, where a dropped unit is not off?",
        "fields": {**_MLP, **_DROPOUT},
        "arms": _blocks(
            before_sigmoid="dense bn drop sigmoid",
            after_sigmoid="dense bn sigmoid drop",
            before_tanh="dense bn drop tanh",
            after_tanh="dense bn tanh drop",
        ),
        "compare": _accuracy_and_shift(("before_sigmoid", "after_sigmoid"), ("before_tanh", "after_tanh")),
    },
    "one_image": {
        "asks": "Is one image, with running statistics, predicted as well as a batch with its own? "
        "See the evaluation grid of eval.py, whose batches have batch_size or bn.group_size images.",
        "fields": {**_LENET},
        "arms": {
            "no_dropout": {"model.block": "conv bn relu maxpool"},
            "dropout": {"model.block": "conv drop bn relu maxpool", **_DROPOUT},
            "group_of_8": {
                "model.block": "conv drop bn relu maxpool",
                "model.bn.group_size": 8,
                **_DROPOUT,
            },
        },
        "compare": {"accuracy": ()},
    },
}
TABLES = {name: [f"{name},{arm}" for arm in question["arms"]] for name, question in QUESTIONS.items()}
TABLES["all"] = [arg for args in TABLES.values() for arg in args]


def get_config(arg="bn_scale,one") -> ConfigDict:
    given = arg.split(",")
    question = QUESTIONS.get(given[0])
    if question is None:
        raise unknown("question", given[0], QUESTIONS)
    if len(given) < 2 or given[1] not in question["arms"]:
        raise DropbnError(f"'{arg}': the arms of {given[0]} are {', '.join(question['arms'])}.")
    config = base.get_config()
    config.update_from_flattened_dict(question["fields"] | question["arms"][given[1]])
    for word in given[2:]:
        cells.set_word(config, word, {"seed": "seed", "data": "data.name"}, {"duration": "2 steps"})
    return config


def sweep(question):
    """The arms of a question, or of "all": [{"arg": for get_config, "paper": None, "adjusted": None}]."""
    if question not in TABLES:
        raise unknown("question", question, TABLES)
    return [{"arg": arg, "paper": None, "adjusted": None} for arg in TABLES[question]]


def claims(question):
    """The comparisons that answer a question, or "all" of them; claims if a source asserts the sign."""
    if question == "all":
        return [claim for name in QUESTIONS for claim in claims(name)]
    sweep(question)  # Refuses a question that does not exist.
    asked = QUESTIONS[question]
    first, *others = asked["arms"]
    compared = [
        (*pair, metric, None, "open question", 0)
        for metric, pairs in asked["compare"].items()
        for pair in pairs or [(first, other) for other in others]
    ]
    return [_claim(question, *row) for row in compared + [(*row, 1) for row in asked.get("asserted", ())]]


def _claim(question, more, less, metric, paper, source, sign):
    sides = (Side(arm, f"{question},{arm}", metric) for arm in (more, less))
    return compare(*sides, question, source, paper=paper, sign=sign)
