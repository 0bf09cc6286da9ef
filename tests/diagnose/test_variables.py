"""Variables of anybody's model: what a file gives is what was put into it, and it goes back as it came."""

import json
import pickle
import struct
import sys
import zipfile
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx, serialization
from flax.training.train_state import TrainState
from flax.traverse_util import flatten_dict, unflatten_dict

from dropbn.diagnose.nnx import graph
from dropbn.diagnose.variables import read, write
from dropbn.errors import DropbnError


def _variables(seed: int) -> dict:
    """Variables of a convolution and a batch normalization."""
    draws = np.random.default_rng(seed)
    variables = {
        "params": {
            "Conv_0": {"kernel": draws.normal(size=(3, 3, 2, 4))},
            "BatchNorm_0": {"bias": draws.normal(size=4), "scale": draws.normal(size=4)},
        },
        "batch_stats": {"BatchNorm_0": {"mean": draws.normal(size=4), "var": draws.gamma(2, size=4)}},
    }
    return jax.tree.map(lambda leaf: leaf.astype(np.float32), variables)


GIVEN = _variables(0)
LIKE = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, GIVEN))
BETTER = {**GIVEN, "batch_stats": jax.tree.map(lambda leaf: leaf * 1.5 + 0.25, GIVEN["batch_stats"])}


TX = optax.adamw(0.1)


class State(TrainState):
    batch_stats: Any


def _state(variables: dict) -> State:
    """A training state, whose optimizer holds arrays of the parameters' names and shapes."""
    state = State.create(
        apply_fn=None, params=variables["params"], tx=TX, batch_stats=variables["batch_stats"]
    )
    draws = np.random.default_rng(9)
    filled = jax.tree.map(lambda leaf: draws.normal(size=leaf.shape).astype(leaf.dtype), state.opt_state)
    return state.replace(step=3, opt_state=filled)


def _safetensors(tensors: dict[str, np.ndarray], **metadata: str) -> bytes:
    """A file written by the format's description, with the header's own order of names."""
    names = {"float32": "F32", "bfloat16": "BF16", "int64": "I64"}
    header: dict[str, Any] = {"__metadata__": metadata}
    content = b""
    for name, array in tensors.items():
        offsets = [len(content), len(content) + array.nbytes]
        header[name] = {"dtype": names[str(array.dtype)], "shape": array.shape, "data_offsets": offsets}
        content += array.tobytes()
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content


