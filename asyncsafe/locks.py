"""A lock that a forked child can take, whoever held it in the parent."""

from __future__ import annotations

import os
from threading import RLock


class ForkSafeLock:
    """A re-entrant lock, a new one in each forked child. For module globals: it is never freed."""

    def __init__(self) -> None:
        self._renew()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self._lock = RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exc_info: object) -> None:
        self._lock.release()
