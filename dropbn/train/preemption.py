"""SIGTERM: the notice that this machine will be taken away."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

from jax.experimental import multihost_utils


@contextlib.contextmanager
def watched(shared: bool) -> Iterator[Callable[[int], bool]]:
    """Watches for SIGTERM.

    Args:
      shared: whether all processes train together. Then JAX's preemption service agrees on a step at which
        all of them stop, whichever got the signal.

    Yields:
      should_stop(step) -> whether to stop after that step. All processes that train together call it at every
      step.
    """
    if shared:
        yield multihost_utils.reached_preemption_sync_point
        return
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: False  # Python delivers signals to the main thread only.
        return
    received = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.set())
    try:
        yield lambda step: received.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)
