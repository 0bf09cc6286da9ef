"""A run's directory: config.json, metrics.jsonl, TensorBoard events, checkpoints/, eval/."""

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import ml_collections

from dropbn import readers, writers
from dropbn.errors import DropbnError, extra, shown
from dropbn.train.fields import FIELDS

# A process that was killed early, or a study's member that could not begin, leaves these behind.
_LEFTOVERS = ("checkpoint_dir", "error.txt", ".lock")


def claim(
    workdir: str | os.PathLike, config: ml_collections.ConfigDict, checkpoint_dir: str = ""
) -> pathlib.Path:
    """Makes `workdir` the directory of a run of `config`, or recognizes it as one.

    Args:
      workdir: a directory that all processes of the run share.
      config: the run's config.
      checkpoint_dir: where its checkpoints go, if not into the workdir: a path, or a place such as
        gs://bucket/run.

    Raises:
      DropbnError: it holds a run of another config (the message names the fields that differ), a run with
        its checkpoints elsewhere, or something that is no run. Nothing is written then.
    """
    path = local(workdir)
    if path.is_dir() and not all(map(_is_leftover, path.iterdir())):
        refuse_another(path, config)
        if checkpoint_dir and checkpoints(path) != checkpoint_dir:
            raise DropbnError(
                f"The run in {path} has its checkpoints in {checkpoints(path)}, not in {checkpoint_dir}."
            )
        return path
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
        if checkpoint_dir:
            writers.replace(path / "checkpoint_dir", checkpoint_dir + "\n")
        writers.replace(path / "config.json", json.dumps(config.to_dict(), indent=1) + "\n")
    return path


