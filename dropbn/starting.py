"""A command that is still importing: SIGTERM and Ctrl-C end it with a sentence, not with a traceback."""

import os
import signal
from types import FrameType

_SAYS = {
    signal.SIGTERM: (143, b"error: stopped by SIGTERM during start-up, so nothing was saved\n"),
    signal.SIGINT: (130, b"error: interrupted during start-up\n"),
}


def guard() -> None:
    """Watches both signals until `cli.run` does. Call it before anything that takes long to import."""
    for number in _SAYS:
        # A command in the background may have to ignore Ctrl-C, which stays so.
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, end)


def end(number: int, frame: FrameType | None) -> None:
    """Ends this process at once: an exception could be lost in the import that it interrupts."""
    status, says = _SAYS[signal.Signals(number)]
    os.write(2, says)
    os._exit(status)
