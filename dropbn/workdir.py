"""A run's directory: config.json, metrics.jsonl, TensorBoard events, checkpoints/, eval/."""

import contextlib
import fcntl
import json
import os
import pathlib
from collections.abc import Callable, Iterator

import ml_collections

from dropbn.errors import DropbnError

# What a process that was killed early, or a study's member that could not begin, leaves behind.
_LEFTOVERS = ("config.json.tmp", "error.txt", ".lock")


def claim(workdir, config: ml_collections.ConfigDict) -> pathlib.Path:
    """Makes `workdir` the directory of a run of `config`, or recognizes it as one.

    Raises:
      DropbnError: it holds a run of another config (the differing fields are named) or something that is
        no run. Nothing is written then.
    """
    path = pathlib.Path(workdir)
    if path.is_dir() and any(file.name not in _LEFTOVERS for file in path.iterdir()):
        refuse_another(path, config)
        return path
    try:
        path.mkdir(parents=True, exist_ok=True)
        replace(path / "config.json", json.dumps(config.to_dict(), indent=1) + "\n")
    except OSError as error:
        raise DropbnError(f"Cannot write to workdir {path}: {error.strerror}.") from error
    return path


def refuse_another(workdir, config: ml_collections.ConfigDict) -> None:
    """Raises if the run in `workdir` is of another config; the differing fields are named."""
    before, now = (_flat(c.to_dict()) for c in (read_config(workdir), config))
    differing = [
        f"{key}: {before.get(key, 'missing')!r} there, {now.get(key, 'missing')!r} now"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
    if differing:
        raise DropbnError(
            f"{workdir} holds a run of another config; choose another --workdir.\n  " + "\n  ".join(differing)
        )


@contextlib.contextmanager
def lock(workdir) -> Iterator[None]:
    """Keeps a run's directory to this process; the lock ends with the process, however it ends.

    Raises:
      DropbnError: another process trains there.
    """
    with open(pathlib.Path(workdir) / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DropbnError(f"Another process is training in {workdir}.") from error
        yield


def read_config(workdir) -> ml_collections.ConfigDict:
    """The config of the run in `workdir`.

    Raises:
      DropbnError: there is none, or it is no JSON.
    """
    file = pathlib.Path(workdir) / "config.json"
    try:
        config = json.loads(file.read_text())
    except OSError as error:
        raise DropbnError(f"{workdir} holds no run: no readable config.json there.") from error
    except ValueError as error:
        raise DropbnError(f"{file} is not valid JSON: {error}.") from error
    if not isinstance(config, dict) or not {"data", "model", "optimizer"} <= config.keys():
        raise DropbnError(f"{workdir} holds no run of dropbn: its config.json is something else.")
    return ml_collections.ConfigDict(config)


def read_metrics(workdir) -> list[dict]:
    """The records of metrics.jsonl; a last line that a kill tore is left out."""
    file = pathlib.Path(workdir) / "metrics.jsonl"
    text = file.read_text() if file.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


@contextlib.contextmanager
def metrics_writer(workdir, restored_step: int) -> Iterator[Callable[[dict], None]]:
    """Appends records to metrics.jsonl and TensorBoard events.

    Records after `restored_step`, of an interrupted run whose checkpoint is older, are cut first.
    """
    import tensorboardX  # Here, because it imports much, and every config reads this file.

    file = pathlib.Path(workdir) / "metrics.jsonl"
    kept = [record for record in read_metrics(workdir) if record["step"] <= restored_step]
    replace(file, "".join(json.dumps(record) + "\n" for record in kept))
    events = tensorboardX.SummaryWriter(str(workdir), purge_step=restored_step + 1)
    with file.open("a") as lines, contextlib.closing(events):

        def write(record):
            lines.write(json.dumps(record) + "\n")
            lines.flush()
            os.fsync(lines.fileno())
            for name, value in record.items():
                if name != "step":
                    events.add_scalar(name, value, record["step"])

        yield write


def replace(path: pathlib.Path, text: str) -> None:
    """Replaces a file in one step, so that a kill leaves the old one or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _flat(tree, prefix=""):
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat
