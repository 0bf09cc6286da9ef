"""Small models in the styles of public code, knowing nothing of dropbn, and how each is called plainly."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import own_norms
from linen_models import Body, HalfPrecision, Jitted, Rematted

NUMBER = 10  # Examples in a batch.

_NOTHING: dict = {}
_KEYS = {"dropout": jax.random.key(0)}
_TRAIN, _TEST = {"train": True}, {"train": False}


class Case(NamedTuple):
    """A model and how it is called.

    Attributes:
      model: a module, or a pair (for training, for test).
      batches: of training and of test data.
      call: the keywords that a tool gets.
      arguments: what a plain call gets of a batch: a tuple, or a dict of arguments by name.
      labels: the labels of a batch.
      others: further positional arguments of a plain call.
      train, test: the keywords of a plain call that say the mode.
      method: its method.
      output: the part of what it returns that is its output.
      task: what the outputs are.
      keys: random keys by stream.
      findings: {code: layers} that lint has.
      built: the modules (for training, for test) of a plain call, where they are not the model itself.
    """

    model: Any
    batches: list
    call: dict = _NOTHING
    arguments: Callable = lambda batch: batch[:1]
    labels: Callable = lambda batch: batch[1]
    others: tuple = ()
    train: dict = _TRAIN
    test: dict = _TEST
    method: Any = None
    output: Callable = lambda returned: returned
    task: str = "classify"
    keys: dict = _KEYS
    findings: dict = _NOTHING
    built: tuple | None = None

    def modules(self, training):
        """The module of a plain call in training, or in test mode."""
        pair = self.built or (self.model if isinstance(self.model, tuple) else (self.model, self.model))
        return pair[not training]

    def plain(self, variables, batch, training, **others):
        """The model's own `apply`, without dropbn."""
        args, kwargs = self.given(batch)
        flags = self.train if training else self.test
        run = self.modules(training).apply
        return run(variables, *args, *self.others, **kwargs, **flags, **self._method, **others)

    def init(self, model=None):
        """Variables, by the model's own `init` in test mode, or by that of a changed model."""
        args, kwargs = self.given(self.batches[0])
        keys = {"params": jax.random.key(1), **self.keys}
        model = model or self.modules(training=False)
        return model.init(keys, *args, *self.others, **kwargs, **self.test, **self._method)

    def given(self, batch):
        """(args, kwargs) that a batch is, without the mode."""
        args = self.arguments(batch)
        return ((), args) if isinstance(args, dict) else (args, {})

    @property
    def _method(self):
        return {"method": self.method} if self.method else {}


class Scanned(nn.Module):
    """Two blocks stacked by nn.scan."""

    @nn.compact
    def __call__(self, x, train=False):
        own = {"params": 0, "batch_stats": 0, "intermediates": 0}
        split = {"params": True, "dropout": True}
        layers = nn.scan(Body, variable_axes=own, split_rngs=split, length=2)
        x, _ = layers(train, name="layers")(x, None)
        return nn.Dense(3)(x)


