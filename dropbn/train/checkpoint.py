"""Checkpoints, by orbax: what a run resumes from, with a digest that detects any damage."""

import contextlib
import hashlib
import json
import os
import re
import textwrap
from collections.abc import Iterator
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from dropbn.errors import DropbnError, shown
from dropbn.train import parallel
from dropbn.train.retention import LatestTwoAndBest, best_step

State = TypeVar("State")  # A pytree of arrays.
# A folder beside the steps for checkpoints that cannot be read: a new one of the same step takes their place.
_SET_ASIDE = "unreadable"
_TRIES = 5  # A run writes checkpoints more slowly than they are read.


@contextlib.contextmanager
def manager(
    directory: str | os.PathLike, read_only: bool = False, shared: bool = False
) -> Iterator[ocp.CheckpointManager]:
    """Opens a directory of checkpoints; on leaving, waits until what was saved is on disk.

    Args:
      directory: the directory; it is made if it does not exist.
      read_only: changes nothing, so that a run may still be training there.
      shared: all processes have it open and save together; otherwise it is this process's own.

    Raises:
      DropbnError: there is no such directory and none can be made; a checkpoint cannot be written.
    """
    policy = LatestTwoAndBest()
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policy,
        cleanup_tmp_directories=not read_only,
        read_only=read_only,
        create=False,
        multiprocessing_options=_processes(shared),
        lightweight_initialize=True,  # Otherwise one damaged file would keep all of them from opening.
    )
    place = _place(directory)
    if not place.is_dir() and (read_only or place.exists()):
        raise DropbnError(f"No checkpoint in {place}: train first, or name another workdir.")
    with _writing(place):
        place.mkdir(parents=True, exist_ok=True)
        # Given here because the manager of a new process cannot tell what a checkpoint holds.
        handler = ocp.StandardCheckpointHandler()
        opened = _listed(lambda: _Manager(place.resolve(), options=options, item_handlers=handler), place)
        policy.manager = opened
    try:
        yield opened
    finally:
        with _writing(place):
            opened.wait_until_finished()
            opened.close()


def _place(directory):
    """A directory as a path, also in a bucket; raises if this machine cannot reach such places."""
    kind = str(directory).partition("://")[0]
    try:
        place = epath.Path(directory)
        place.is_dir()
    except ImportError as error:
        package = {"gs": "gcsfs", "s3": "s3fs"}.get(kind, kind)
        raise DropbnError(
            f"Checkpoints in {kind}:// need {package}, which is not installed: pip install {package}."
        ) from error
    except KeyError as error:
        raise DropbnError(
            f"Checkpoints cannot be kept in {kind}://: give a directory or gs://bucket/run."
        ) from error
    except Exception as error:  # Buckets raise many kinds.
        raise DropbnError(f"Cannot reach {shown(directory)}: {_reason(error)}.") from error
    return place


class _Manager(ocp.CheckpointManager):
    """Orbax's manager, unaware of preemption, because the training loop stops by itself.

    At the step of a preemption, orbax reports how long ago the last checkpoint was written. It fails if an
    earlier process wrote that one: `lightweight_initialize` gives it a time without a time zone.
    """

    def reached_preemption(self, step):
        return False

    def reload(self):
        _listed(super().reload, self.directory)


def _listed(listing, directory):
    """What `listing` returns. Orbax fails if a run removes a checkpoint while the steps are listed."""
    for _ in range(_TRIES):
        with contextlib.suppress(FileNotFoundError):
            return listing()
    raise DropbnError(f"The checkpoints in {directory} are removed faster than they can be listed.")


def _processes(shared):
    """Orbax's options for the processes that have a directory open."""
    if shared or jax.process_count() == 1:
        return ocp.options.MultiprocessingOptions()
    index = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=index, active_processes={index}, barrier_sync_key_prefix=str(index)
    )


def save(
    opened: ocp.CheckpointManager,
    step: int,
    state: Any,
    accuracy: float | None = None,
    about: dict | None = None,
) -> None:
    """Saves a state in the background.

    Args:
      opened: from `manager`.
      step: the state's step.
      state: a pytree of arrays, one device's copy.
      accuracy: what the best checkpoint is chosen by; None within an epoch.
      about: what else to save with it, as JSON.

    Raises:
      DropbnError: the state, or the one saved before it, cannot be written.
    """
    arrays = jax.tree.map(np.asarray, state)  # Orbax takes no NumPy scalars.
    kept = {"accuracy": None if accuracy is None else float(accuracy), "about": about or {}}
    with _writing(opened.directory):
        opened.save(
            step,
            args=ocp.args.StandardSave(arrays),
            force=True,
            custom_metadata=kept | {"digest": _digest(arrays, kept)},
        )


def restore(opened: ocp.CheckpointManager, like: State, which: str | int = "latest") -> State:
    """Restores a checkpoint into the structure of `like`, strictly.

    A run that still trains there removes old checkpoints. If that happens while one is read, another is
    chosen.

    Args:
      opened: from `manager`.
      like: a state of the wanted structure, shapes and dtypes (arrays or `jax.ShapeDtypeStruct`s).
      which: "latest", "best", or a step.

    Returns:
      The state, of NumPy arrays.

    Raises:
      DropbnError: there is no such checkpoint, it is damaged, or it differs from `like`; in the last case
        the message names the paths and shapes that differ.
    """
    return restore_all(opened, like, which)[0]


