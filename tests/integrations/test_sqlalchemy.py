"""use_local(scoped_session): each task, thread or request has its own session."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
import sqlalchemy.ext.asyncio
from sqlalchemy import orm, pool, util

import asyncsafe
from asyncsafe.asgi import ConnectionMiddleware

NAME = "asyncsafe-sqlalchemy"


class Base(orm.DeclarativeBase):
    pass


class Number(Base):
    __tablename__ = "sqlalchemy_numbers"
    id = sqlalchemy.Column(sqlalchemy.Integer, primary_key=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sqlalchemy.Engine]:
    """With a pool of which nothing is checked out at the end."""
    if request.param == "sqlite":
        engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path / 'numbers.db'}")
    else:
        dsn = request.getfixturevalue("postgres")
        engine = sqlalchemy.create_engine(dsn.replace("postgresql://", "postgresql+psycopg2://"))
    Base.metadata.create_all(engine)
    yield engine
    assert checked_out(engine) == 0
    Base.metadata.drop_all(engine)
    engine.dispose()


@pytest.fixture
def session(engine: sqlalchemy.Engine) -> Iterator[Any]:
    """A scoped_session that is swapped."""
    session = orm.scoped_session(orm.sessionmaker(engine))
    asyncsafe.use_local(session)
    yield session
    session.remove()


def checked_out(engine: sqlalchemy.Engine) -> int:
    return engine.pool.checkedout()  # type: ignore[attr-defined, no-any-return]


def in_new_task(call: Callable[[], Any]) -> Any:
    async def task() -> Any:
        return call()

    return asyncio.run(task())


def numbers(session: Any) -> list[int]:
    return list(session.scalars(sqlalchemy.select(Number.id).order_by(Number.id)))


class TestOwners:
    def test_each_task_has_a_session(self, session: Any) -> None:
        async def task() -> tuple[Any, Any]:
            return session(), session.registry()

        async def main() -> list[tuple[Any, Any]]:
            return [*await asyncio.gather(task(), task()), await task()]

        told = [*asyncio.run(main()), (session(), session.registry())]
        assert all(one is other for one, other in told)
        assert len({id(one) for one, _ in told}) == 4

    def test_a_child_task_does_not_see_its_parents_work(self, session: Any) -> None:
        async def child() -> list[int]:
            assert not session.registry.has()
            return numbers(session)

        async def parent() -> None:
            session.add(Number(id=1))
            session.flush()
            assert await asyncio.create_task(child()) == []
            assert numbers(session) == [1]
            session.rollback()

        asyncio.run(parent())

    def test_a_worker_thread_goes_on_with_the_tasks_session(self, session: Any) -> None:
        async def task() -> None:
            own = session()
            assert await asyncsafe.database_sync_to_async(session)() is own
            assert await asyncio.to_thread(session) is not own

        asyncio.run(task())

    def test_each_request_has_a_session(self, session: Any, engine: sqlalchemy.Engine) -> None:
        used: list[Any] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            numbers(session)
            used.append(session())
            assert await asyncsafe.database_sync_to_async(session)() is used[-1]
            assert checked_out(engine) == 1

        served = ConnectionMiddleware(app, asyncsafe.use_local(session))

        async def main() -> None:
            for _ in range(2):
                await served({"type": "http", "method": "GET", "path": "/"}, None, None)  # type: ignore[arg-type]
                assert checked_out(engine) == 0

        asyncio.run(main())
        assert used[0] is not used[1]

    def test_queries_of_classes_that_have_the_session(self, session: Any) -> None:
        query = session.query_property()

        async def child() -> int:
            return int(query.__get__(None, Number).count())

        async def task() -> None:
            session.add(Number(id=1))
            session.flush()
            assert query.__get__(None, Number).count() == 1
            assert await asyncio.create_task(child()) == 0
            session.rollback()

        asyncio.run(task())


class TestEnds:
    @pytest.mark.parametrize("end", ["returns", "raises", "is cancelled"])
    def test_of_a_task(self, end: str, session: Any, engine: sqlalchemy.Engine) -> None:
        async def task() -> None:
            session.add(Number(id=1))
            session.flush()
            if end == "raises":
                raise ValueError
            if end == "is cancelled":
                await asyncio.Event().wait()

        async def main() -> None:
            ended = asyncio.create_task(task())
            await asyncio.sleep(0)
            assert ended.done() or checked_out(engine) == 1
            ended.cancel()
            await asyncio.wait([ended])
            assert checked_out(engine) == 0
            assert numbers(session) == []

        asyncio.run(main())

    def test_of_a_thread(
        self, session: Any, engine: sqlalchemy.Engine, caplog: pytest.LogCaptureFixture
    ) -> None:
        def work() -> None:
            session.add(Number(id=1))
            session.flush()
            assert checked_out(engine) == 1

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert checked_out(engine) == 0
        assert caplog.records == []

    def test_objects_are_detached_as_by_remove(self, session: Any) -> None:
        def load() -> Number:
            number = Number(id=1)
            session.add(number)
            session.flush()
            return number

        assert sqlalchemy.inspect(in_new_task(load)).session is None


class TestSwapped:
    def test_swapping_twice_changes_nothing(self, session: Any) -> None:
        first = asyncsafe.use_local(session)
        own = session()
        assert asyncsafe.use_local(session) is first  # though a session is open
        assert session() is own

    def test_close_all_closes_the_callers(self, session: Any, engine: sqlalchemy.Engine) -> None:
        swapped = asyncsafe.use_local(session)
        own = session()
        own.execute(sqlalchemy.text("select 1"))

        async def task() -> None:
            session.execute(sqlalchemy.text("select 1"))
            assert checked_out(engine) == 2
            swapped.close_all()
            assert checked_out(engine) == 1
            assert not session.registry.has()

        asyncio.run(task())
        assert session() is own

    def test_undo(self, session: Any) -> None:
        swapped = asyncsafe.use_local(session)
        swapped.undo()
        assert type(session.registry.registry) is threading.local
        own = session()
        assert in_new_task(session) is own

    def test_after_undo_each_owner_closes_its_own(
        self, session: Any, engine: sqlalchemy.Engine
    ) -> None:
        swapped = asyncsafe.use_local(session)

        def undo_meanwhile() -> tuple[Any, Any]:
            session.execute(sqlalchemy.text("select 1"))
            swapped.undo()
            session.execute(sqlalchemy.text("select 1"))
            assert checked_out(engine) == 2

        in_new_task(undo_meanwhile)
        assert checked_out(engine) == 1
        assert session().in_transaction()

    def test_remove_and_configure(self, session: Any, engine: sqlalchemy.Engine) -> None:
        async def task() -> None:
            own = session()
            session.execute(sqlalchemy.text("select 1"))
            session.remove()
            assert checked_out(engine) == 0
            session.configure(autoflush=False)
            assert session() is not own
            assert not session().autoflush
            session.registry.set(own)
            assert session() is own

        asyncio.run(task())


class TestErrors:
    def test_an_open_session(self, engine: sqlalchemy.Engine) -> None:
        session = orm.scoped_session(orm.sessionmaker(engine))
        session()
        with pytest.raises(
            asyncsafe.ConfigurationError, match=r"session is open.* remove\(\) first"
        ):
            asyncsafe.use_local(session)
        session.remove()
        asyncsafe.use_local(session)

    def test_a_scopefunc(self, engine: sqlalchemy.Engine) -> None:
        session = orm.scoped_session(orm.sessionmaker(engine), scopefunc=lambda: 1)
        with pytest.raises(asyncsafe.ConfigurationError, match=r"scopefunc.*leave it out"):
            asyncsafe.use_local(session)

    @pytest.mark.parametrize("option", ["bind", "binds"])
    def test_a_singleton_thread_pool(self, option: str) -> None:
        engine = sqlalchemy.create_engine("sqlite://")
        assert isinstance(engine.pool, pool.SingletonThreadPool)
        options: dict[str, Any] = {option: engine if option == "bind" else {Number: engine}}
        session = orm.scoped_session(orm.sessionmaker(**options))
        with pytest.raises(asyncsafe.ConfigurationError, match=r"SingletonThreadPool.*QueuePool"):
            asyncsafe.use_local(session)

    def test_what_is_no_scoped_session(self, engine: sqlalchemy.Engine) -> None:
        things = [engine, orm.sessionmaker(engine), orm.Session(engine), sqlalchemy, engine.pool]
        asynchronous: Any = sqlalchemy.ext.asyncio.async_scoped_session(
            sqlalchemy.ext.asyncio.async_sessionmaker(), scopefunc=asyncio.current_task
        )
        for thing in [*things, asynchronous]:
            with pytest.raises(
                asyncsafe.ConfigurationError, match=r"scoped_session, not an? .*ConnectionHandler"
            ):
                asyncsafe.use_local(thing)


class TestKinds:
    def test_a_factory_that_is_a_function(self, engine: sqlalchemy.Engine) -> None:
        session: Any = orm.scoped_session(lambda: orm.Session(engine))
        asyncsafe.use_local(session)
        own = session()
        assert in_new_task(session) is not own

    def test_without_an_engine_yet(self, engine: sqlalchemy.Engine) -> None:
        session = orm.scoped_session(orm.sessionmaker())
        asyncsafe.use_local(session)
        session.configure(bind=engine)
        assert in_new_task(lambda: numbers(session)) == []

    def test_an_engine_that_is_made_for_one_session(self) -> None:
        """An application's tests, say: one connection, and one task."""
        engine = sqlalchemy.create_engine("sqlite://", poolclass=pool.StaticPool)
        session = orm.scoped_session(orm.sessionmaker(engine))
        asyncsafe.use_local(session)
        Base.metadata.create_all(engine)
        assert in_new_task(lambda: numbers(session)) == []
        engine.dispose()


def test_what_we_know_of_sqlalchemy() -> None:
    """The attribute that use_local depends on, which isn't documented."""
    session = orm.scoped_session(orm.sessionmaker())
    assert type(session.registry) is util.ThreadLocalRegistry
    assert type(session.registry.registry) is threading.local
    own = session()
    assert vars(session.registry.registry) == {"value": own}
    session.remove()
    assert vars(session.registry.registry) == {}
    assert orm.sessionmaker(bind=None).kw["bind"] is None
