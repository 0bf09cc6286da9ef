"""Checkpoints, by orbax."""

import contextlib
import os
from collections.abc import Iterator

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from dropbn.errors import DropbnError

_METRIC = "accuracy"


@contextlib.contextmanager
def manager(directory, read_only: bool = False, shared: bool = False) -> Iterator[ocp.CheckpointManager]:
    """Opens a directory of checkpoints; on leaving, waits until what was saved is on disk.

    Read-only it leaves the directory of a run that is still training alone. `shared` says that all processes
    have it open and save together; otherwise it is this process's own.

    The latest checkpoint and the best by accuracy are kept. (Orbax's `max_to_keep` with `best_fn`
    would delete the latest one.)
    """
    options = ocp.CheckpointManagerOptions(
        preservation_policy=checkpoint_managers.AnyPreservationPolicy(
            [
                checkpoint_managers.LatestN(1),
                checkpoint_managers.BestN(get_metric_fn=lambda metrics: metrics[_METRIC], n=1),
            ]
        ),
        best_fn=lambda metrics: metrics[_METRIC],
        best_mode="max",
        cleanup_tmp_directories=not read_only,
        read_only=read_only,
        create=False,
        multiprocessing_options=_processes(shared),
    )
    if not os.path.isdir(directory) and (read_only or os.path.exists(directory)):
        raise DropbnError(f"No checkpoint in {directory}: train first, or name another workdir.")
    os.makedirs(directory, exist_ok=True)
    # Named here, or the manager of a new process could not tell what a checkpoint holds.
    handler = ocp.StandardCheckpointHandler()
    with ocp.CheckpointManager(os.path.abspath(directory), options=options, item_handlers=handler) as opened:
        yield opened
        opened.wait_until_finished()


def _processes(shared):
    """Which processes have a directory open."""
    if shared or jax.process_count() == 1:
        return ocp.options.MultiprocessingOptions()
    index = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=index, active_processes={index}, barrier_sync_key_prefix=str(index)
    )


def save(opened: ocp.CheckpointManager, step: int, state, accuracy: float) -> None:
    """Saves a state (a pytree of arrays, one device's copy) in the background."""
    arrays = jax.tree.map(np.asarray, state)  # Orbax takes no NumPy scalars.
    opened.save(step, args=ocp.args.StandardSave(arrays), metrics={_METRIC: float(accuracy)}, force=True)


def restore(opened: ocp.CheckpointManager, like, which: str | int = "latest"):
    """Restores a checkpoint into the structure of `like`, strictly.

    Args:
      opened: from `manager`.
      like: a state of the wanted structure, shapes and dtypes (arrays or `jax.ShapeDtypeStruct`s).
      which: "latest", "best", or a step.

    Returns:
      The state, of NumPy arrays.

    Raises:
      DropbnError: there is no such checkpoint, it cannot be read, or it differs from `like`; the message
        names the paths and shapes that differ.
    """
    steps = opened.all_steps()
    where = str(opened.directory)
    if not steps:
        raise DropbnError(f"No checkpoint in {where}: train first, or name another workdir.")
    if which == "latest":
        step = opened.latest_step()
    elif which == "best":
        step = opened.best_step()
        if step is None:
            raise DropbnError(f"The checkpoints in {where} carry no accuracy to choose the best by.")
    elif str(which).isdecimal() and int(which) in steps:
        step = int(which)
    else:
        raise DropbnError(f"No checkpoint {which!r} in {where}: it has {sorted(steps)}, 'latest' and 'best'.")
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), like)
    try:
        saved = opened.item_metadata(step)
        differing = _differing(saved, abstract) if saved is not None else []
        state = None if differing else opened.restore(step, args=ocp.args.StandardRestore(abstract))
    except Exception as error:  # Orbax and its storage raise many kinds; all mean that it cannot be read.
        raise DropbnError(
            f"Checkpoint {step} in {where} cannot be read ({_first_line(error)}). "
            + (f"Move {where}/{step} away to use an older one." if len(steps) > 1 else "There is no other.")
        ) from error
    if differing:
        raise DropbnError(f"Checkpoint {step} in {where} is of another network:\n  " + "\n  ".join(differing))
    return jax.tree.map(np.asarray, state)


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


def _first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
