"""use_local("pony"): each task, thread or request has its own sessions and connections.

Each test is a process of its own, as pony.orm can be imported but once.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from ..running import python

#: A sqlite database with a table, where `use_local` was called first.
SWAPPED = """
import asyncio, gc, logging, sqlite3, sys, threading
import asyncsafe

swapped = asyncsafe.use_local("pony")

from pony import orm
from pony.orm import core, dbapiprovider

database = orm.Database()

class Number(database.Entity):
    id = orm.PrimaryKey(int)

database.bind(provider="sqlite", filename={path!r}, create_db=True, {options})
database.generate_mapping(create_tables=True)
orm.commit()

def numbers():
    with orm.db_session:
        return sorted(orm.select(n.id for n in Number))

def connection():
    return database.provider.pool.con

def is_closed(connection):
    try:
        connection.total_changes
    except sqlite3.ProgrammingError as error:
        assert "closed" in str(error), error
        return True
    return False

def run(function):
    async def task():
        return function()
    return asyncio.run(task())

def refused(function):
    try:
        function()
    except asyncsafe.ConfigurationError as error:
        return str(error)
    raise AssertionError("nothing was raised")

logging.basicConfig(level="WARNING")
"""


def pony(path: Path, code: str, options: str = "") -> None:
    """Run this where pony is swapped. Nothing may be logged."""
    head = SWAPPED.format(path=str(path / "numbers.db"), options=options)
    assert python(head + textwrap.dedent(code), path).stderr == ""


class TestOwners:
    def test_each_task_has_sessions_and_a_connection(self, tmp_path: Path) -> None:
        pony(
            tmp_path,
            """
            async def task(barrier):
                with orm.db_session:
                    assert numbers() == []
                    cache, own = core.local.db2cache[database], connection()
                    await barrier.wait()
                    assert core.local.db2cache == {database: cache} and connection() is own
                    assert core.local.db_context_counter == 1
                    await barrier.wait()
                    return cache, own

            async def main():
                barrier = asyncio.Barrier(3)
                told = await asyncio.gather(*(task(barrier) for _ in range(3)))
                assert len({id(cache) for cache, _ in told}) == 3
                assert len({id(own) for _, own in told}) == 3

            asyncio.run(main())
            """,
        )

    def test_a_child_task_is_not_in_its_parents_session(self, tmp_path: Path) -> None:
        pony(
            tmp_path,
            """
            async def child():
                assert core.local.db_session is None and core.local.db2cache == {}
                return numbers()

            async def parent():
                with orm.db_session:
                    Number(id=1)
                    orm.flush()
                    assert numbers() == [1]
                    assert await asyncio.create_task(child()) == []

            asyncio.run(parent())
            assert numbers() == [1]
            """,
        )

    def test_decorated_functions(self, tmp_path: Path) -> None:
        """Which commit at their end what they did, and nothing else."""
        pony(
            tmp_path,
            """
            @orm.db_session
            def insert(number):
                Number(id=number)

            @orm.db_session
            def fail(number):
                Number(id=number)
                orm.flush()
                raise ValueError

            async def task(number, act):
                try:
                    act(number)
                except ValueError:
                    pass

            async def main():
                await asyncio.gather(task(1, insert), task(2, fail), task(3, insert))

            asyncio.run(main())
            assert numbers() == [1, 3]
            """,
        )

    def test_a_worker_thread_goes_on_with_the_tasks(self, tmp_path: Path) -> None:
        pony(
            tmp_path,
            """
            async def task():
                in_thread = asyncsafe.database_sync_to_async
                await in_thread(numbers)()
                own = await in_thread(connection)()
                assert own is connection() is not None
                assert await asyncio.to_thread(connection) is None

            asyncio.run(task())
            """,
        )

    def test_each_request_has_its_own(self, tmp_path: Path) -> None:
        pony(
            tmp_path,
            """
            from asyncsafe.asgi import ConnectionMiddleware
            used = []

            async def app(scope, receive, send):
                assert connection() is None
                await asyncsafe.database_sync_to_async(numbers)()
                used.append(connection())

            served = ConnectionMiddleware(app, swapped)

            async def main():
                for _ in range(2):
                    await served({"type": "http", "method": "GET", "path": "/"}, None, None)

            asyncio.run(main())
            assert used[0] is not used[1]
            assert is_closed(used[0]) and is_closed(used[1])
            """,
            "check_same_thread=False",
        )


class TestEnds:
    @pytest.mark.parametrize("end", ["return", "raise ValueError", "await asyncio.Event().wait()"])
    def test_of_a_task(self, end: str, tmp_path: Path) -> None:
        """Whatever the task left open: its session isn't left, as in a generator nobody closes."""
        pony(
            tmp_path,
            f"""
            connections = []

            async def task():
                orm.db_session.__enter__()
                Number(id=1)
                orm.flush()
                connections.append(connection())
                {end}

            async def main():
                ended = asyncio.create_task(task())
                await asyncio.sleep(0)
                ended.cancel()
                await asyncio.wait([ended])
                ended.exception() if not ended.cancelled() else None
                assert core.local.db_session is None

            asyncio.run(main())
            assert is_closed(connections[0])
            assert numbers() == []
            """,
        )

    def test_of_a_thread(self, tmp_path: Path) -> None:
        pony(
            tmp_path,
            """
            connections = []

            def work():
                orm.db_session.__enter__()
                Number(id=1)
                orm.flush()
                connections.append(connection())

            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
            # In another thread sqlite3 refuses to tell anything of one that is open.
            assert is_closed(connections[0])
            assert numbers() == []
            """,
        )

    def test_close_all_closes_the_callers(self, tmp_path: Path) -> None:
        pony(
            tmp_path,
            """
            async def task():
                numbers()
                own = connection()
                swapped.close_all()
                assert is_closed(own)
                assert connection() is None
                assert numbers() == []
                swapped.close_all()
                swapped.close_all()

            numbers()
            mine = connection()
            asyncio.run(task())
            assert connection() is mine and not is_closed(mine)
            """,
        )

    def test_a_database_that_is_gone_takes_its_state_along(self, tmp_path: Path) -> None:
        pony(
            tmp_path,
            """
            import weakref

            async def task():
                other = orm.Database("sqlite", ":memory:")
                with orm.db_session:
                    other.execute("select 1")
                pool = weakref.ref(other.provider.pool)
                other.disconnect()
                return pool

            pool = asyncio.run(task())
            gc.collect()
            assert pool() is None
            """,
        )