def _same(found: Any, expected: Any) -> None:
    """Equal in structure, dtypes and every bit."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        one, other = np.asarray(one), np.asarray(other)
        assert one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def _round_trip(path, new, like=LIKE, given=GIVEN, better=BETTER):
    """Reads, writes what was read, and then other statistics; returns the source."""
    found, source = read(path, like)
    _same(found, given)
    write(new, better, source)
    _same(read(new, like)[0], better)
    return source


@pytest.mark.parametrize("separator", ["/", "."])
def test_npz(tmp_path, separator):
    flat = flatten_dict(GIVEN, sep=separator)
    np.savez_compressed(tmp_path / "given.npz", **flat, step=np.int64(7))
    source = _round_trip(tmp_path / "given.npz", tmp_path / "new.npz")
    assert source.format == "npz" and source.hints == ()
    with np.load(tmp_path / "new.npz") as new:
        assert new.files == [*flat, "step"] and new["step"] == 7
        _same(dict(new), {**flatten_dict(BETTER, sep=separator), "step": np.int64(7)})
    with zipfile.ZipFile(tmp_path / "new.npz") as new:
        assert {info.compress_type for info in new.infolist()} == {zipfile.ZIP_DEFLATED}


def test_names_as_jax_writes_them(tmp_path):
    flat = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(GIVEN)}
    np.savez(tmp_path / "given.npz", **flat)
    _round_trip(tmp_path / "given.npz", tmp_path / "new.npz")


def test_safetensors(tmp_path):
    flat = {"state.step": np.array(3, np.int64)} | flatten_dict({"state": GIVEN}, sep=".")
    (tmp_path / "given").write_bytes(_safetensors(flat, author="somebody"))
    assert _round_trip(tmp_path / "given", tmp_path / "new").format == "safetensors"
    expected = flat | flatten_dict({"state": BETTER}, sep=".")
    assert (tmp_path / "new").read_bytes() == _safetensors(expected, author="somebody")


def test_msgpack_of_a_training_state(tmp_path):
    state = _state(GIVEN)
    (tmp_path / "given").mkdir()
    (tmp_path / "given/checkpoint_9").touch()
    (tmp_path / "given/checkpoint_10").write_bytes(serialization.to_bytes(state))
    source = _round_trip(tmp_path / "given", tmp_path / "new")
    assert (source.format, source.step, source.hints) == ("msgpack", "checkpoint_10", ())
    better = state.replace(batch_stats=BETTER["batch_stats"])
    assert (tmp_path / "new/checkpoint_10").read_bytes() == serialization.to_bytes(better)


def test_orbax_of_a_training_state(tmp_path, monkeypatch):
    state = _state(GIVEN)
    with ocp.CheckpointManager(tmp_path / "given") as manager:
        for step, each in ((9, _state(_variables(1))), (10, state)):
            manager.save(step, args=ocp.args.StandardSave(each))
    source = _round_trip(tmp_path / "given", tmp_path / "new")
    assert (source.format, source.step, source.hints) == ("orbax", "10", ())
    with ocp.CheckpointManager(tmp_path / "new") as manager:
        assert manager.all_steps() == [10]
        back = manager.restore(10, args=ocp.args.StandardRestore(_state(_variables(2))))
    better = state.replace(batch_stats=BETTER["batch_stats"])
    _same(jax.tree.map(np.asarray, back), jax.tree.map(np.asarray, better))
    with pytest.raises(DropbnError, match="exists: give a new path"):
        write(tmp_path / "new", BETTER, source)
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    with pytest.raises(DropbnError, match=r"This needs tensorstore, .*: pip install 'dropbn\[train\]'"):
        read(tmp_path / "new", LIKE)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"use_ocdbt": False}, {"use_zarr3": True}], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_orbax_of_a_tree(tmp_path, options, dtype):
    given, better = (jax.tree.map(lambda leaf: leaf.astype(dtype), tree) for tree in (GIVEN, BETTER))
    like = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, given))
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)) as checkpointer:
        checkpointer.save(tmp_path / "given", args=ocp.args.PyTreeSave(jax.tree.map(jnp.asarray, given)))
    source = _round_trip(tmp_path / "given", tmp_path / "a" / "new", like, given, better)
    assert source.step == ""
    # What changed is in the files that tensorstore wrote; the description of the tree is as it was.
    for name in ("_METADATA", "_sharding", "array_metadatas/process_0"):
        assert (tmp_path / "a/new" / name).read_bytes() == (tmp_path / "given" / name).read_bytes()


@pytest.mark.slow
def test_orbax_in_several_items(tmp_path):
    args = {name: ocp.args.StandardSave(tree) for name, tree in GIVEN.items()}
    options = ocp.CheckpointManagerOptions(step_prefix="ckpt", step_format_fixed_length=6)
    with ocp.CheckpointManager(tmp_path / "given", options=options) as manager:
        for step in (100, 20):
            manager.save(step, force=True, args=ocp.args.Composite(**args, note=ocp.args.JsonSave({"a": 1})))
    # As a save that was cut short leaves it:
    (tmp_path / "given" / "ckpt_000200.orbax-checkpoint-tmp").mkdir()
    assert _round_trip(tmp_path / "given", tmp_path / "new").step == "ckpt_000100"
    with ocp.CheckpointManager(tmp_path / "new", options=options) as manager:
        back = manager.restore(
            100,
            args=ocp.args.Composite(
                batch_stats=ocp.args.StandardRestore(GIVEN["batch_stats"]), note=ocp.args.JsonRestore()
            ),
        )
    assert back["note"] == {"a": 1}
    _same(jax.tree.map(np.asarray, back["batch_stats"]), BETTER["batch_stats"])


class Net(nnx.Module):
    """An NNX model with a list and random streams."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.layers = nnx.List([nnx.Linear(3, 4, rngs=rngs), nnx.BatchNorm(4, rngs=rngs)])
        self.drop = nnx.Dropout(0.5, rngs=rngs)