def _draw(shape, seed=0, mean=0.5):
    return (mean + np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def _classes(shape, classes=3, seed=9):
    return np.random.default_rng(seed).integers(0, classes, shape)


def _batches(shape=(NUMBER, 5), label=(NUMBER,), classes=3, number=2):
    return [(_draw(shape, i), _classes(label, classes, i)) for i in range(number)]


class Trunk(nn.Module):
    """Dense, dropout, BN, ReLU, on which many of the models stand."""

    train: bool
    rate: float = 0.3
    momentum: float = 0.9

    @nn.compact
    def __call__(self, x):
        x = nn.Dropout(self.rate, deterministic=not self.train)(nn.Dense(6)(x))
        return nn.relu(nn.BatchNorm(not self.train, momentum=self.momentum)(x))


_SHIFTED = {"DBN101": {("Trunk_0/Dropout_0", "Trunk_0/BatchNorm_0")}}


class Critic(nn.Module):
    """Q(observation, action) of off-policy reinforcement learning."""

    @nn.compact
    def __call__(self, observation, action, train=False):
        x = jnp.concatenate([observation, action], -1)
        return nn.Dense(1)(Trunk(train)(x))


class PolicyAndValue(nn.Module):
    """An actor-critic with one trunk; returns (logits, value)."""

    @nn.compact
    def __call__(self, x, train=False):
        x = Trunk(train)(x)
        return nn.Dense(3)(x), nn.Dense(1)(x).squeeze(-1)


class Siamese(nn.Module):
    """Compares two inputs by one encoder, whose BN is called twice; one logit (N,)."""

    def setup(self):
        self.dense, self.drop, self.norm = nn.Dense(6), nn.Dropout(0.2), nn.BatchNorm(momentum=0.8)

    def encode(self, x, train):
        return nn.relu(self.norm(self.drop(self.dense(x), not train), use_running_average=not train))

    def __call__(self, left, right, train):
        return -jnp.square(self.encode(left, train) - self.encode(right, train)).sum(-1)


class UNet(nn.Module):
    """Down, up and a skip by concatenation; a class for each pixel."""

    @nn.compact
    def __call__(self, x, train=False):
        def block(x, features):
            x = nn.Conv(features, (3, 3), use_bias=False)(x)
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
            return nn.relu(x)

        fine = block(x, 3)
        coarse = nn.Dropout(0.3)(nn.max_pool(fine, (2, 2), (2, 2)), deterministic=not train)
        coarse = nn.ConvTranspose(3, (2, 2), (2, 2))(block(coarse, 4))
        return nn.Conv(2, (1, 1))(block(jnp.concatenate([fine, coarse], -1), 3))


class Graph(nn.Module):
    """A graph convolution on nodes (N, features) and an adjacency matrix (N, N)."""

    @nn.compact
    def __call__(self, nodes, adjacency, training: bool):
        return nn.Dense(3)(Trunk(training)(adjacency @ nodes))


class GraphOfDict(nn.Module):
    """The same, which takes the graph as a dict."""

    @nn.compact
    def __call__(self, graph, *, training: bool = False):
        return nn.Dense(3)(Trunk(training)(graph["adjacency"] @ graph["nodes"]))


@flax.struct.dataclass
class Reconstruction:
    x: jax.Array
    mean: jax.Array
    log_variance: jax.Array


class Vae(nn.Module):
    """A variational autoencoder that draws its code from a stream of its own, also in test mode."""

    @nn.compact
    def __call__(self, x, train=False):
        mean, log_variance = jnp.split(nn.Dense(4)(Trunk(train)(x)), 2, -1)
        code = mean + jnp.exp(log_variance / 2) * jax.random.normal(self.make_rng("latent"), mean.shape)
        return Reconstruction(nn.Dense(x.shape[-1])(Trunk(train)(code)), mean, log_variance)


class TextCnn(nn.Module):
    """Convolutions over embedded tokens, the maximum over time; several labels."""

    @nn.compact
    def __call__(self, tokens, deterministic=True):
        x = nn.Embed(11, 4)(tokens)
        x = nn.Dropout(0.1)(x, deterministic=deterministic)
        x = nn.Conv(6, (3,))(x)
        x = nn.relu(nn.BatchNorm(use_running_average=deterministic)(x)).max(1)
        return nn.Dense(3)(nn.Dropout(0.5)(x, deterministic=deterministic))


class Conformer(nn.Module):
    """A convolution module: GLU, depthwise convolution, BN of what the lengths leave, swish, a residual."""

    @nn.compact
    def __call__(self, x, train, lengths):
        mask = (jnp.arange(x.shape[1]) < lengths[:, None])[..., None]
        y = nn.glu(nn.Dense(2 * x.shape[-1])(nn.LayerNorm()(x)))
        y = nn.Dropout(0.2)(y, deterministic=not train)
        y = nn.Conv(x.shape[-1], (3,), feature_group_count=x.shape[-1])(jnp.where(mask, y, 0))
        y = nn.BatchNorm(momentum=0.9)(y, use_running_average=not train, mask=mask)
        return nn.Dense(3)(x + nn.Dense(x.shape[-1])(nn.swish(y)))


class FrozenBackbone(nn.Module):
    """Fine-tuning: the backbone's BN keeps its statistics in training."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dropout(0.2)(nn.Dense(6)(x), deterministic=not train)
        x = nn.relu(nn.BatchNorm(name="backbone")(x, use_running_average=True))
        return nn.Dense(3)(Trunk(train, name="head")(x))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return Trunk(train)(x)


class FlagNotHandedOn(nn.Module):
    """The first block is called without the flag and always runs as in test mode."""

    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(3)(Block(name="behind")(Block(name="first")(x), train))


class Spectral(nn.Module):
    """Spectral normalization and dropout: running state, and no BN."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.SpectralNorm(nn.Dense(6))(x, update_stats=train)
        return nn.Dense(3)(nn.Dropout(0.3)(nn.relu(x), deterministic=not train))


class Synchronised(nn.Module):
    """A BN over the devices of a pmap, as in Flax's ImageNet example."""

    axis_name: str | None = "batch"

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dropout(0.3)(nn.Dense(6)(x), deterministic=not train)
        norm = nn.BatchNorm(use_running_average=not train, momentum=0.9, axis_name=self.axis_name)
        return nn.Dense(3)(nn.relu(norm(x)))


class View(nn.Module):
    train: bool

    @nn.compact
    def __call__(self, x):
        x = nn.Dropout(0.3, deterministic=not self.train)(nn.Dense(6)(x))
        return nn.relu(nn.BatchNorm(not self.train, momentum=0.9, axis_name="views")(x))


class Views(nn.Module):
    """Views (N, views, features) under nn.vmap, which binds the axis that their BN synchronises over."""

    @nn.compact
    def __call__(self, x, train=False):
        shared = {"params": None, "batch_stats": None, "intermediates": 0}
        split = {"params": False, "dropout": True}
        view = nn.vmap(View, in_axes=1, out_axes=1, variable_axes=shared, split_rngs=split, axis_name="views")
        return nn.Dense(3)(view(train)(x).mean(1))


class Ensemble(nn.Module):
    """Members with weights and statistics of their own under nn.vmap; the mean of their logits."""

    @nn.compact
    def __call__(self, x, train=False):
        own = {"params": 0, "batch_stats": 0, "intermediates": 0}
        split = {"params": True, "dropout": True}
        member = nn.vmap(Trunk, in_axes=None, axis_size=2, variable_axes=own, split_rngs=split)
        return nn.Dense(3)(member(train)(x)).mean(0)


class Denoiser(nn.Module):
    """Trained on one image a step, whose pixels are enough for a BN."""

    @nn.compact
    def __call__(self, x, train=False):
        y = nn.Dropout(0.1)(nn.Conv(4, (3, 3))(x), deterministic=not train)
        y = nn.relu(nn.BatchNorm(momentum=0.9)(y, use_running_average=not train))
        return x - nn.Conv(1, (3, 3))(y)


class Plain(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(3)(Trunk(train)(x))


class IsTrain(nn.Module):
    @nn.compact
    def __call__(self, x, is_train):
        return nn.Dense(3)(Trunk(is_train)(x))


class Eval(nn.Module):
    @nn.compact
    def __call__(self, x, eval=True):
        return nn.Dense(3)(Trunk(not eval)(x))


class StringMode(nn.Module):
    @nn.compact
    def __call__(self, x, mode):
        return nn.Dense(3)(Trunk(mode == "train")(x))


class Phase(nn.Module):
    """A flag of a name that nobody knows."""

    @nn.compact
    def __call__(self, x, phase: int = 0):
        return nn.Dense(3)(Trunk(phase == 1)(x))


class Constructed(nn.Module):
    """The flag is a field, on which submodules made in setup depend."""

    training: bool

    def setup(self):
        drop, norm = nn.Dropout(0.3, deterministic=not self.training), nn.BatchNorm(not self.training)
        self.net = nn.Sequential([nn.Dense(6), drop, norm, nn.relu, nn.Dense(3)])

    def __call__(self, x):
        return self.net(x)


class Built(nn.Module):
    """Built for one mode, by a field of a name that nobody knows."""

    phase: str

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(Trunk(self.phase == "fit")(x))


class Encoder(nn.Module):
    """Called by another method than `__call__`."""

    @nn.compact
    def features(self, x, train=False):
        return nn.Dense(3)(Trunk(train)(x))


class Clashing(nn.Module):
    """Arguments whose names the tools use themselves."""

    @nn.compact
    def __call__(self, x, mode, rngs, method="mean", train=False):
        assert (mode, rngs, method) == ("same", 2, "mean")
        return nn.Dense(3)(Trunk(train)(rngs * x))


class Counting(nn.Module):
    """Counts its training steps in a collection of its own."""

    @nn.compact
    def __call__(self, x, train=False):
        steps = self.variable("state", "steps", lambda: jnp.zeros((), jnp.int32))
        if train and not self.is_initializing():
            steps.value += 1
        return nn.Dense(3)(Trunk(train)(x))


class DroQ(nn.Module):
    """A critic whose dropout stays on in test mode, before and behind a BN."""

    @nn.compact
    def __call__(self, observation, action, train=False):
        x = jnp.concatenate([observation, action], -1)
        x = nn.Dropout(0.2)(nn.Dense(6)(x), deterministic=False)
        x = nn.relu(nn.BatchNorm(momentum=0.9)(x, use_running_average=not train))
        return nn.Dense(1)(nn.Dropout(0.1)(x, deterministic=not train)).squeeze(-1)


class DropPath(nn.Module):
    """Stochastic depth: a dropout of whole examples, on a stream of its own."""

    @nn.compact
    def __call__(self, x, train=False):
        path = nn.Dropout(0.3, broadcast_dims=(1,), rng_collection="drop_path")
        x = nn.Dense(6)(x)
        x = x + path(nn.Dense(6)(nn.relu(x)), deterministic=not train)
        return nn.Dense(3)(nn.relu(nn.BatchNorm(momentum=0.9)(x, use_running_average=not train)))


class Outputs(nn.Module):
    """Returns a dict."""

    @nn.compact
    def __call__(self, x, train=False):
        features = Trunk(train)(x)
        return {"features": features, "logits": nn.Dense(1)(features)}


class BatchAlways(nn.Module):
    """A BN that uses the batch in test mode too, as for style or at test-time adaptation."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=False, name="style")(nn.Dense(6)(x))
        return nn.Dense(3)(Trunk(train)(nn.relu(x)))


class Loose(nn.Module):
    """Hands its keywords on."""

    @nn.compact
    def __call__(self, *inputs, **kwargs):
        return nn.Dense(3)(Trunk(kwargs["train"])(jnp.concatenate(inputs, -1)))


class Renormalized(nn.Module):
    """A critic with batch renormalization, as CrossQ's."""

    @nn.compact
    def __call__(self, observation, action, train=False):
        x = jnp.concatenate([observation, action], -1)
        x = own_norms.BatchRenorm(name="first")(x, use_running_average=not train)
        x = nn.Dropout(0.2)(nn.Dense(6)(x), deterministic=not train)
        x = nn.relu(own_norms.BatchRenorm(name="second")(x, use_running_average=not train))
        return nn.Dense(1)(x).squeeze(-1)


class PaddedConformer(nn.Module):
    """The convolution module of a conformer whose BN takes the padding."""

    @nn.compact
    def __call__(self, x, padding, train):
        y = nn.glu(nn.Dense(2 * x.shape[-1])(nn.LayerNorm()(x)))
        y = nn.Dropout(0.2)(y, deterministic=not train) * (1 - padding[..., None])
        y = nn.Conv(x.shape[-1], (3,), feature_group_count=x.shape[-1])(y)
        config = flax.core.freeze({"dim": x.shape[-1], "momentum": 0.9, "epsilon": 0.001})
        y = own_norms.Padded(config, name="norm")(y, padding, train=train)
        return nn.Dense(3)(x + nn.Dense(x.shape[-1])(nn.swish(y)))


class Textbook(nn.Module):
    """A network for images whose BN is written by hand, its flag a field."""

    training: bool = False

    @nn.compact
    def __call__(self, x):
        for features in (4, 5):
            x = nn.Dropout(0.2, deterministic=not self.training)(nn.Conv(features, (3, 3))(x))
            x = nn.sigmoid(own_norms.KeptAxes(features, 4, deterministic=not self.training)(x))
        return nn.Dense(3)(x.mean((1, 2)))


class Teacher(nn.Module):
    """A frozen BN without a flag, one that remembers unbiased variances, and one of one leaf."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dropout(0.2)(nn.Dense(6)(x), deterministic=not train)
        x = nn.relu(own_norms.FrozenNorm(name="frozen")(x))
        x = nn.relu(own_norms.Unbiased(name="unbiased")(nn.Dense(6)(x), training=train))
        return nn.Dense(3)(own_norms.OneLeaf(name="one")(nn.Dense(6)(x), learning=train))


def _pairs(labels):
    """Batches ((observations, actions), labels)."""
    return [((_draw((NUMBER, 4), i), _draw((NUMBER, 2), 5 + i)), label) for i, label in enumerate(labels)]


def _graphs():
    adjacency = np.eye(NUMBER, dtype=np.float32) + np.eye(NUMBER, k=1, dtype=np.float32)
    return [
        {"nodes": x, "adjacency": adjacency, "label": label} for x, label in _batches((NUMBER, 4), number=2)
    ]


_VALUES = [_draw((NUMBER,), 20 + i) for i in range(2)]
_IMAGES = _batches((NUMBER, 4, 4, 2))
_FLAT = _batches()
_SIDES = [
    {"left": _draw((NUMBER, 4), i), "right": _draw((NUMBER, 4), 7 + i, 2), "label": _classes((NUMBER,), 2, i)}
    for i in range(2)
]
_SPEECH = [
    ((_draw((NUMBER, 6, 4), i), np.arange(NUMBER) % 6 + 1), _classes((NUMBER, 6), seed=i)) for i in range(2)
]
_STEPS = [(x[:size], y[:size]) for (x, y), size in zip(_batches(number=3), (NUMBER, 7, 1), strict=True)]


def _graph(graph):
    return {"nodes": graph["nodes"], "adjacency": graph["adjacency"]}


def _label(batch):
    return batch["label"]


_TRAINING = {"train": {"training": True}, "test": {"training": False}}
_NONE = {"train": {}, "test": {}}

CASES = {
    "critic": Case(
        Critic(), _pairs(_VALUES), arguments=lambda batch: batch[0], task="regress", findings=_SHIFTED
    ),
    "policy and value": Case(
        PolicyAndValue(), _FLAT, {"outputs": 0}, output=lambda returned: returned[0], findings=_SHIFTED
    ),
    "siamese": Case(
        Siamese(),
        _SIDES,
        {"inputs": lambda batch: {"left": batch["left"], "right": batch["right"]}},
        lambda batch: {"left": batch["left"], "right": batch["right"]},
        _label,
        task="binary",
        findings={"DBN101": {("drop", "norm")}, "DBN303": {("", "norm")}},
    ),
    "u-net": Case(
        UNet(),
        _batches((4, 4, 4, 1), (4, 4, 4), 2),
        findings={"DBN102": {("Dropout_0", "BatchNorm_1")}},
    ),
    "graph": Case(
        Graph(),
        _graphs(),
        {"inputs": lambda graph: (graph["nodes"], graph["adjacency"])},
        lambda graph: (graph["nodes"], graph["adjacency"]),
        _label,
        **_TRAINING,
        findings=_SHIFTED,
    ),
    "graph of dict": Case(
        GraphOfDict(),
        _graphs(),
        {"inputs": _graph},
        lambda graph: (_graph(graph),),
        _label,
        **_TRAINING,
        findings=_SHIFTED,
    ),
    "vae": Case(
        Vae(),
        [(x, x) for x, _ in _FLAT],
        {"outputs": "x", "rngs": {"dropout": jax.random.key(3), "latent": jax.random.key(4)}},
        output=lambda returned: returned.x,
        task="regress",
        keys={"dropout": jax.random.key(3), "latent": jax.random.key(4)},
        findings={
            "DBN101": {(f"Trunk_{i}/Dropout_0", f"Trunk_{i}/BatchNorm_0") for i in range(2)},
            "DBN207": {("", "")},  # The code is drawn in test mode too.
        },
    ),
    "text": Case(
        TextCnn(),
        [(_classes((NUMBER, 7), 11, i), _classes((NUMBER, 3), 2, i)) for i in range(2)],
        train={"deterministic": False},
        test={"deterministic": True},
        task="multilabel",
        findings={"DBN102": {("Dropout_0", "BatchNorm_0")}},
    ),
    "conformer": Case(
        Conformer(),
        _SPEECH,
        arguments=lambda batch: {"x": batch[0][0], "lengths": batch[0][1]},
        findings={"DBN102": {("Dropout_0", "BatchNorm_0")}},
    ),
    "frozen backbone": Case(
        FrozenBackbone(),
        _FLAT,
        findings={
            "DBN102": {("Dropout_0", "head/BatchNorm_0")},
            "DBN101": {("head/Dropout_0", "head/BatchNorm_0")},
            "DBN304": {("", "backbone")},
        },
    ),
    "flag not handed on": Case(
        FlagNotHandedOn(),
        _FLAT,
        findings={
            "DBN101": {("behind/Trunk_0/Dropout_0", "behind/Trunk_0/BatchNorm_0")},
            "DBN304": {("", "first/Trunk_0/BatchNorm_0")},
        },
    ),
    "spectral": Case(Spectral(), _FLAT, findings={"DBN402": {("", "SpectralNorm_0")}}),
    "synchronised": Case(
        Synchronised(),
        _FLAT,
        findings={"DBN101": {("Dropout_0", "BatchNorm_0")}},
        built=(Synchronised(None), Synchronised(None)),
    ),
    "views": Case(
        Views(),
        _batches((NUMBER, 3, 5)),
        findings={"DBN101": {("VmapView_0/Dropout_0", "VmapView_0/BatchNorm_0")}},
    ),
    "ensemble": Case(
        Ensemble(), _FLAT, findings={"DBN101": {("VmapTrunk_0/Dropout_0", "VmapTrunk_0/BatchNorm_0")}}
    ),
    "one image": Case(
        Denoiser(),
        [(_draw((1, 6, 6, 1), i), _draw((1, 6, 6, 1), 9 + i)) for i in range(3)],
        task="regress",
        findings={"DBN101": {("Dropout_0", "BatchNorm_0")}},
    ),
    "last batch of one": Case(Plain(), _STEPS, findings=_SHIFTED),
    "is_train": Case(IsTrain(), _FLAT, train={"is_train": True}, test={"is_train": False}, findings=_SHIFTED),
    "eval": Case(Eval(), _FLAT, train={"eval": False}, test={"eval": True}, findings=_SHIFTED),
    "string mode": Case(
        StringMode(), _FLAT, train={"mode": "train"}, test={"mode": "eval"}, findings=_SHIFTED
    ),
    "phase": Case(
        Phase(),
        _FLAT,
        {"train_kwargs": {"phase": 1}, "test_kwargs": {"phase": 0}},
        train={"phase": 1},
        test={"phase": 0},
        findings=_SHIFTED,
    ),
    "constructed": Case(
        Constructed(training=False),
        _FLAT,
        **_NONE,
        built=(Constructed(True), Constructed(False)),
        findings={"DBN101": {("net/layers_1", "net/layers_2")}},
    ),
    "pair": Case((Built("fit"), Built("score")), _FLAT, **_NONE, findings=_SHIFTED),
    "method": Case(Encoder(), _FLAT, {"method": "features"}, method="features", findings=_SHIFTED),
    "clashing": Case(
        Clashing(),
        _FLAT,
        {"kwargs": {"mode": "same", "rngs": 2, "method": "mean"}},
        others=("same", 2, "mean"),
        findings=_SHIFTED,
    ),
    "counting": Case(Counting(), _FLAT, findings=_SHIFTED),
    "droq": Case(
        DroQ(),
        _pairs(_VALUES),
        arguments=lambda batch: batch[0],
        task="regress",
        findings={"DBN207": {("Dropout_0", "")}},
    ),
    "drop path": Case(
        DropPath(),
        _FLAT,
        {"rngs": {"drop_path": jax.random.key(6)}},
        keys={"drop_path": jax.random.key(6)},
        findings={"DBN103": {("Dropout_0", "BatchNorm_0")}},
    ),
    "dict": Case(
        Outputs(),
        [(x, y[:, None]) for x, y in _batches(classes=2)],
        {"outputs": "logits"},
        output=lambda returned: returned["logits"],
        task="binary",
        findings=_SHIFTED,
    ),
    "one-hot": Case(Plain(), [(x, np.eye(3)[y]) for x, y in _FLAT], findings=_SHIFTED),
    "batch always": Case(BatchAlways(), _STEPS[:2], findings=_SHIFTED | {"DBN305": {("", "style")}}),
    "loose": Case(
        Loose(),
        _pairs([y for _, y in _FLAT]),
        {"train_kwargs": _TRAIN, "test_kwargs": _TEST},
        arguments=lambda batch: batch[0],
        findings=_SHIFTED,
    ),
    "scanned": Case(Scanned(), _FLAT, findings={"DBN101": {("layers/Dropout_0", "layers/second")}}),
    "rematted": Case(
        Rematted(),
        _IMAGES,
        train={"is_training": True},
        test={"is_training": False},
        findings={
            "DBN101": {(f"CheckpointBody_{i}/Dropout_0", f"CheckpointBody_{i}/second") for i in range(2)}
        },
    ),
    "jitted": Case(Jitted(), _IMAGES, findings={"DBN101": {("JitBody_0/Dropout_0", "JitBody_0/second")}}),
    "renormalized": Case(
        Renormalized(),
        _pairs(_VALUES),
        arguments=lambda batch: batch[0],
        task="regress",
        findings={"DBN101": {("Dropout_0", "second")}},
    ),
    "padded conformer": Case(
        PaddedConformer(),
        [((x, np.float32(np.arange(6) >= length[:, None])), y) for (x, length), y in _SPEECH],
        arguments=lambda batch: batch[0],
        findings={"DBN102": {("Dropout_0", "norm")}},
    ),
    "textbook": Case(
        Textbook(),
        _IMAGES,
        **_NONE,
        built=(Textbook(True), Textbook(False)),
        findings={"DBN101": {(f"Dropout_{i}", f"KeptAxes_{i}") for i in range(2)}},
    ),
    "teacher": Case(
        Teacher(),
        _FLAT,
        findings={"DBN102": {("Dropout_0", "unbiased")}, "DBN304": {("", "frozen")}},
    ),
    "half precision": Case(HalfPrecision(), _IMAGES, findings={"DBN101": {("Dropout_0", "BatchNorm_0")}}),
}
