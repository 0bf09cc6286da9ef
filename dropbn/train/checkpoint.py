"""Checkpoints, by orbax: what a run resumes from, with a digest that tells whether it is what was saved."""

import contextlib
import hashlib
import json
import os
import re
import textwrap
from collections.abc import Iterator

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

from dropbn.errors import DropbnError
from dropbn.train import parallel

# Beside the steps, where a checkpoint that cannot be read makes room for a new one of its step.
_SET_ASIDE = "unreadable"


@contextlib.contextmanager
def manager(directory, read_only: bool = False, shared: bool = False) -> Iterator[ocp.CheckpointManager]:
    """Opens a directory of checkpoints; on leaving, waits until what was saved is on disk.

    Read-only it leaves the directory of a run that is still training alone. `shared` says that all processes
    have it open and save together; otherwise it is this process's own.

    The latest two checkpoints and the best by accuracy are kept: the one before the latest in case that is
    damaged. (Orbax's `max_to_keep` with `best_fn` would delete the latest one.)

    Raises:
      DropbnError: there is no such directory and none can be made; a checkpoint cannot be written.
    """
    kept = _LatestTwoAndBest()
    options = ocp.CheckpointManagerOptions(
        preservation_policy=kept,
        cleanup_tmp_directories=not read_only,
        read_only=read_only,
        create=False,
        multiprocessing_options=_processes(shared),
        lightweight_initialize=True,  # Else one damaged file keeps them all from opening.
    )
    directory = epath.Path(directory)
    if not directory.is_dir() and (read_only or directory.exists()):
        raise DropbnError(f"No checkpoint in {directory}: train first, or name another workdir.")
    with _writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        # Named here, or the manager of a new process could not tell what a checkpoint holds.
        handler = ocp.StandardCheckpointHandler()
        opened = _Manager(directory.resolve(), options=options, item_handlers=handler)
        kept.opened = opened
    try:
        yield opened
    finally:
        with _writing(directory):
            opened.wait_until_finished()
            opened.close()


class _Manager(ocp.CheckpointManager):
    """Orbax's, unaware of preemption: whoever saves stops by itself.

    At the step of a preemption orbax would report how long ago the checkpoint before was written, and fail:
    where that is of an earlier process, `lightweight_initialize` gives it a time without a time zone.
    """

    def reached_preemption(self, step):
        return False


class _LatestTwoAndBest(checkpoint_managers.PreservationPolicy):
    """What orbax keeps of the checkpoints in `opened`."""

    opened = None

    def should_preserve(self, checkpoints, *, context):
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {*sorted(steps)[-2:], best_step(self.opened)}
        return [step in kept for step in steps]


def best_step(opened: ocp.CheckpointManager) -> int | None:
    """The step of the checkpoint of the highest accuracy, the latest of several; None if none has one."""
    found = {}
    for step in sorted(opened.all_steps()):
        with contextlib.suppress(Exception):  # A damaged one is not the best.
            if (accuracy := opened.metadata(step).custom_metadata["accuracy"]) is not None:
                found[step] = float(accuracy)
    return max(reversed(found), key=found.get, default=None)


def _processes(shared):
    """Which processes have a directory open."""
    if shared or jax.process_count() == 1:
        return ocp.options.MultiprocessingOptions()
    index = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=index, active_processes={index}, barrier_sync_key_prefix=str(index)
    )


def save(
    opened: ocp.CheckpointManager, step: int, state, accuracy: float | None = None, about: dict | None = None
) -> None:
    """Saves a state in the background.

    Args:
      opened: from `manager`.
      step: its step.
      state: a pytree of arrays, one device's copy.
      accuracy: what "best" goes by; None within an epoch.
      about: what else is to be known of it, JSON.

    Raises:
      DropbnError: it, or the one before it, cannot be written.
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


def restore(opened: ocp.CheckpointManager, like, which: str | int = "latest"):
    """Restores a checkpoint into the structure of `like`, strictly.

    Args:
      opened: from `manager`.
      like: a state of the wanted structure, shapes and dtypes (arrays or `jax.ShapeDtypeStruct`s).
      which: "latest", "best", or a step.

    Returns:
      The state, of NumPy arrays.

    Raises:
      DropbnError: there is no such checkpoint, it is damaged, or it differs from `like`; the message names
        the paths and shapes that differ.
    """
    steps = opened.all_steps()
    where = opened.directory
    if not steps:
        raise DropbnError(f"No checkpoint in {where}: train first, or name another workdir.")
    if which == "latest":
        step = opened.latest_step()
    elif which == "best":
        step = best_step(opened)
        if step is None:
            raise DropbnError(f"The checkpoints in {where} carry no accuracy to choose the best by.")
    elif str(which).isdecimal() and int(which) in steps:
        step = int(which)
    else:
        raise DropbnError(f"No checkpoint {which!r} in {where}: it has {sorted(steps)}, 'latest' and 'best'.")
    return _read(opened, step, like)[0]


def resume(opened: ocp.CheckpointManager, like, shared: bool = False) -> tuple[dict, dict, list[str]]:
    """Restores the newest checkpoint that can be read, and sets newer ones aside.

    Args:
      opened: from `manager`, not read-only.
      like: as of `restore`.
      shared: as of `manager`.

    Returns:
      (state, what was saved with it as `about`, a sentence for each checkpoint that was set aside).

    Raises:
      DropbnError: what `restore` says of the newest, where no other is any better.
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
    """(state, about) of a step."""
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), like)
    try:
        saved = opened.item_metadata(step)
        differing = _differing(saved, abstract) if saved is not None else []
        state = None if differing else opened.restore(step, args=ocp.args.StandardRestore(abstract))
        if state is not None:
            state = jax.tree.map(np.asarray, state)
            kept = dict(opened.metadata(step).custom_metadata)
            if kept.pop("digest") != _digest(state, kept):
                raise ValueError("it is not what was saved")
    except Exception as error:  # Orbax and its storage raise many kinds; all mean that it cannot be read.
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
    """Of all that a checkpoint holds, so that no flipped bit goes unseen."""
    found = hashlib.blake2b(json.dumps(kept, sort_keys=True).encode(), digest_size=16)
    for path, leaf in jax.tree.leaves_with_path(arrays):
        found.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
        found.update(np.ascontiguousarray(leaf).tobytes())
    return found.hexdigest()


@contextlib.contextmanager
def _writing(directory):
    """Whatever goes wrong in writing, in a sentence."""
    try:
        yield
    except Exception as error:  # Orbax and its storage raise many kinds.
        raise DropbnError(
            f"Cannot write checkpoints to {directory} ({_reason(error)}). Earlier ones are intact: once this "
            "is mended, the same command goes on from them."
        ) from error


def _differing(saved, wanted):
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
    """What the system says, if the storage tells its error's number; else the first line."""
    if number := re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(number[1]))
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return textwrap.shorten(lines[0].partition(" [tensorstore_spec")[0], 200, placeholder=" ...")
