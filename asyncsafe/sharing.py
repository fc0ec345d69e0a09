"""One connection, two tasks: who began the transaction that is open on a connection."""

from __future__ import annotations

from weakref import ref

from . import owners
from .locks import ForkSafeLock
from .transactions import begins_by_itself, in_transaction

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .violation import Frame

#: Transactions that are known at once. Those on connections that are gone are forgotten first.
_LIMIT = 10_000


class Begun:
    """A transaction: who began it, and where."""

    __slots__ = ("connection", "loop", "owner", "place")

    def __init__(self, connection: Any, owner: owners.Owner, place: Frame) -> None:
        #: None for a connection that no weak reference can be made to: sqlite3's.
        self.connection: Callable[[], Any] | None = _weak(connection)
        self.owner: owners.Owner = owner
        #: The loop that its task runs on, by weak reference, where it is asyncio's.
        loop = getattr(owner.task(), "get_loop", _nothing)()
        self.loop: Callable[[], Any] | None = None if loop is None else ref(loop)
        #: The user's line that began it.
        self.place: Frame = place

    def holds(self, connection: Any) -> bool:
        """Whether it is this connection's, and not one's that was freed in its place.

        When its loop is closed, whoever comes next takes the transaction over: scripts and tests
        that call asyncio.run() again and again do nothing at the same time.
        """
        if self.loop is not None and ((loop := self.loop()) is None or loop.is_closed()):
            return False
        return self.connection is None or self.connection() is connection


#: Operations after which nothing is left of the transaction that was open before, if there was one.
_ENDS = frozenset({"connect", "commit", "rollback", "__exit__", "autocommit"})

_begun: dict[int, Begun] = {}
_shared: dict[int, int] = {}
_lock = ForkSafeLock()


def begun_by_another(connection: Any, owner: owners.Owner) -> Begun | None:
    """The transaction that is open on this connection, if somebody else than `owner` began it."""
    begun = _begun.get(id(connection))
    if begun is None or begun.owner is owner or not _are_two(begun.owner, owner):
        return None
    if id(connection) in _shared:
        return None
    if not begun.holds(connection) or not in_transaction(connection):
        _begun.pop(id(connection), None)
        return None
    return begun


def is_nobodys(connection: Any) -> bool:
    """Whether a transaction is open that nobody is known to have begun.

    Nobody is blamed for it: synchronous code opens one round tasks (Django's TestCase).
    """
    if id(connection) in _begun:
        return False
    return bool(in_transaction(connection)) and not begins_by_itself(connection)


def used(
    connection: Any,
    owner: owners.Owner,
    place: Callable[[], Frame],
    returned: str | None,
    nobodys: bool,
) -> None:
    """`owner` has made a call on this connection, at `place`: has it begun or ended a transaction?

    returned: the operation, if the call has returned and not raised.
    nobodys: what `is_nobodys` said before the call.
    """
    begun = _begun.get(id(connection))
    if not in_transaction(connection) or _has_ended(connection, returned):
        if begun is not None:
            _begun.pop(id(connection), None)
    elif not nobodys if begun is None else not begun.holds(connection):
        if len(_begun) >= _LIMIT:
            _forget_those_gone()
        _begun[id(connection)] = Begun(connection, owner, place())


def permit(connection: Any, step: int) -> None:
    """Let several tasks use this connection (1), or no longer (-1)."""
    with _lock:
        count = _shared.get(id(connection), 0) + step
        if count > 0:
            _shared[id(connection)] = count
        else:
            _shared.pop(id(connection), None)


def _forget_those_gone() -> None:
    for key, begun in tuple(_begun.items()):
        if begun.connection is None or begun.connection() is None:
            _begun.pop(key, None)


def _are_two(one: owners.Owner, other: owners.Owner) -> bool:
    """Whether they are apart, and not one task's: its own, its request's, its threads'."""
    task = one.task()
    return (task is None or task is not other.task()) and owners.are_apart(one, other)


def _has_ended(connection: Any, returned: str | None) -> bool:
    """Whether the transaction that is open after this operation is one with nothing in it."""
    if returned is None or returned.rpartition(".")[2] not in _ENDS:
        return False
    return begins_by_itself(connection)


def _nothing() -> None:
    """Stand in for a method that other libraries' tasks don't have."""


def _weak(thing: Any) -> Callable[[], Any] | None:
    try:
        return ref(thing)
    except TypeError:
        return None
