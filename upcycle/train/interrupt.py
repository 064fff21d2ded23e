"""Holds back SIGTERM and Ctrl-C until the running step is over and saved; a second signal ends the program at once."""

import logging
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

_log = logging.getLogger("upcycle")

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupt:
    """A context that notes the first signal; a second one ends the program at once."""

    def __init__(self) -> None:
        """Note nothing yet."""
        self.number = 0  # of the signal that came; 0: none
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupt":
        """Take the signals over, where this is the thread that gets them."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, _kind: type | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        """Give the signals back."""
        self._restore()

    def take_effect(self, number: int) -> None:
        """Do what the signal would have done; does not return, unless somebody ignores it."""
        self._restore()
        signal.raise_signal(number)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.number:
            self.take_effect(number)
        self.number = number
        _log.info("stopping after this step, which is then saved; a second signal ends at once")

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
