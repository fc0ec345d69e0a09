"""What goes wrong where a synchronous call is refused carelessly: one section for each hazard.

Those that belong to one driver stand in its own tests: results that a refused fetch would mix up
(`TestProtocol`), connections that a pool would lose (`TestPools`), finalizers (`TestGarbage`).
Here is what holds for all, or belongs to none.
"""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import psycopg2
import psycopg2.extensions
import pytest
import uvloop

import asyncsafe

from .running import on_loop, python, refused

RUN = pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])


def stored(path: Path) -> list[Any]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("select n from numbers").fetchall()


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "numbers.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("create table numbers (n)")
    return path


# 1. A refusal after the request is sent: the next query gets its answer ------------------------


def connect_pg8000(dsn: str) -> Any:
    import pg8000.dbapi

    found = psycopg2.extensions.parse_dsn(dsn)
    host, port = found.get("host", "localhost"), int(found.get("port", 5432))
    place: dict[str, Any] = {"host": host, "port": port}
    if host.startswith("/"):
        place = {"unix_sock": f"{host}/.s.PGSQL.{port}"}
    return pg8000.dbapi.connect(
        found["user"], password=found.get("password"), database=found.get("dbname"), **place
    )


@pytest.mark.usefixtures("guarded")
class TestAnswers:
    @pytest.mark.parametrize("connect", [psycopg2.connect, psycopg.connect, connect_pg8000])
    def test_after_a_refused_query(self, postgres: str, connect: Callable[[str], Any]) -> None:
        with closing(connect(postgres)) as connection:
            cursor = connection.cursor()
            cursor.execute("select 111")
            for _ in range(3):
                refused(partial(cursor.execute, "select 333"))
                refused(connection.commit)
            assert tuple(cursor.fetchone()) == (111,)
            cursor.execute("select 222")
            assert tuple(cursor.fetchone()) == (222,)

    @pytest.mark.parametrize("connect", [psycopg2.connect, psycopg.connect])
    def test_after_a_refused_fetch(self, postgres: str, connect: Callable[[str], Any]) -> None:
        """Of a cursor on the server, half of whose rows are read."""
        with closing(connect(postgres)) as connection:
            cursor = connection.cursor("named")
            cursor.execute("select generate_series(1, 4)")
            assert cursor.fetchone() == (1,)
            for call in (cursor.fetchone, cursor.fetchall, partial(next, iter(cursor))):
                refused(call)
            assert cursor.fetchmany(2) == [(2,), (3,)]
            refused(cursor.close)
            assert cursor.fetchall() == [(4,)]
            other = connection.cursor()
            other.execute("select 222")
            assert other.fetchone() == (222,)


# 2. Finalizers ---------------------------------------------------------------------------------


def test_what_closes_itself_on_the_loop(
    database: Path, guarded: None, heard: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is raised where nobody would see it, and the connection is closed."""
    unraisable: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)

    class Session:
        def __init__(self) -> None:
            self.connection = sqlite3.connect(database)
            self.connection.execute("insert into numbers values (1)")

        def __del__(self) -> None:
            self.connection.close()

    sessions = [Session()]
    connection = sessions[0].connection
    on_loop(lambda: (sessions.clear(), gc.collect()))
    assert unraisable == []
    assert [v.outcome for v in heard] == ["allowed"]
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        connection.total_changes
    assert stored(database) == []


# 4. Masked errors: what is closed when the loop ends --------------------------------------------


@RUN
def test_generator_closed_at_shutdown(
    database: Path, guarded: None, heard: list[asyncsafe.Violation], run: Any
) -> None:
    """`finally: connection.close()` of a generator that nobody finishes runs on the loop."""
    connection = sqlite3.connect(database)
    connection.execute("insert into numbers values (1)")
    kept: list[Any] = []

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            connection.close()

    async def main() -> None:
        kept.append(numbers())
        async for _ in kept[0]:
            break

    run(main())  # which ends with shutdown_asyncgens()
    assert [(v.operation, v.outcome) for v in heard] == [("sqlite3.Connection.close", "allowed")]
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        connection.total_changes
    assert stored(database) == []


@RUN
def test_an_error_in_a_generator_is_not_masked(
    database: Path, guarded: None, heard: list[asyncsafe.Violation], run: Any
) -> None:
    connection = sqlite3.connect(database)

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
            raise LookupError("the application's")
        finally:
            connection.close()

    async def main() -> None:
        async for _ in numbers():
            pass

    with pytest.raises(LookupError, match="the application's") as caught:
        run(main())
    assert caught.value.__context__ is None
    assert [v.outcome for v in heard] == ["allowed"]


# 7. Tools that use sqlite3 on the loop ------------------------------------------------------------


@pytest.mark.usefixtures("guarded")
class TestTools:
    def test_coverage(self, tmp_path: Path, heard: list[Any]) -> None:
        coverage = pytest.importorskip("coverage")

        async def main() -> Any:
            data = coverage.CoverageData(basename=str(tmp_path / "coverage"))
            data.add_lines({__file__: [1, 2, 3]})
            data.write()
            data.close()
            again = coverage.CoverageData(basename=str(tmp_path / "coverage"))
            again.read()
            return sorted(again.lines(__file__))

        assert asyncio.run(main()) == [1, 2, 3]
        assert heard == []

    def test_ipython(self, tmp_path: Path) -> None:
        pytest.importorskip("IPython")
        ran = python(IPYTHON, tmp_path, IPYTHONDIR=str(tmp_path / "ipython"))
        assert ran.stdout.splitlines() == ["select()", "0"]


IPYTHON = """
import asyncio, asyncsafe

asyncsafe.install()
from IPython.core.interactiveshell import InteractiveShell

shell = InteractiveShell.instance()
history = shell.history_manager

async def main():
    history.store_inputs(1, "select()")
    history.writeout_cache()
    history.end_session()

asyncio.run(main())
print(*(line for *_, line in history.search("select*")))
print(len(list(asyncsafe.violations)))
"""


# 8. Blocks that were entered before install() ------------------------------------------------------


def test_block_entered_before_install(database: Path) -> None:
    """Its end was bound when it was entered: it is not refused, and does what it always did."""
    connection = sqlite3.connect(database)

    def use() -> None:
        with connection:
            connection.execute("insert into numbers values (1)")
            asyncsafe.install("sqlite3")

    on_loop(use)
    assert not connection.in_transaction
    assert stored(database) == [(1,)]
    refused(partial(connection.execute, "select 1"))
    connection.close()


def test_block_left_after_uninstall(database: Path) -> None:
    connection = sqlite3.connect(database)
    asyncsafe.install("sqlite3")

    def use() -> None:
        with connection:
            with asyncsafe.allow("to get there"):
                connection.execute("insert into numbers values (1)")
            asyncsafe.uninstall()

    on_loop(use)
    assert stored(database) == [(1,)]
    connection.close()


def test_psycopgs_block_entered_before_install(postgres: str) -> None:
    """Its end answers for what it waits for, and was bound when the block was entered."""
    with closing(psycopg.connect(postgres, autocommit=True)) as connection:
        connection.execute("create temporary table numbers (n integer)")

        def use() -> None:
            with connection.transaction():
                connection.execute("insert into numbers values (1)")
                asyncsafe.install("psycopg")

        on_loop(use)
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        assert connection.execute("select count(*) from numbers").fetchone() == (1,)
        refused(partial(connection.execute, "select 1"))