def _nnx() -> tuple[dict, dict, dict, nnx.State]:
    """(shapes of its variables, variables, with other statistics, the variables as NNX has them)."""
    draws, model = np.random.default_rng(3), nnx.eval_shape(Net)
    skeleton, _ = graph.split(model)
    abstract = nnx.state(model, (nnx.Param, nnx.BatchStat))
    state = jax.tree.map(lambda leaf: draws.gamma(2, size=leaf.shape).astype(leaf.dtype), abstract)
    leaves = flatten_dict(nnx.to_pure_dict(state))
    given = unflatten_dict({leaf.name: leaves[leaf.place] for leaf in skeleton.leaves})
    better = {**given, "batch_stats": jax.tree.map(lambda leaf: leaf + 1, given["batch_stats"])}
    return skeleton.shapes, given, better, state


def test_nnx_in_an_npz(tmp_path):
    like, given, better, state = _nnx()
    flat = {".".join(map(str, path)): leaf for path, leaf in flatten_dict(nnx.to_pure_dict(state)).items()}
    np.savez(tmp_path / "given", **flat)
    assert _round_trip(tmp_path / "given.npz", tmp_path / "new.npz", like, given, better).hints == ()


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["state", "pure", "split", "whole"])
def test_nnx_by_orbax(tmp_path, layout):
    like, given, better, state = _nnx()
    params, stats = nnx.split_state(state, nnx.Param, nnx.BatchStat)
    saved = {
        "state": state,
        "pure": nnx.to_pure_dict(state),
        "split": {"params": params, "batch_stats": stats},
        # With the streams' counts; orbax does not keep keys.
        "whole": {"model": nnx.merge_state(state, nnx.state(Net(), nnx.RngCount)), "step": 3},
    }[layout]
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "given", saved)
    assert _round_trip(tmp_path / "given", tmp_path / "new", like, given, better).hints == ()


def test_boxed_parameters(tmp_path):
    """The names of axes that parameters carry are kept, in the variables and in the file."""

    def boxed(tree):
        kernel = nn.Partitioned(tree["params"]["Conv_0"]["kernel"], names=(None, None, None, "model"))
        return {**tree, "params": {**tree["params"], "Conv_0": {"kernel": kernel}}}

    (tmp_path / "given").write_bytes(serialization.to_bytes(boxed(GIVEN)))
    _round_trip(tmp_path / "given", tmp_path / "new", boxed(LIKE), boxed(GIVEN), boxed(BETTER))
    assert (tmp_path / "new").read_bytes() == serialization.to_bytes(boxed(BETTER))


def _file(path, tree: dict):
    """A msgpack file of a tree."""
    path.write_bytes(serialization.msgpack_serialize(tree))
    return path


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float64])
def test_dtypes(tmp_path, dtype):
    """What the model's dtype can hold is read in it, and everything is written in that of the file."""
    stored = jax.tree.map(lambda leaf: (leaf / np.float64(3)).astype(dtype), GIVEN)
    np.savez(tmp_path / "given.npz", **flatten_dict(stored, sep="/"))
    found, source = read(tmp_path / "given.npz", LIKE)
    kept = np.float64 if dtype is np.float64 else np.float32
    _same(found, jax.tree.map(lambda leaf: leaf.astype(kept), stored))
    # On a device they are float32, as are the better statistics.
    better = {**jax.tree.map(jnp.float32, found), "batch_stats": BETTER["batch_stats"]}
    write(tmp_path / "new.npz", better, source)
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), LIKE)
    back, _ = read(tmp_path / "new.npz", like)
    expected = jax.tree.map(lambda leaf: leaf.astype(dtype), BETTER["batch_stats"])
    _same(back, {**stored, "batch_stats": expected})


COPY = _variables(5)


@pytest.mark.parametrize(
    ("tree", "within", "expected", "hint"),
    [
        ({"params": GIVEN}, "", GIVEN, None),
        ({"state": {"model": GIVEN}}, "", GIVEN, None),
        ({**GIVEN, "ema_params": COPY["params"]}, "", GIVEN, "What lies in 'ema_params' fits as well"),
        ({**GIVEN, "ema_params": COPY["params"]}, "ema_params", {**GIVEN, "params": COPY["params"]}, None),
        ({"ema": COPY, **GIVEN}, "", GIVEN, "'ema/batch_stats' fits as well"),
        ({"ema": COPY, "state": GIVEN}, "ema", COPY, None),
        (
            {
                "params": {
                    "encoder": GIVEN["params"],
                    "head": {"bias": GIVEN["params"]["BatchNorm_0"]["bias"]},
                },
                "batch_stats": {"encoder": GIVEN["batch_stats"]},
            },
            "",
            GIVEN,
            "does not have: params/head/bias",
        ),
        ({"ema": COPY, "state": GIVEN}, "state/params", GIVEN, "'ema/batch_stats' fits as well"),
        ({**GIVEN, "best": {"accuracy": np.float32(0.5)}}, "", GIVEN, "does not have: best/accuracy"),
        ({**GIVEN, "opt_state": {"0": {"mu": COPY["params"]}}, "step": np.int32(1)}, "", GIVEN, None),
    ],
)
def test_where_variables_lie(tmp_path, tree, within, expected, hint):
    found, source = read(_file(tmp_path / "given", tree), LIKE, within=within)
    _same(found, expected)
    assert bool(source.hints) == bool(hint) and (hint or "") in " ".join(source.hints)


def test_statistics_with_other_names(tmp_path):
    renamed = {"mean": "running_mean", "var": "running_var"}
    flat = {
        f"{path[1]}.{renamed.get(path[2], path[2])}": leaf for path, leaf in flatten_dict(GIVEN).items()
    } | {"BatchNorm_0.num_batches_tracked": np.int64(9)}
    np.savez(tmp_path / "given.npz", **flat)
    source = _round_trip(tmp_path / "given.npz", tmp_path / "new.npz")
    assert len(source.hints) == 1 and "unbiased variance, n / (n - 1)" in source.hints[0]
    assert list(np.load(tmp_path / "new.npz")) == list(flat)

    tree = {**GIVEN, "batch_stats": {"BatchNorm_0": {}}}
    for ours, theirs in (("mean", "moving_mean"), ("var", "moving_variance")):
        tree["batch_stats"]["BatchNorm_0"][theirs] = GIVEN["batch_stats"]["BatchNorm_0"][ours]
    found, source = read(_file(tmp_path / "theirs", tree), LIKE)
    _same(found, GIVEN)
    assert len(source.hints) == 1 and "TensorFlow" in source.hints[0]


def _without(tree: dict, path: str) -> dict:
    flat = flatten_dict(tree, sep="/")
    del flat[path]
    return unflatten_dict(flat, sep="/")


def _with(tree: dict, path: str, leaf: Any) -> dict:
    return unflatten_dict({**flatten_dict(tree, sep="/"), path: leaf}, sep="/")


