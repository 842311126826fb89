"""Files that threads share and processes do not."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

__all__ = ["OwnReader"]

Reader = TypeVar("Reader")


class OwnReader(Generic[Reader]):
    """A reader with a position in a file, for one thread at a time.

    A process that begins as a copy of another, such as a worker of a torch data
    loader, would move the position of the other as well: it opens the file again.

    Parameters
    ----------
    open_reader : callable
        Opens the file and returns its reader.
    """

    def __init__(self, open_reader: Callable[[], Reader]) -> None:
        self._open = open_reader
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._reader = self._open()
        self._process = os.getpid()

    @contextmanager
    def using(self) -> Iterator[Reader]:
        """Yield the reader while no other thread has it."""
        if self._process != os.getpid():
            self._begin()
        with self._lock:
            yield self._reader
