"""Two tasks on one thread, one thread-local connection: they commit and roll back each other's work.

Each story is told twice, by the same function. As the library is, it must go wrong: so that we know
that the story is true. With `use_local` or a ConnectionHandler it must not.
"""

from __future__ import annotations

import asyncio
import functools
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import peewee
import psycopg2
import pytest
import sqlalchemy
from sqlalchemy import orm

import asyncsafe

from .running import python

NAME = "asyncsafe-corruption"


class Store:
    """Rows with a number each, as a program keeps them by one of the libraries."""

    def session(self) -> AbstractContextManager[Any]:
        """What each task works in, for libraries that have such a thing."""
        return nullcontext()

    def begin(self) -> None:
        """For libraries that don't begin a transaction by themselves."""

    def insert(self, number: int) -> None:
        raise NotImplementedError

    def commit(self) -> None:
        raise NotImplementedError

    def rollback(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Whatever is open in this thread."""

    def open(self) -> None:
        """Connect, and leave nothing behind but the connection."""
        with self.session():
            self.begin()
            self.insert(0)
            self.rollback()


class Psycopg2(Store):
    def __init__(self, dsn: str, isolated: bool) -> None:
        connect = functools.partial(psycopg2.connect, dsn, application_name=NAME)
        self.connections = asyncsafe.ConnectionHandler({"default": connect})
        self.local = threading.local()
        self.connect = connect
        self.isolated = isolated

    @property
    def connection(self) -> Any:
        if self.isolated:
            return self.connections["default"]
        if not hasattr(self.local, "connection"):
            self.local.connection = self.connect()
        return self.local.connection

    def insert(self, number: int) -> None:
        self.connection.cursor().execute("insert into numbers values (%s)", [number])

    def commit(self) -> None:
        self.connection.commit()

    def rollback(self) -> None:
        self.connection.rollback()

    def close(self) -> None:
        if self.isolated:
            self.connections.close_all()
        else:
            self.connection.close()


class Peewee(Store):
    def __init__(self, dsn: str, isolated: bool) -> None:
        self.database = peewee.PostgresqlDatabase(dsn, application_name=NAME)

        class Number(peewee.Model):
            id = peewee.IntegerField(primary_key=True)

            class Meta:
                database = self.database
                table_name = "numbers"

        self.model = Number
        if isolated:
            asyncsafe.use_local(self.database)

    def begin(self) -> None:
        self.database.begin()

    def insert(self, number: int) -> None:
        self.model.insert(id=number).execute()

    def commit(self) -> None:
        self.database.commit()

    def rollback(self) -> None:
        self.database.rollback()

    def close(self) -> None:
        self.database.close()


class ScopedSession(Store):
    def __init__(self, dsn: str, isolated: bool) -> None:
        class Base(orm.DeclarativeBase):
            pass

        class Number(Base):
            __tablename__ = "numbers"
            id = sqlalchemy.Column(sqlalchemy.Integer, primary_key=True)

        self.engine = sqlalchemy.create_engine(
            "postgresql+psycopg2://",
            creator=lambda: psycopg2.connect(dsn, application_name=NAME),
        )
        self.model = Number
        self.scoped = orm.scoped_session(orm.sessionmaker(self.engine))
        if isolated:
            asyncsafe.use_local(self.scoped)

    def insert(self, number: int) -> None:
        self.scoped.add(self.model(id=number))
        self.scoped.flush()

    def commit(self) -> None:
        self.scoped.commit()

    def rollback(self) -> None:
        self.scoped.rollback()

    def close(self) -> None:
        self.scoped.remove()
        self.engine.dispose()


class Pony(Store):
    """For a process of its own: pony.orm is imported once, with use_local before it or not."""

    def __init__(self, dsn: str, isolated: bool) -> None:
        if isolated:
            asyncsafe.use_local("pony")
        from pony import orm as pony

        self.pony = pony
        self.database = pony.Database()

        class Number(self.database.Entity):  # type: ignore[misc, name-defined]
            _table_ = "numbers"
            id = pony.PrimaryKey(int)

        self.model = Number
        self.database.bind(provider="postgres", dsn=dsn, application_name=NAME)
        self.database.generate_mapping(create_tables=False, check_tables=False)

    def session(self) -> AbstractContextManager[Any]:
        return self.pony.db_session()  # type: ignore[no-any-return]

    def insert(self, number: int) -> None:
        self.model(id=number)
        self.pony.flush()

    def commit(self) -> None:
        self.pony.commit()

    def rollback(self) -> None:
        self.pony.rollback()

    def close(self) -> None:
        self.database.disconnect()


async def commits_the_others(store: Store) -> None:
    """A inserts 1. B inserts 2 and commits. A rolls back."""
    a_inserted, b_committed = asyncio.Event(), asyncio.Event()

    async def a() -> None:
        with store.session():
            store.begin()
            store.insert(1)
            a_inserted.set()
            await b_committed.wait()
            store.rollback()

    async def b() -> None:
        await a_inserted.wait()
        with store.session():
            store.begin()
            store.insert(2)
            store.commit()
        b_committed.set()

    await asyncio.gather(a(), b())


async def loses_the_others(store: Store) -> None:
    """A inserts 1, B inserts 2. A rolls back, B commits."""
    a_inserted, b_inserted, a_left = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def a() -> None:
        with store.session():
            store.begin()
            store.insert(1)
            a_inserted.set()
            await b_inserted.wait()
            store.rollback()
        a_left.set()

    async def b() -> None:
        await a_inserted.wait()
        with store.session():
            store.begin()
            store.insert(2)
            b_inserted.set()
            await a_left.wait()
            store.commit()

    await asyncio.gather(a(), b())


#: What becomes of it on one connection. On two, what B committed is there, and nothing else.
STORIES: dict[str, tuple[Callable[[Store], Any], list[int]]] = {
    "A's insert is committed by B": (commits_the_others, [1, 2]),
    "B's committed row is lost in A's rollback": (loses_the_others, []),
}
RIGHT = [2]

OPENED_BY = ["nobody", "the parent coroutine", "the main thread"]


def tell(story: str, opened_by: str, store: Store) -> None:
    """Have both tasks act, their parent or the thread having used the connection before, or not."""

    async def parent() -> None:
        if opened_by == "the parent coroutine":
            store.open()
        await STORIES[story][0](store)

    if opened_by == "the main thread":
        store.open()
    asyncio.run(parent())


class Server:
    """A table of numbers, seen from a connection of its own."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.connection = psycopg2.connect(dsn)
        self.connection.autocommit = True
        self.ask("drop table if exists numbers")
        self.ask("create table numbers (id integer primary key)")

    def ask(self, query: str, *parameters: Any) -> list[Any]:
        with self.connection.cursor() as cursor:
            cursor.execute(query, parameters)
            return list(cursor.fetchall()) if cursor.description else []

    def numbers(self) -> list[int]:
        """Those that are committed, which are then forgotten."""
        numbers = [number for (number,) in self.ask("select id from numbers order by id")]
        self.ask("delete from numbers")
        return numbers

    def all_left(self) -> bool:
        """Whether no connection of the stories is left. One that was closed takes a moment to go."""
        for _ in range(1000):
            if self.ask("select 1 from pg_stat_activity where application_name = %s", NAME) == []:
                return True
            self.ask("select pg_sleep(0.01)")
        return False


@pytest.fixture(scope="module")
def server(postgres: str) -> Iterator[Server]:
    server = Server(postgres)
    yield server
    server.ask("drop table numbers")
    server.connection.close()


@pytest.mark.parametrize("opened_by", OPENED_BY)
@pytest.mark.parametrize("story", STORIES)
@pytest.mark.parametrize("library", [Psycopg2, Peewee, ScopedSession])
class TestTransactions:
    def test_as_the_library_is(
        self, library: type[Any], story: str, opened_by: str, server: Server
    ) -> None:
        store = library(server.dsn, isolated=False)
        tell(story, opened_by, store)
        store.close()
        assert server.numbers() == STORIES[story][1]

    def test_with_connections_of_their_own(
        self, library: type[Any], story: str, opened_by: str, server: Server
    ) -> None:
        store = library(server.dsn, isolated=True)
        tell(story, opened_by, store)
        store.close()
        assert server.numbers() == RIGHT
        assert server.all_left()


@pytest.mark.parametrize("story", STORIES)
@pytest.mark.parametrize("library", [Psycopg2, Peewee, ScopedSession])
@pytest.mark.parametrize("isolated", [False, True])
def test_the_guards_tell_it_and_nothing_else(
    library: type[Any],
    story: str,
    isolated: bool,
    server: Server,
    guarded: None,
    heard: list[asyncsafe.Violation],
) -> None:
    """That it is one connection and two tasks, where calls may block."""
    asyncsafe.configure(mode="record")
    store = library(server.dsn, isolated)
    tell(story, "nobody", store)
    store.close()
    assert server.numbers() == (RIGHT if isolated else STORIES[story][1])
    assert heard
    assert any(violation.begun_by for violation in heard) is not isolated


class TestPony:
    """In a process for each half, as pony.orm can be imported but once."""

    @pytest.mark.parametrize("isolated", [False, True], ids=["as it is", "with use_local"])
    def test_transactions(self, isolated: bool, server: Server) -> None:
        told = python(
            f"from tests import test_corruption as t; t.tell_of_pony({server.dsn!r}, {isolated})",
            Path(__file__).parent.parent,
        )
        assert json.loads(told.stdout) == {
            f"{story} ({opened_by})": RIGHT if isolated else corrupted
            for story, (_, corrupted) in STORIES.items()
            for opened_by in OPENED_BY
        }


def tell_of_pony(dsn: str, isolated: bool) -> None:
    """All stories, in this process."""
    server = Server(dsn)
    store = Pony(dsn, isolated)
    outcome = {}
    for story in STORIES:
        for opened_by in OPENED_BY:
            store.close()
            tell(story, opened_by, store)
            outcome[f"{story} ({opened_by})"] = server.numbers()
    store.close()
    assert server.all_left()
    print(json.dumps(outcome))


class TestAtomic:
    """peewee's atomic() is a transaction if it is the outermost one, else a savepoint."""

    @staticmethod
    async def interleaved(store: Peewee) -> list[Any]:
        """A and B insert in atomic(). A leaves, B fails. Returns what each raised, or None."""
        a_inserted, b_inserted, a_left = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def a() -> None:
            with store.database.atomic():
                store.insert(1)
                a_inserted.set()
                await b_inserted.wait()
            a_left.set()

        async def b() -> None:
            await a_inserted.wait()
            with store.database.atomic():
                store.insert(2)
                b_inserted.set()
                await a_left.wait()
                raise ValueError("B fails")

        outcomes: list[Any] = await asyncio.gather(a(), b(), return_exceptions=True)
        return outcomes

    def test_as_the_library_is(self, server: Server) -> None:
        store = Peewee(server.dsn, isolated=False)
        a, b = asyncio.run(self.interleaved(store))
        store.close()
        assert a is None
        assert isinstance(b, peewee.DatabaseError)  # there is no such savepoint any more
        assert server.numbers() == [1, 2]  # B's has stayed

    def test_with_connections_of_their_own(self, server: Server) -> None:
        store = Peewee(server.dsn, isolated=True)
        a, b = asyncio.run(self.interleaved(store))
        assert a is None
        assert isinstance(b, ValueError)
        assert server.numbers() == [1]
        assert server.all_left()

    def test_in_one_task_it_nests_as_before(self, server: Server) -> None:
        store = Peewee(server.dsn, isolated=True)

        async def task() -> None:
            with store.database.atomic():
                store.insert(1)
                with pytest.raises(ValueError), store.database.atomic():
                    store.insert(2)
                    raise ValueError

        asyncio.run(task())
        assert server.numbers() == [1]