def refuse_another(workdir: str | os.PathLike, config: ml_collections.ConfigDict) -> None:
    """Raises if the run in `workdir` is of another config; the message names the fields that differ."""
    before, now = (_flat(c.to_dict()) for c in (read_config(workdir), config))
    differing = [
        f"{key}: {shown(repr(before.get(key, 'missing')))} there, {shown(repr(now.get(key, 'missing')))} now"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
    if differing:
        raise DropbnError(
            f"{workdir} holds a run of another config; choose another --workdir.\n  " + "\n  ".join(differing)
        )


def local(workdir: str | os.PathLike) -> pathlib.Path:
    """A workdir as a local path; raises for one that is not on this machine."""
    if "://" in str(workdir):
        raise DropbnError(
            f"{workdir} cannot be a workdir, only a --checkpoint_dir of train.py: give a directory of this "
            "machine as --workdir."
        )
    return pathlib.Path(workdir)


def checkpoints(workdir: str | os.PathLike) -> str:
    """The place of the checkpoints of the run in `workdir`.

    Raises:
      DropbnError: its file checkpoint_dir, where it has one, does not say a place.
    """
    elsewhere = pathlib.Path(workdir) / "checkpoint_dir"
    if not os.path.exists(elsewhere):
        return str(pathlib.Path(workdir) / "checkpoints")
    place = readers.read_text(elsewhere).strip()
    if not place or "\n" in place or "\0" in place:
        raise DropbnError(
            f"{elsewhere} is not one line with the place of the run's checkpoints: write it there."
        )
    return place


@contextlib.contextmanager
def lock(workdir: str | os.PathLike) -> Iterator[None]:
    """Locks a run's directory for this process; the lock ends with the process, however that ends.

    Raises:
      DropbnError: another process is training there, or nothing can be written.
    """
    path = pathlib.Path(workdir) / ".lock"
    writers.refuse_special(path)
    with writing(workdir):
        file = path.open("a")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DropbnError(f"Another process is training in {workdir}.") from error
        yield


def read_config(workdir: str | os.PathLike) -> ml_collections.ConfigDict:
    """The config of the run in `workdir`.

    Raises:
      DropbnError: there is none; its config.json cannot be read, or is not a config of ours.
    """
    file = pathlib.Path(workdir) / "config.json"
    if not os.path.exists(file):  # Unlike pathlib's, False for a name that is too long.
        raise DropbnError(f"{shown(workdir)} holds no run: no config.json there.")
    config = readers.read_json(file)
    if not {"data", "model", "optimizer"} <= config.keys():
        raise DropbnError(f"{shown(workdir)} holds no run of dropbn: its config.json is something else.")
    readers.check_fields(config, {"model.noise": dict}, shown(file))
    _noise(config).setdefault("block_size", 0)  # Runs may be older than this field.
    readers.check_fields(config, FIELDS, shown(file))
    return ml_collections.ConfigDict(config)


def digest(config: ml_collections.ConfigDict) -> str:
    """A config as 16 hexadecimal digits, which change with any field.

    A block_size of 0 does not count, so that runs that are older than the field keep their digests.
    """
    fields = config.to_dict()
    if _noise(fields).get("block_size") == 0:
        del fields["model"]["noise"]["block_size"]
    text = json.dumps(fields, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def read_metrics(workdir: str | os.PathLike) -> list[dict]:
    """The records of metrics.jsonl, without a last line that a kill has cut short.

    Raises:
      DropbnError: it cannot be read, or a line is no record {"step", name: number}; the message names it.
    """
    file = pathlib.Path(workdir) / "metrics.jsonl"
    records = readers.read_json_lines(file, {"step": int})
    for number, record in enumerate(records, 1):
        readers.check_fields(record, dict.fromkeys(record, readers.NUMBER), f"{shown(file)}, line {number}")
    return records


class Log(NamedTuple):
    """Where a run's numbers go.

    Attributes:
      record: appends a record {"step", name: value} to metrics.jsonl and gives it to `scalars`.
      scalars: appends one to TensorBoard's events, and gives it to the user's writer.
    """

    record: Callable[[dict], None]
    scalars: Callable[[dict], None]


@contextlib.contextmanager
def log(
    workdir: str | os.PathLike, restored_step: int, write: Callable[[dict], None] | None = None
) -> Iterator[Log]:
    """Opens metrics.jsonl and a new file of events.

    Records after `restored_step` are cut first; an interrupted run whose checkpoint is older left them.

    Args:
      workdir: the directory.
      restored_step: the step from which the run goes on.
      write: a writer of the user's; called with every record {"step", name: value}.

    Raises:
      DropbnError: they cannot be written.
    """
    # Imported here because it is slow to import, and every config imports this file.
    with extra("train"):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary

    directory = pathlib.Path(workdir)
    file = directory / "metrics.jsonl"
    writers.refuse_special(file)
    with contextlib.ExitStack() as stack:
        with writing(directory):
            kept = [record for record in read_metrics(workdir) if record["step"] <= restored_step]
            writers.replace(file, "".join(json.dumps(record) + "\n" for record in kept))
            lines = file.open("a", encoding="utf-8")
            stack.callback(_close, lines)
            # Not tensorboardX's SummaryWriter: on a full disk its thread dies, and we would wait forever.
            events = EventsWriter(str(directory / "events"), f".{os.getpid()}")
            stack.callback(_close, events)
            # Makes TensorBoard forget what earlier files have of the steps from here on.
            forget = SessionLog(status=SessionLog.START)
            events.write_event(Event(step=restored_step + 1, wall_time=time.time(), session_log=forget))

        def scalars(given):
            values = [Summary.Value(tag=k, simple_value=v) for k, v in given.items() if k != "step"]
            event = Event(step=given["step"], wall_time=time.time(), summary=Summary(value=values))
            with writing(directory):
                events.write_event(event)
            if write:
                write(given)

        def record(given):
            with writing(directory):
                lines.write(json.dumps(given) + "\n")
                lines.flush()
                os.fsync(lines.fileno())
                scalars(given)
                events.flush()

        yield Log(record, scalars)


def _close(file):
    with contextlib.suppress(OSError):  # Whatever matters was flushed before, or has raised.
        file.close()


@contextlib.contextmanager
def writing(workdir: str | os.PathLike) -> Iterator[None]:
    """Turns an error of the system in writing there into a sentence."""
    try:
        yield
    except OSError as error:
        raise DropbnError(f"Cannot write to workdir {workdir}: {error.strerror}.") from error


def _is_leftover(file):
    return file.name in _LEFTOVERS or file.suffix == writers.SUFFIX


def _noise(config):
    return config["model"].get("noise", {})


def _flat(tree, prefix=""):
    flat: dict = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat
