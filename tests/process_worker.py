"""One of several processes that train the runs of a list: process_worker.py JOBS PORT NUMBER INDEX."""

import contextlib
import json
import os
import signal
import sys
import time
import traceback

import jax
import ml_collections

from dropbn.data import files
from dropbn.errors import Preempted
from dropbn.train import loop
from dropbn.train.progress import Progress


def main(jobs, port, number, index):
    jax.config.update("jax_threefry_partitionable", False)
    jax.distributed.initialize(f"127.0.0.1:{port}", int(number), int(index), heartbeat_timeout_seconds=30)
    read, show = [], Progress.step
    read_row = files.Files.__getitem__
    files.Files.__getitem__ = lambda source, row: read.append(str(source.files[row])) or read_row(source, row)
    with open(jobs) as file:
        given = json.load(file)
    for job in given:
        if job["stop_at"] and index == "1":  # One of them is told; all stop.

            def step(progress, sums, taken=iter(range(1, 10**6)), stop_at=job["stop_at"]):
                if (now := next(taken)) == stop_at:
                    os.kill(os.getpid(), signal.SIGTERM)
                if now > stop_at:
                    time.sleep(0.1)  # They agree in the background.
                show(progress, sums)

            Progress.step = step
        with contextlib.suppress(Preempted):
            loop.train_and_evaluate(ml_collections.ConfigDict(job["config"]), job["directory"])
        Progress.step = show
    with open(f"{jobs}.{index}", "w") as file:
        json.dump(read, file)


if __name__ == "__main__":
    sys.path.insert(0, os.getcwd())
    try:
        main(*sys.argv[1:])
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # Else this process would wait for the others, and they for it.