MERGED = {
    "Conv_0": GIVEN["params"]["Conv_0"],
    "BatchNorm_0": GIVEN["params"]["BatchNorm_0"] | GIVEN["batch_stats"]["BatchNorm_0"],
}
KERNEL, VAR = "params/Conv_0/kernel", "batch_stats/BatchNorm_0/var"
MISFITS = {
    "missing": (_without(GIVEN, VAR), [f"\n  {VAR}: missing in the file, (4,) float32 in the model"]),
    "shape": (
        _with(GIVEN, KERNEL, np.ones((3, 3, 4, 2), np.float32)),
        [f"\n  {KERNEL}: (3, 3, 4, 2) float32 in the file, (3, 3, 2, 4) float32 in the model"],
    ),
    "integers": (_with(GIVEN, KERNEL, np.ones((3, 3, 2, 4), np.int8)), ["(3, 3, 2, 4) int8 in the file"]),
    "more": (
        _with(GIVEN, "params/Conv_1/kernel", np.ones(2)),
        ["\n  params/Conv_1/kernel: (2,) in the file, missing in the model"],
    ),
    "part of a larger model": (
        {**GIVEN, "params": {"Conv_0": {"kernel": np.ones(3)}, "Block_0": GIVEN["params"]}},
        [
            f"\n  {KERNEL}: (3,) ",
            "\n  params/BatchNorm_0/bias: missing",
            "params/Block_0/Conv_0/kernel: (3, 3, 2, 4)",
        ],
    ),
    "part of a larger model without collections": (
        {"Conv_0": {"kernel": np.ones(3)}, "Block_0": MERGED},
        [f"\n  {KERNEL}: (3,) "],
    ),
    "only the copy fits": (
        {**GIVEN, "params": {"Conv_0": {"kernel": np.ones(3)}}, "ema_params": GIVEN["params"]},
        [f"\n  {KERNEL}: (3,) "],
    ),
    "no statistics": (
        {"params": GIVEN["params"]},
        ["batch_stats: nothing in the file has its names. The model has BatchNorm_0/mean, BatchNorm_0/var;"],
    ),
    "replicas": (
        jax.tree.map(lambda leaf: np.stack([leaf] * 8), GIVEN),
        ["params: every array in the file has a first axis of 8", "flax.jax_utils.unreplicate"],
    ),
    "torch": (
        {"conv1.weight": np.ones((4, 2, 3, 3)), "bn1.weight": np.ones(4), "bn1.running_var": np.ones(4)},
        ["params: nothing in the file has its names", "is Flax's kernel (height, width, in, out)"],
    ),
    "copies": (
        {"ema": COPY, "state": GIVEN},
        ["copies of 'params' that fit the model: 'ema/params', 'state/params'. ", "within='ema/params'"],
    ),
    "not finite": (
        _with(GIVEN, KERNEL, GIVEN["params"]["Conv_0"]["kernel"] * np.float32(np.inf)),
        [f"finite in {KERNEL}"],
    ),
    "negative": (_with(GIVEN, VAR, np.float32([1, 2, -1e-6, 1])), [f"negative variances in {VAR}: "]),
    "twice": ({**GIVEN, VAR: np.ones(4)}, [f"holds '{VAR}' twice"]),
}


@pytest.mark.parametrize("name", MISFITS)
def test_misfits(tmp_path, name):
    tree, sentences = MISFITS[name]
    with pytest.raises(DropbnError) as error:
        read(_file(tmp_path / "given", tree), LIKE)
    assert all(sentence in str(error.value) for sentence in [*sentences, str(tmp_path / "given")])


def test_other_collections(tmp_path):
    """Sown values need not be in a file; if they are, they must fit."""
    sown, like = {"loss": {"mean": np.ones(2, np.float32)}}, {**LIKE, "loss": {"mean": jnp.ones(2)}}
    found, source = read(_file(tmp_path / "without", {**GIVEN, "log": sown["loss"]}), {**like, "none": {}})
    _same(found, {**GIVEN, "none": {}})
    assert source.hints[0] == "The model also keeps 'loss', which the file does not hold."
    _round_trip(
        _file(tmp_path / "with", {**GIVEN, **sown}),
        tmp_path / "new",
        like,
        {**GIVEN, **sown},
        {**BETTER, **sown},
    )
    with pytest.raises(DropbnError, match="loss: nothing in the file has its names"):
        read(_file(tmp_path / "other", {**GIVEN, "loss": {"sum": np.ones(2)}}), like)


def test_a_part_that_is_not_there(tmp_path):
    with pytest.raises(
        DropbnError, match="has no part 'emma'; it has ema/batch_stats/BatchNorm_0/mean, ".replace(".", "[.]")
    ):
        read(_file(tmp_path / "given", {"ema": GIVEN}), LIKE, within="emma")


def test_what_is_written_must_fit(tmp_path):
    np.savez(tmp_path / "given.npz", **flatten_dict(jax.tree.map(np.float16, GIVEN), sep="/"))
    _, source = read(tmp_path / "given.npz", LIKE)
    wrong = {
        _error(write, tmp_path / "new.npz", tree, source)
        for tree in (
            _without(GIVEN, VAR),
            _with(GIVEN, "params/new", np.ones(1)),
            _with(GIVEN, VAR, np.ones(3)),
            _with(GIVEN, VAR, np.float32([1, 1, 1e6, 1])),
        )
    }
    start = f"These variables do not fit {tmp_path / 'given.npz'}:\n  "
    assert wrong == {
        start + f"{VAR}: missing",
        start + "params/new: not in the file",
        start + f"{VAR}: (3,), (4,) in the file",
        start + f"{VAR}: not finite as float16",
    }
    assert not (tmp_path / "new.npz").exists()


