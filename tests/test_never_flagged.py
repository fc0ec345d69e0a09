"""What doesn't block the loop is never flagged, and what is called in a thread isn't either.

Each with the real library, on asyncio's loop and uvloop's, with everything guarded in mode "raise".
So that these tests can fail: the synchronous twin of each is refused, on the loop.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import select
import sqlite3
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import asgiref.sync
import fastapi
import pytest
import sqlalchemy as sa
import uvloop
from sqlalchemy import orm

import asyncsafe
from asyncsafe.installation import LIBRARIES

LOOPS: dict[str, Callable[[Any], Any]] = {"asyncio": asyncio.run, "uvloop": uvloop.run}

#: Of warnings that these libraries cause in each other.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


class Servers:
    """Where the databases are."""

    def __init__(self, dsn: str, mysql: dict[str, Any], directory: Path) -> None:
        from psycopg.conninfo import conninfo_to_dict

        self.dsn = dsn
        found: dict[str, Any] = dict(conninfo_to_dict(dsn))
        self.postgres: dict[str, Any] = {
            "host": found["host"],
            "port": int(found.get("port") or 5432),
            "user": found["user"],
            "password": found.get("password") or "",
            "database": found["dbname"],
        }
        self.mysql = mysql
        self.file = str(directory / "notes.db")

    def url(self, driver: str) -> str:
        """SQLAlchemy's, for a driver of PostgreSQL's, of MySQL's or of sqlite's."""
        from sqlalchemy import URL

        if "sqlite" in driver:
            return f"{driver}:///{self.file}"
        settings = dict(self.mysql if "mysql" in driver else self.postgres)
        host, query = settings["host"], {}
        if host.startswith("/"):
            host, query = None, {"host": host}
        url = URL.create(
            driver,
            settings["user"],
            settings["password"] or None,
            host,
            settings["port"],
            settings["database"],
            query=query,
        )
        return url.render_as_string(hide_password=False)

    @property
    def odbc(self) -> str:
        at = self.postgres
        return (
            f"Driver={{PostgreSQL Unicode}};Servername={at['host']};Port={at['port']};"
            f"Database={at['database']};Uid={at['user']};Pwd={at['password']}"
        )


@pytest.fixture
def servers(postgres: str, mysql: dict[str, Any], tmp_path: Path) -> Servers:
    return Servers(postgres, mysql, tmp_path)


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Iterator[Callable[[Any], Any]]:
    """Runs a coroutine; nothing may be flagged by the time that it has ended."""
    gc.collect()  # an earlier test's connections, which would be given back on the loop
    asyncsafe.install()
    asyncsafe.configure(mode="raise")
    yield LOOPS[request.param]
    assert [site.violation.message() for site in asyncsafe.violations] == []


# Asynchronous drivers ----------------------------------------------------------------------------

DROP = "drop table if exists notes"
CREATE = "create table notes (id integer primary key, body varchar(20))"
INSERT = "insert into notes values (1, 'one'), (2, 'two')"
SELECT = "select body from notes order by id"


async def with_asyncpg(at: Servers) -> None:
    import asyncpg

    async with asyncpg.create_pool(**at.postgres, min_size=1, max_size=2) as pool:
        async with pool.acquire() as connection:
            await connection.execute(DROP)
            await connection.execute(CREATE)
            async with connection.transaction():
                await connection.copy_records_to_table("notes", records=[(1, "one"), (2, "two")])
            async with connection.transaction():
                rows = [row["body"] async for row in connection.cursor(SELECT)]
        assert rows == ["one", "two"] == [row["body"] for row in await pool.fetch(SELECT)]


async def with_aiosqlite(at: Servers) -> None:
    import aiosqlite

    # sqlite3 itself refuses `isolation_level = None` in another thread than the connection's.
    async with aiosqlite.connect(at.file, check_same_thread=False) as connection:
        await connection.execute(CREATE)
        await connection.executemany("insert into notes values (?, ?)", [(1, "one"), (2, "two")])
        assert connection.in_transaction
        await connection.commit()
        async with connection.execute(SELECT) as cursor:
            assert [row async for row in cursor] == [("one",), ("two",)]
        await connection.create_function("twice", 1, lambda x: 2 * x)
        assert await (await connection.execute("select twice(2)")).fetchone() == (4,)
        await connection.execute("delete from notes")
        await connection.interrupt()
        connection.isolation_level = "IMMEDIATE"
        await connection.rollback()
        connection.isolation_level = None
        assert len([line async for line in connection.iterdump()]) > 2
        async with aiosqlite.connect(":memory:") as other:
            await connection.backup(other)
            assert len(await other.execute_fetchall(SELECT)) == 2
        assert connection.total_changes >= 2


async def with_aiopg(at: Servers) -> None:
    import aiopg

    async with aiopg.create_pool(at.dsn) as pool:
        async with pool.acquire() as connection, connection.cursor() as cursor:
            await cursor.execute(DROP)
            await cursor.execute(CREATE)
            async with cursor.begin():
                await cursor.execute(INSERT)
            await cursor.execute(SELECT)
            assert [row async for row in cursor] == [("one",), ("two",)]
        async with pool.acquire() as connection, connection.cursor() as cursor:
            await cursor.callproc("abs", [-1])
            assert await cursor.fetchone() == (1,)


async def with_aiomysql(at: Servers) -> None:
    import aiomysql

    settings = {**at.mysql, "db": at.mysql["database"]}
    del settings["database"]
    async with aiomysql.create_pool(**settings, minsize=1, maxsize=2) as pool:
        await use_mysql(pool, aiomysql.SSCursor)


async def with_asyncmy(at: Servers) -> None:
    import asyncmy
    import asyncmy.cursors

    async with asyncmy.create_pool(**at.mysql, minsize=1, maxsize=2) as pool:
        await use_mysql(pool, asyncmy.cursors.SSCursor)


async def use_mysql(pool: Any, unbuffered: Any) -> None:
    async with pool.acquire() as connection:
        async with connection.cursor() as cursor:
            await cursor.execute(DROP)
            await cursor.execute(CREATE)
            await connection.begin()
            await cursor.execute(INSERT)
            await connection.commit()
        async with connection.cursor(unbuffered) as cursor:
            await cursor.execute(SELECT)
            assert await cursor.fetchone() == ("one",)
        await connection.rollback()
        await connection.ping()


async def with_psycopg(at: Servers) -> None:
    import psycopg
    import psycopg_pool
    from psycopg.types import TypeInfo

    async with await psycopg.AsyncConnection.connect(at.dsn) as connection:
        await connection.execute(DROP)
        await connection.execute(CREATE)
        async with (
            connection.cursor() as cursor,
            cursor.copy("copy notes from stdin") as copy,
        ):
            await copy.write_row((1, "one"))
            await copy.write_row((2, "two"))
        async with connection.transaction(), connection.pipeline():
            await connection.execute("select 1")
            await connection.execute("select 2")
        async with connection.cursor("server_side") as cursor:
            await cursor.execute(SELECT)
            assert [row async for row in cursor] == [("one",), ("two",)]
        assert await TypeInfo.fetch(connection, "text")
        await connection.commit()
        await connection.set_autocommit(True)
        await connection.execute("listen a; notify a")
        async for _ in connection.notifies(timeout=5, stop_after=1):
            pass
        await connection.cancel_safe()
    async with (
        psycopg_pool.AsyncConnectionPool(at.dsn, min_size=1, open=False) as pool,
        pool.connection() as connection,
    ):
        assert len(await (await connection.execute(SELECT)).fetchall()) == 2


async def with_mysql_connector(at: Servers) -> None:
    import mysql.connector.aio

    # Without ssl_disabled, mysql.connector.aio 26.10 fails in its own TLS code.
    connection = await mysql.connector.aio.connect(**at.mysql, ssl_disabled=True)
    async with await connection.cursor() as cursor:
        await cursor.execute(DROP)
        await cursor.execute(CREATE)
        await cursor.execute(INSERT)
        await connection.commit()
        await cursor.execute(SELECT)
        assert await cursor.fetchall() == [("one",), ("two",)]
    await connection.rollback()
    await connection.close()


async def with_oracledb(at: Servers) -> None:
    """There is no server: as far as it gets."""
    import oracledb

    with pytest.raises(oracledb.Error):
        await oracledb.connect_async(user="u", password="p", dsn="127.0.0.1:1/none")
    pool = oracledb.create_pool_async(user="u", password="p", dsn="127.0.0.1:1/none", min=0)
    with pytest.raises(oracledb.Error):
        async with pool.acquire():
            pass
    await pool.close(force=True)


async def with_aioodbc(at: Servers) -> None:
    import aioodbc

    async with aioodbc.create_pool(dsn=at.odbc, minsize=1, maxsize=2) as pool:
        async with pool.acquire() as connection, connection.cursor() as cursor:
            await cursor.execute(DROP)
            await cursor.execute(CREATE)
            await cursor.execute(INSERT)
            await connection.commit()
            await cursor.execute(SELECT)
            assert [row[0] for row in await cursor.fetchall()] == ["one", "two"]
            await connection.rollback()


async def with_psycopg2_async(at: Servers) -> None:
    """`async_=1`: who calls it waits for the socket, by the loop."""
    import psycopg2
    from psycopg2.extensions import POLL_OK, POLL_READ

    loop = asyncio.get_running_loop()

    async def wait(connection: Any) -> None:
        while (state := connection.poll()) != POLL_OK:
            ready, descriptor = asyncio.Event(), connection.fileno()
            add, remove = loop.add_writer, loop.remove_writer
            if state == POLL_READ:
                add, remove = loop.add_reader, loop.remove_reader
            add(descriptor, ready.set)
            await ready.wait()
            remove(descriptor)

    connection = psycopg2.connect(at.dsn, async_=1)
    await wait(connection)
    cursor = connection.cursor()
    cursor.execute("select 1")
    await wait(connection)
    assert cursor.fetchone() == (1,)
    connection.close()


async def with_psycopg2_green(at: Servers) -> None:
    """Under a wait callback, as psycogreen's."""
    import psycopg2
    from psycopg2.extensions import POLL_OK, set_wait_callback

    def wait(connection: Any) -> None:
        while connection.poll() != POLL_OK:
            select.select([connection.fileno()], [connection.fileno()], [], 5)

    set_wait_callback(wait)
    try:
        with psycopg2.connect(at.dsn) as connection, connection.cursor() as cursor:
            cursor.execute("select 1")
            assert cursor.fetchone() == (1,)
        connection.close()
    finally:
        set_wait_callback(None)


