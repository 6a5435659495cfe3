"""Ctrl-C between two steps instead of anywhere inside of one: what is saved then goes on bit for bit."""

import signal
from types import FrameType
from typing import Any


class HeldBack:
    """Within it Ctrl-C is noted, for whoever looks between steps; a second one interrupts at once.

    Where another handler than Python's own is installed, and outside of the main thread, nothing changes.

    Attributes:
        asked: whether there was a Ctrl-C.
    """

    def __init__(self) -> None:
        self.asked = False
        self.before: Any = None

    def __enter__(self) -> "HeldBack":
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            try:
                self.before = signal.signal(signal.SIGINT, self._note)
            except ValueError:  # not the main thread
                self.before = None
        return self

    def __exit__(self, *_: Any) -> None:
        if self.before is not None:
            signal.signal(signal.SIGINT, self.before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