def _error(call, *args) -> str:
    with pytest.raises(DropbnError) as error:
        call(*args)
    return str(error.value)


def _zip(path, names):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"content")


def _cut(path, write_whole, keep=0.6):
    write_whole(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


FLAT = flatten_dict(GIVEN, sep="/")
REFUSALS = {
    "missing": (lambda p: None, "There is no .*: give the path of a checkpoint"),
    "pickle": (lambda p: p.write_bytes(pickle.dumps(GIVEN)), "is a pickle, .*save its"),
    "torch": (lambda p: _zip(p, ["archive/data.pkl", "archive/data/0"]), "is a pickle, .*save its"),
    "h5": (lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99)), "is an HDF5 file .*save its"),
    "keras": (lambda p: _zip(p, ["config.json", "model.weights.h5"]), "is a model of Keras"),
    "no arrays": (lambda p: _file(p, {"params": {}}), "has no arrays[.]"),
    "empty": (lambda p: p.touch(), "is empty: save or copy it again"),
    "text": (lambda p: p.write_text("some text of a reader"), "has none of the formats that are read"),
    "npy": (lambda p: np.save(p.open("wb"), np.ones(3)), "has none of the formats that are read"),
    "empty directory": (lambda p: p.mkdir(), "is no checkpoint of orbax .* it is empty"),
    "other directory": (lambda p: (p / "model").mkdir(parents=True), "it holds model. Give the directory"),
    "empty step": (
        lambda p: (p / "12").mkdir(parents=True),
        "12 is no checkpoint of orbax, or was not saved to the end",
    ),
    "objects": (lambda p: np.savez(p.open("wb"), params=GIVEN), "holds 'params' as a pickle"),
    "cut npz": (lambda p: _cut(p, lambda p: np.savez(p.open("wb"), **FLAT)), "cannot be read .*cut short"),
    "cut safetensors": (lambda p: _cut(p, lambda p: p.write_bytes(_safetensors(FLAT)), 0.9), "cut short"),
    "cut header": (lambda p: _cut(p, lambda p: p.write_bytes(_safetensors(FLAT)), 0.1), "cut short"),
    "cut msgpack": (lambda p: _cut(p, lambda p: _file(p, GIVEN)), "cannot be read .*cut short"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(tmp_path, name):
    path = tmp_path / "given"
    REFUSALS[name][0](path)
    with pytest.raises(DropbnError, match=REFUSALS[name][1]) as error:
        read(path, LIKE)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_places_that_are_not_here():
    with pytest.raises(DropbnError, match="is not on this machine: copy it here"):
        read("gs://bucket/run", LIKE)


def test_a_flipped_bit_of_an_npz(tmp_path):
    np.savez(tmp_path / "given.npz", **FLAT)
    content = bytearray((tmp_path / "given.npz").read_bytes())
    content[content.index(GIVEN["batch_stats"]["BatchNorm_0"]["var"].tobytes())] ^= 1
    (tmp_path / "given.npz").write_bytes(content)
    with pytest.raises(DropbnError, match=r"BatchNorm_0/var.* is not what was saved"):
        read(tmp_path / "given.npz", LIKE)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"use_ocdbt": False}, {"use_ocdbt": True}], ids=str)
def test_a_damaged_checkpoint_of_orbax(tmp_path, options):
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)) as checkpointer:
        checkpointer.save(tmp_path / "given", args=ocp.args.PyTreeSave(GIVEN))
    for path in (tmp_path / "given").rglob("*"):
        if path.parent.name in ("d", "batch_stats.BatchNorm_0.var") and path.name != ".zarray":
            path.unlink()
    with pytest.raises(DropbnError, match="cannot be read"):
        read(tmp_path / "given", LIKE)