# ORMs and the like -------------------------------------------------------------------------------


async def with_sqlalchemy(at: Servers, driver: str) -> None:
    from sqlalchemy.ext import asyncio as sa_asyncio

    class Base(sa_asyncio.AsyncAttrs, orm.DeclarativeBase):
        pass

    class Author(Base):
        __tablename__ = "authors"
        id = sa.Column(sa.Integer, primary_key=True)
        notes = orm.relationship("Note")

    class Note(Base):
        __tablename__ = "notes"
        id = sa.Column(sa.Integer, primary_key=True)
        author_id = sa.Column(sa.ForeignKey("authors.id"))

    engine = sa_asyncio.create_async_engine(at.url(driver), pool_pre_ping=True)
    async with engine.begin() as connection:
        await connection.execute(sa.text("drop table if exists notes"))
        await connection.run_sync(Base.metadata.drop_all)
        await connection.run_sync(Base.metadata.create_all)
        assert "notes" in await connection.run_sync(lambda c: sa.inspect(c).get_table_names())
    async with sa_asyncio.AsyncSession(engine) as session:
        session.add(Author(id=1, notes=[Note(id=1), Note(id=2)]))
        await session.commit()
        (author,) = await session.scalars(sa.select(Author))
        assert len(await author.awaitable_attrs.notes) == 2
        async with session.begin_nested():
            await session.refresh(author)
        await session.rollback()
        await session.run_sync(lambda s: s.execute(sa.select(Note)).all())
    async with engine.connect() as connection:
        stream = await connection.stream(sa.select(Note.id))
        assert [row async for row in stream] == [(1,), (2,)]
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)
    await engine.dispose()


async def with_sqlmodel(at: Servers) -> None:
    import sqlmodel
    from sqlalchemy.ext.asyncio import create_async_engine
    from sqlmodel.ext.asyncio.session import AsyncSession

    note = _sqlmodel_table()
    engine = create_async_engine(at.url("sqlite+aiosqlite"))
    async with engine.begin() as connection:
        await connection.run_sync(sqlmodel.SQLModel.metadata.create_all)
    async with AsyncSession(engine) as session:
        session.add(note(id=1, body="one"))
        await session.commit()
        assert (await session.exec(sqlmodel.select(note))).one().body == "one"
    await engine.dispose()


@functools.cache
def _sqlmodel_table() -> Any:
    """A table is defined once in a process."""
    import sqlmodel

    namespace = {
        "__module__": __name__,
        "__annotations__": {"id": int | None, "body": str},
        "id": sqlmodel.Field(default=None, primary_key=True),
    }
    return type(sqlmodel.SQLModel)("Note", (sqlmodel.SQLModel,), namespace, table=True)


async def with_tortoise(at: Servers, engine: str) -> None:
    import tortoise
    from tortoise.transactions import in_transaction

    if engine == "sqlite":
        credentials: dict[str, Any] = {"file_path": at.file}
    else:
        credentials = dict(at.mysql if engine == "mysql" else at.postgres)
    models = _tortoise_models()
    # Named after the engine: Tortoise caches its SQL by the connection's name.
    config = {
        "connections": {
            engine: {"engine": f"tortoise.backends.{engine}", "credentials": credentials}
        },
        "apps": {"models": {"models": [models.__name__], "default_connection": engine}},
    }
    await tortoise.Tortoise.init(config=config)
    connection = tortoise.connections.get(engine)
    await connection.execute_script("drop table if exists tortoise_note")
    await tortoise.Tortoise.generate_schemas()
    note = models.Note
    async with in_transaction():
        await note.create(id=1, body="one")
    assert await note.all().values_list("body", flat=True) == ["one"]
    assert await note.filter(body="one").exists()
    async for each in note.all():
        await each.delete()
    await tortoise.Tortoise.close_connections()