class TestForms:
    @pytest.mark.parametrize(
        "before",
        [
            "swapped = asyncsafe.use_local('pony')",
            "import pony; swapped = asyncsafe.use_local(pony)",
            "import pony.utils; swapped = asyncsafe.use_local('pony')",
            "import pony.utils.utils as u; swapped = asyncsafe.use_local(u)",
        ],
    )
    def test_whatever_is_imported_of_it(self, before: str, tmp_path: Path) -> None:
        """Each class whose base was threading.local has another: here, and in what it is asked."""
        python(
            textwrap.dedent(
                f"""
                import asyncio, asyncsafe
                {before}
                assert asyncsafe.use_local("pony") is swapped
                from pony.orm import core, dbapiprovider, sqltranslation
                from pony.orm.dbproviders import postgres, sqlite

                assert asyncsafe.use_local("pony") is swapped
                locals = [core.local, sqltranslation.local, sqlite.local_exceptions]
                pool = postgres.PGPool(None)
                assert isinstance(pool, dbapiprovider.Pool)
                assert isinstance(core.Database()._dblocal, core.DbLocal)
                for local in [*locals, pool]:
                    local.mark = 1

                async def task():
                    return [hasattr(local, "mark") for local in [*locals, pool]]

                assert asyncio.run(task()) == [False] * 4
                """
            ),
            tmp_path,
        )

    def test_the_middleware_takes_it(self, tmp_path: Path) -> None:
        python(
            "import asyncsafe\n"
            "from asyncsafe.asgi import ConnectionMiddleware\n"
            "ConnectionMiddleware(print, asyncsafe.use_local('pony'))",
            tmp_path,
        )

    def test_undo_before_pony_is_imported(self, tmp_path: Path) -> None:
        python(
            textwrap.dedent(
                """
                import sys, threading, asyncsafe, pony.utils
                swapped = asyncsafe.use_local("pony")
                assert pony.utils.localbase is not threading.local
                swapped.undo()
                assert pony.utils.localbase is threading.local
                from pony.orm import core
                assert isinstance(core.local, threading.local)
                """
            ),
            tmp_path,
        )

    def test_undo_is_refused_later(self, tmp_path: Path) -> None:
        pony(
            tmp_path,
            """
            assert "can't be changed" in refused(swapped.undo)
            assert asyncsafe.use_local("pony") is swapped
            """,
        )


class TestErrors:
    @pytest.mark.parametrize("thing", ["'pony'", "pony", "orm", "database"])
    def test_it_is_imported_already(self, thing: str, tmp_path: Path) -> None:
        python(
            textwrap.dedent(
                f"""
                import asyncsafe, pony
                from pony import orm
                database = orm.Database()
                try:
                    asyncsafe.use_local({thing})
                except asyncsafe.ConfigurationError as error:
                    assert 'call asyncsafe.use_local("pony") before' in str(error), error
                else:
                    raise AssertionError
                """
            ),
            tmp_path,
        )

    def test_a_version_without_localbase(self, tmp_path: Path) -> None:
        python(
            textwrap.dedent(
                """
                import asyncsafe, pony.utils
                del pony.utils.localbase
                for _ in range(2):
                    try:
                        asyncsafe.use_local("pony")
                    except asyncsafe.ConfigurationError as error:
                        assert "has no pony.utils.localbase" in str(error), error
                    else:
                        raise AssertionError
                """
            ),
            tmp_path,
        )


def test_what_we_know_of_pony(tmp_path: Path) -> None:
    """Where each of its thread-local classes has its base from, and that there are no others."""
    python(
        textwrap.dedent(
            """
            import pony, pony.utils, re, threading
            from pathlib import Path
            assert pony.utils.localbase is threading.local
            classes, others = [], []
            for path in Path(pony.__file__).parent.rglob("*.py"):
                text = path.read_text("utf-8", "replace")
                classes += re.findall(r"class (\\w+)\\(localbase\\)", text)
                if re.search(r"threading\\.local|from threading import .*local", text):
                    others.append(path.name)
            from pony.orm import dbapiprovider
            assert sorted(classes) == ["DbLocal", "Local", "Local", "LocalExceptions", "Pool"], classes
            assert others == ["utils.py"], others
            assert {"con", "pid"} <= vars(dbapiprovider.Pool(None)).keys()
            assert callable(dbapiprovider.Pool.disconnect)
            """
        ),
        tmp_path,
    )