def restore_all(
    opened: ocp.CheckpointManager, like: State, which: str | int = "latest"
) -> tuple[State, dict]:
    """As `restore`, with what was saved beside the state as `about`."""
    for tries_left in reversed(range(_TRIES)):
        opened.reload()
        steps = opened.all_steps()
        try:
            return _read(opened, _chosen(opened, which), like)
        except DropbnError:
            opened.reload()
            if not tries_left or opened.all_steps() == steps:
                raise
    raise AssertionError("the last try returns or raises")


def _chosen(opened, which):
    """The step that "latest", "best" or a number means."""
    steps, where = sorted(opened.all_steps()), opened.directory
    if not steps:
        raise DropbnError(f"No checkpoint in {where}: train first, or name another workdir.")
    if which == "latest":
        return steps[-1]
    if which == "best":
        step = best_step(opened)
        if step is None:
            raise DropbnError(f"The checkpoints in {where} have no accuracy to choose the best by.")
        return step
    if str(which).isdecimal() and int(which) in steps:
        return int(which)
    raise DropbnError(f"No checkpoint {which!r} in {where}: it has {steps}, 'latest' and 'best'.")


def resume(opened: ocp.CheckpointManager, like: State, shared: bool = False) -> tuple[State, dict, list[str]]:
    """Restores the newest checkpoint that can be read, and sets newer ones aside.

    Args:
      opened: from `manager`, not read-only.
      like: as in `restore`.
      shared: as in `manager`.

    Returns:
      (state, what was saved with it as `about`, a sentence for each checkpoint that was set aside).

    Raises:
      DropbnError: no checkpoint can be read, or the newest is of another network; the error is the newest's.
    """
    damaged = {}
    for step in sorted(opened.all_steps(), reverse=True):
        try:
            state, about = _read(opened, step, like)
        except DropbnError as error:
            damaged[step] = error
            continue
        if damaged:
            _set_aside(opened, damaged, shared)
        return state, about, [f"{error} Going on from that of step {step}." for error in damaged.values()]
    raise damaged[max(damaged)]


def _read(opened, step, like):
    """The (state, about) of a step."""
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), like)
    try:
        saved = opened.item_metadata(step)
        differing = _differing(saved, abstract) if saved is not None else []
        if not differing:
            restored = opened.restore(step, args=ocp.args.StandardRestore(abstract))
            state = jax.tree.map(np.asarray, restored)
            kept = dict(opened.metadata(step).custom_metadata)
            if kept.pop("digest") != _digest(state, kept):
                raise ValueError("it is not what was saved")
    except Exception as error:  # Orbax and its storage raise many kinds; all mean: unreadable.
        raise DropbnError(
            f"The checkpoint of step {step} in {opened.directory} cannot be read ({_reason(error)})."
        ) from error
    if differing:
        raise DropbnError(
            f"The checkpoint of step {step} in {opened.directory} is of another network:\n  "
            + "\n  ".join(differing)
        )
    return state, kept["about"]


def _set_aside(opened, steps, shared):
    if shared:
        parallel.wait_for_all(f"{opened.directory} was read")
    if parallel.is_first() or not shared:
        place = opened.directory / _SET_ASIDE
        with _writing(place):
            place.mkdir(exist_ok=True)
            for step in map(str, steps):
                if (place / step).exists():
                    (place / step).rmtree()
                (opened.directory / step).rename(place / step)
    if shared:
        parallel.wait_for_all(f"{opened.directory} is in order")
    opened.reload()


def _digest(arrays, kept):
    """A digest of all that a checkpoint holds, so that no flipped bit goes unnoticed."""
    found = hashlib.blake2b(json.dumps(kept, sort_keys=True).encode(), digest_size=16)
    for path, leaf in jax.tree.leaves_with_path(arrays):
        found.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
        found.update(np.ascontiguousarray(leaf).tobytes())
    return found.hexdigest()


@contextlib.contextmanager
def _writing(directory):
    """Turns any error in writing into a sentence."""
    try:
        yield
    except DropbnError:
        raise
    except Exception as error:  # Orbax and its storage raise many kinds.
        raise DropbnError(
            f"Cannot write checkpoints to {directory} ({_reason(error)}). Earlier ones are intact: once this "
            "is fixed, the same command goes on from them."
        ) from error


def _differing(saved, wanted):
    """A line for each path whose shape or dtype differs."""
    saved, wanted = (
        {
            jax.tree_util.keystr(path, simple=True, separator="/"): (tuple(leaf.shape), str(leaf.dtype))
            for path, leaf in jax.tree.leaves_with_path(tree)
        }
        for tree in (saved, wanted)
    )
    return [
        f"{path}: {saved.get(path, 'missing')} in the checkpoint, {wanted.get(path, 'missing')} in the model"
        for path in sorted(saved.keys() | wanted.keys())
        if saved.get(path) != wanted.get(path)
    ]


def _reason(error):
    """The system's text if the error has the system's number, otherwise the error's first line."""
    if number := re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(number[1]))
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return textwrap.shorten(lines[0].partition(" [tensorstore_spec")[0], 200, placeholder=" ...")