@functools.cache
def _tortoise_models() -> Any:
    from types import ModuleType

    import tortoise

    module = ModuleType("tortoise_notes")
    sys.modules[module.__name__] = module

    class Note(tortoise.Model):
        id = tortoise.fields.IntField(primary_key=True)
        body = tortoise.fields.CharField(max_length=20)

        class Meta:
            table = "tortoise_note"

    Note.__module__ = module.__name__
    module.Note = Note  # type: ignore[attr-defined]
    return module


async def with_databases(at: Servers, driver: str) -> None:
    import databases

    async with databases.Database(at.url(driver)) as database:
        await database.execute(DROP)
        await database.execute(CREATE)
        async with database.transaction():
            await database.execute(
                "insert into notes values (:id, :body)", {"id": 1, "body": "one"}
            )
        assert [row[0] for row in await database.fetch_all(SELECT)] == ["one"]
        assert [row[0] async for row in database.iterate(SELECT)] == ["one"]


async def with_pwasyncio(at: Servers, kind: str) -> None:
    import peewee
    from playhouse import pwasyncio

    database: Any
    if kind == "sqlite":
        database = pwasyncio.AsyncSqliteDatabase(at.file)
    elif kind == "postgres":
        settings = dict(at.postgres)
        database = pwasyncio.AsyncPostgresqlDatabase(settings.pop("database"), **settings)
    else:
        settings = dict(at.mysql)
        database = pwasyncio.AsyncMySQLDatabase(settings.pop("database"), **settings)

    class Note(pwasyncio.AsyncModel):
        id = peewee.IntegerField(primary_key=True)
        body = peewee.CharField()

    class Remark(pwasyncio.AsyncModel):
        note = peewee.ForeignKeyField(Note)

    for model in (Note, Remark):
        model._meta.set_database(database)
    await database.aexecute_sql("drop table if exists remark")
    await database.aexecute_sql("drop table if exists note")
    await database.acreate_tables([Note, Remark])
    async with database.atomic():
        await Note.acreate(id=1, body="one")
        async with database.atomic():
            await Remark.acreate(note=1)
    assert [note.body for note in await database.list(Note.select())] == ["one"]
    async with database.atomic() as transaction:
        await Note.update(body="two").aexecute()
        await transaction.arollback()

    def synchronous() -> list[str]:
        with database.atomic():
            Remark.create(note=Note.get())
        assert len(Remark.select()) == 2
        return [remark.note.body for remark in Remark.select()]

    assert await database.run(synchronous) == ["one", "one"]
    assert [note.id async for note in database.iterate(Note.select())] == [1]
    await database.adrop_tables([Remark, Note])
    await database.aclose()
    await database.close_pool()


ASYNCHRONOUS: dict[str, Callable[[Servers], Awaitable[None]]] = {
    "asyncpg": with_asyncpg,
    "aiosqlite": with_aiosqlite,
    "aiopg": with_aiopg,
    "aiomysql": with_aiomysql,
    "asyncmy": with_asyncmy,
    "psycopg": with_psycopg,
    "mysql.connector.aio": with_mysql_connector,
    "oracledb": with_oracledb,
    "aioodbc": with_aioodbc,
    "psycopg2, async_=1": with_psycopg2_async,
    "psycopg2, green": with_psycopg2_green,
    **{
        f"SQLAlchemy, {driver}": functools.partial(with_sqlalchemy, driver=driver)
        for driver in (
            "sqlite+aiosqlite",
            "postgresql+asyncpg",
            "postgresql+psycopg",
            "mysql+aiomysql",
            "mysql+asyncmy",
        )
    },
    "SQLModel": with_sqlmodel,
    **{
        f"Tortoise, {engine}": functools.partial(with_tortoise, engine=engine)
        for engine in ("sqlite", "asyncpg", "psycopg", "mysql")
    },
    **{
        f"databases, {driver}": functools.partial(with_databases, driver=driver)
        for driver in ("sqlite", "postgresql", "postgresql+aiopg", "mysql", "mysql+asyncmy")
    },
    **{
        f"pwasyncio, {kind}": functools.partial(with_pwasyncio, kind=kind)
        for kind in ("sqlite", "postgres", "mysql")
    },
}


@pytest.mark.parametrize("name", ASYNCHRONOUS)
def test_asynchronous(name: str, run: Callable[[Any], Any], servers: Servers) -> None:
    async def main() -> None:
        await asyncio.wait_for(ASYNCHRONOUS[name](servers), 60)  # type: ignore[arg-type]

    run(main())


# Synchronous drivers, in threads -----------------------------------------------------------------


def dbapi(connect: Callable[[Servers], Any]) -> Callable[[Servers], None]:
    """Whatever a program does with a connection of DB-API."""

    def work(at: Servers) -> None:
        connection = connect(at)
        cursor = connection.cursor()
        cursor.execute(DROP)
        cursor.execute(CREATE)
        cursor.execute(INSERT)
        if hasattr(connection, "commit"):
            connection.commit()
        cursor.execute(SELECT)
        assert [row[0] for row in cursor.fetchall()] == ["one", "two"]
        if hasattr(connection, "rollback"):
            with suppress(Exception):  # duckdb: no transaction is active
                connection.rollback()
        cursor.close()
        connection.close()

    return work


def connect_pymysql(at: Servers) -> Any:
    import pymysql

    return pymysql.connect(**at.mysql)


def connect_mysqlclient(at: Servers) -> Any:
    mysqlclient = pytest.importorskip("MySQLdb")  # built from source, where there is a compiler
    return mysqlclient.connect(**at.mysql)


def connect_mysql_connector(at: Servers) -> Any:
    import mysql.connector

    return mysql.connector.connect(**at.mysql)


def connect_psycopg2(at: Servers) -> Any:
    import psycopg2

    return psycopg2.connect(at.dsn)


def connect_psycopg(at: Servers) -> Any:
    import psycopg

    return psycopg.connect(at.dsn)


def connect_pg8000(at: Servers) -> Any:
    import pg8000

    settings = dict(at.postgres)
    if settings["host"].startswith("/"):
        host, port = settings.pop("host"), settings.pop("port")
        settings["unix_sock"] = f"{host}/.s.PGSQL.{port}"
    settings["password"] = settings["password"] or None
    return pg8000.connect(**settings)


def connect_pyodbc(at: Servers) -> Any:
    import pyodbc

    return pyodbc.connect(at.odbc)


def connect_duckdb(at: Servers) -> Any:
    import duckdb

    return duckdb.connect(f"{at.file}.duckdb")


def connect_apsw(at: Servers) -> Any:
    import apsw

    return apsw.Connection(at.file)


def work_with_oracledb(at: Servers) -> None:
    import oracledb

    with pytest.raises(oracledb.Error):
        oracledb.connect(user="u", password="p", dsn="127.0.0.1:1/none")


def work_with_sqlalchemy(at: Servers, driver: str) -> None:
    class Base(orm.DeclarativeBase):
        pass

    class Note(Base):
        __tablename__ = "notes"
        id = sa.Column(sa.Integer, primary_key=True)

    engine = sa.create_engine(at.url(driver), pool_pre_ping=True)
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    with orm.Session(engine) as session:
        session.add(Note(id=1))
        session.commit()
        assert session.scalars(sa.select(Note)).one().id == 1
        session.rollback()
    Base.metadata.drop_all(engine)
    engine.dispose()


def work_with_peewee(at: Servers) -> None:
    import peewee

    database = peewee.SqliteDatabase(at.file)
    note = type("Note", (database.Model,), {"body": peewee.CharField()})
    with database.connection_context(), database.atomic():
        database.create_tables([note])
        note.create(body="one")
        assert [each.body for each in note.select()] == ["one"]


def work_with_pony(at: Servers) -> None:
    from pony import orm as pony

    database = pony.Database("sqlite", at.file, create_db=True)
    note = type("Note", (database.Entity,), {"body": pony.Required(str)})
    database.generate_mapping(create_tables=True)
    with pony.db_session:
        note(body="one")
        assert list(pony.select(n.body for n in note)) == ["one"]
    database.disconnect()


#: By name: the library whose guard refuses it on the loop, and the work.
SYNCHRONOUS: dict[str, tuple[str, Callable[[Servers], None]]] = {
    "sqlite3": ("sqlite3", dbapi(lambda at: sqlite3.connect(at.file))),
    "psycopg2": ("psycopg2", dbapi(connect_psycopg2)),
    "psycopg": ("psycopg", dbapi(connect_psycopg)),
    "pg8000": ("pg8000", dbapi(connect_pg8000)),
    "PyMySQL": ("pymysql", dbapi(connect_pymysql)),
    "mysqlclient": ("mysqlclient", dbapi(connect_mysqlclient)),
    "mysql.connector": ("mysql.connector", dbapi(connect_mysql_connector)),
    "pyodbc": ("pyodbc", dbapi(connect_pyodbc)),
    "duckdb": ("duckdb", dbapi(connect_duckdb)),
    "apsw": ("apsw", dbapi(connect_apsw)),
    "oracledb": ("oracledb", work_with_oracledb),
    "SQLAlchemy, sqlite": ("sqlite3", functools.partial(work_with_sqlalchemy, driver="sqlite")),
    "SQLAlchemy, psycopg2": (
        "psycopg2",
        functools.partial(work_with_sqlalchemy, driver="postgresql+psycopg2"),
    ),
    "peewee": ("peewee", work_with_peewee),
    "pony": ("pony", work_with_pony),
}


async def to_thread(work: Callable[[], None]) -> None:
    await asyncio.to_thread(work)


async def run_in_executor(work: Callable[[], None]) -> None:
    await asyncio.get_running_loop().run_in_executor(None, work)


async def sync_to_async(work: Callable[[], None]) -> None:
    await asgiref.sync.sync_to_async(work)()


async def in_any_thread(work: Callable[[], None]) -> None:
    await asgiref.sync.sync_to_async(work, thread_sensitive=False)()


async def database_sync_to_async(work: Callable[[], None]) -> None:
    await asyncsafe.database_sync_to_async(work)()


async def anyio_to_thread(work: Callable[[], None]) -> None:
    await anyio.to_thread.run_sync(work)


WAYS = [
    to_thread,
    run_in_executor,
    sync_to_async,
    in_any_thread,
    database_sync_to_async,
    anyio_to_thread,
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", SYNCHRONOUS)
def test_synchronous_in_a_thread(
    name: str, way: Callable[..., Any], run: Callable[[Any], Any], servers: Servers
) -> None:
    work = functools.partial(SYNCHRONOUS[name][1], servers)
    run(way(work))


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    "name", [name for name, (library, _) in SYNCHRONOUS.items() if library in LIBRARIES]
)
def test_the_same_on_the_loop_is_refused(name: str, loop: str, servers: Servers) -> None:
    """Or the tests above would show nothing."""
    work = functools.partial(SYNCHRONOUS[name][1], servers)
    asyncsafe.install()

    async def main() -> None:
        work()

    with pytest.raises(asyncsafe.SynchronousOnlyOperation):
        LOOPS[loop](main())
    assert asyncsafe.violations


# FastAPI -----------------------------------------------------------------------------------------


def notes_app(at: Servers) -> Any:
    """Endpoints and dependencies as FastAPI's documentation has them, and one on the loop."""
    engine = sa.create_engine(at.url("postgresql+psycopg2"))
    app = fastapi.FastAPI()

    def session() -> Iterator[orm.Session]:
        with orm.Session(engine) as session:
            yield session

    def counted(session: orm.Session = fastapi.Depends(session)) -> int:  # noqa: B008
        return int(session.scalar(sa.text("select 1")))

    @app.get("/endpoint")
    def endpoint(session: orm.Session = fastapi.Depends(session)) -> int:  # noqa: B008
        return int(session.scalar(sa.text("select 1")))

    @app.get("/dependency")
    async def dependency(count: int = fastapi.Depends(counted)) -> int:
        return count

    @app.get("/background")
    async def background(tasks: fastapi.BackgroundTasks) -> int:
        tasks.add_task(lambda: counted(orm.Session(engine)))
        return 1

    @app.get("/loop")
    async def on_the_loop(session: orm.Session = fastapi.Depends(session)) -> int:  # noqa: B008
        return int(session.scalar(sa.text("select 1")))

    return app


async def responses(app: Any, *paths: str) -> AsyncIterator[Any]:
    import httpx

    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://notes") as client:
        for path in paths:
            yield (await client.get(path)).json()


def test_def_endpoints_and_dependencies(run: Callable[[Any], Any], servers: Servers) -> None:
    app = notes_app(servers)

    async def main() -> None:
        async for response in responses(app, "/endpoint", "/dependency", "/background"):
            assert response == 1

    run(main())


def test_an_async_def_endpoint_is_refused(servers: Servers) -> None:
    app = notes_app(servers)
    asyncsafe.install()

    async def main() -> None:
        async for _ in responses(app, "/loop"):
            pass

    with pytest.raises(asyncsafe.SynchronousOnlyOperation):
        asyncio.run(main())
