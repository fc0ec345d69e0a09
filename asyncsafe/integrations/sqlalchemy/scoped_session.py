"""SQLAlchemy: the session of a scoped_session, which its registry keeps for each thread."""

from __future__ import annotations

import sys
import threading
from typing import Any

from ...exceptions import ConfigurationError
from ...thread_locals import OwnerLocal, SwappedLocal, swap


def use_local(session: Any) -> SwappedLocal:
    """Swap the registry of a scoped_session. See `asyncsafe.use_local`."""
    orm = sys.modules.get("sqlalchemy.orm")
    if orm is None or not isinstance(session, orm.scoped_session):
        raise ConfigurationError(
            f"use_local() takes SQLAlchemy's scoped_session, not a {type(session).__qualname__}: a "
            "pool hands a connection to one user at a time, and a Session is its maker's. For a "
            'connection in each task: asyncsafe.ConnectionHandler({"default": engine.connect})'
        )
    registry = session.registry
    if isinstance(registry.registry, OwnerLocal):
        return swap(registry, "registry")
    if not isinstance(registry.registry, threading.local):
        raise ConfigurationError(
            "this scoped_session has a scopefunc, which decides whose a session is: leave it out"
        )
    if registry.has():
        raise ConfigurationError(
            "a session is open in this thread: call the scoped_session's remove() first"
        )
    _refuse_thread_pool(session)
    return swap(registry, "registry", release=_release)


def _release(state: Any) -> None:
    # Not session.remove(), which after undo() would remove another one.
    if hasattr(state, "value"):
        state.value.close()


def _refuse_thread_pool(session: Any) -> None:
    """SingletonThreadPool keeps a connection for each thread, below every session of it."""
    options = getattr(session.session_factory, "kw", {})
    binds = [options.get("bind"), *(options.get("binds") or {}).values()]
    kind = sys.modules["sqlalchemy.pool"].SingletonThreadPool
    if any(isinstance(getattr(bind, "pool", None), kind) for bind in binds):
        raise ConfigurationError(
            "its engine has a SingletonThreadPool, where all tasks of a thread get one connection: "
            "create_engine(url, poolclass=QueuePool), and for sqlite a file instead of ':memory:'"
        )
