"""duckdb 1 and 2: what runs a query, reads or writes a file, or waits for the disk.

It computes in this process: running a query blocks the loop, whether or not it comes to the file.
A relation runs nothing until it is asked for its rows (`fetchall()`, `df()`, `show()`, `repr()`,
`len()`, ...), nor does `sql()` with one statement that only reads: these ask for no row yet. In
duckdb 2 relations are written in Python, and come to `DuckDBPyConnection._submit` for all that
they run: guarded below their own methods, for what has no entry here.

A query may read the caller's variables (`from df`). duckdb asks `inspect.currentframe()` for the
frame that calls it, which is a guard's: `currentframe` stands there while duckdb is guarded.

duckdb tells nowhere whether a transaction is open.
"""

from __future__ import annotations

import sys

from ..stacks import is_ours
from ..tables import Integration, Operation
from ..violation import Told

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any


def currentframe() -> FrameType | None:
    """The caller's frame. For a call that a guard has made: the frame that called the guard.

    duckdb 2 asks from functions of its own, and goes on from them to their callers.
    """
    frame: FrameType | None = sys._getframe(1)
    while True:
        outer = frame
        while outer is not None and _is_duckdbs(outer):
            outer = outer.f_back
        if outer is None or not is_ours(outer.f_code.co_filename):
            return frame
        frame = outer
        while frame is not None and is_ours(frame.f_code.co_filename):
            frame = frame.f_back


def _is_duckdbs(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).partition(".")[0] == "duckdb"


def _describe(frames: list[FrameType]) -> Told | None:
    """What the user called of a relation, where that is not what was guarded."""
    for frame in reversed(frames):
        name = frame.f_code.co_qualname
        if _is_duckdbs(frame) and "<locals>" not in name:  # a decorator's
            return Told(f"duckdb.{name}() was called", None)
    return None


def _duckdb() -> Any:
    return sys.modules["duckdb"]


def _is_open(connection: Any, *args: Any, **kwargs: Any) -> bool:
    connection.query_progress()  # raises ConnectionException on a closed connection
    return True


def _has_result(connection: Any, *args: Any, **kwargs: Any) -> bool:
    return _is_open(connection) and connection.description is not None


def _runs(connection: Any, query: Any, *args: Any, **kwargs: Any) -> bool:
    """Whether `sql()` runs something: all but one statement that only reads."""
    found = connection.extract_statements(query) if isinstance(query, str) else [query]
    return not (len(found) == 1 and found[0].type == _duckdb().StatementType.SELECT)


def _runs_by_default(query: Any, *args: Any, connection: Any = None, **kwargs: Any) -> bool:
    return _runs(connection or _duckdb().default_connection(), query)


def _reads_file(connection: Any, name: str, *args: Any, **kwargs: Any) -> bool:
    """Of table functions, those that look into a file to know its columns."""
    return name.startswith(("read_", "parquet_", "sniff_"))


def _reads_file_by_default(name: str, *args: Any, **kwargs: Any) -> bool:
    return _reads_file(None, name)


def _query(connection: Any, query: Any, *args: Any, **kwargs: Any) -> object:
    return getattr(query, "query", query)


def _query_by_default(query: Any, *args: Any, **kwargs: Any) -> object:
    return getattr(query, "query", query)


def _of_relation(relation: Any, *args: Any, **kwargs: Any) -> object:
    return relation.sql_query()


_LAZY = ("sql", "query", "from_query")
_QUERY = "($self, query, parameters=None)"
_OWN_PARAMETERS = {
    "fetchone": "($self)",
    "fetchmany": "($self, size=1)",
    "fetchall": "($self)",
}
_FETCHES = (
    *("fetchone", "fetchmany", "fetchall", "fetchnumpy", "fetchdf", "fetch_df", "fetch_df_chunk"),
    *("df", "pl", "torch", "tf", "arrow", "to_arrow_table", "to_arrow_reader"),
    *("fetch_arrow_table", "fetch_record_batch"),
)
_FILES = (
    *("read_csv", "read_json", "read_parquet", "from_csv_auto", "from_parquet"),
    *("install_extension", "load_extension"),
)
#: What a relation runs.
_TERMINALS = (
    *(name for name in _FETCHES if name not in {"fetch_df"}),
    *("execute", "to_df", "fetch_arrow_reader", "to_dicts", "iter_rows", "materialize"),
    *("__len__", "__repr__", "__str__", "_repr_mimebundle_", "__arrow_c_stream__"),
    *("show", "preview", "explain"),
    *("create", "to_table", "create_view", "to_view", "insert_into", "insert", "update"),
    *("write_csv", "to_csv", "write_parquet", "to_parquet"),
)

integration: Integration = Integration(
    "duckdb",
    {
        "duckdb": {
            "DuckDBPyConnection": [
                *(
                    Operation(name, does_block=_is_open, statement=_query, parameters=_QUERY)
                    for name in ("execute", "executemany")
                ),
                *(Operation(name, does_block=_runs, statement=_query) for name in _LAZY),
                *(
                    Operation(name, does_block=_has_result, parameters=_OWN_PARAMETERS.get(name))
                    for name in _FETCHES
                ),
                *(Operation(name, does_block=_is_open) for name in _FILES),
                # execute() of duckdb 2 may leave most of a query to be run.
                Operation("complete", does_block=_has_result),
                Operation("table_function", does_block=_reads_file),
                Operation("append", does_block=_is_open),
                Operation("commit", does_block=_is_open),
                Operation("checkpoint", does_block=_is_open),
                Operation("close", does_block=_is_open, cleans_up=True),
                Operation("__exit__", does_block=_is_open, cleans_up=True),
                Operation("_submit", does_block=_is_open, statement=_query),
            ],
            "DuckDBPyRelation": [
                *(Operation(name, statement=_of_relation) for name in _TERMINALS),
                Operation("shape", getter=True, statement=_of_relation),
            ],
            "Appender": [
                Operation("append_row"),
                Operation("append_rows"),
                Operation("flush"),
                Operation("__exit__", cleans_up=True),
            ],
            # Of the connection that duckdb keeps for the whole process.
            "": [
                Operation("connect", called="duckdb.connect"),
                *(
                    Operation(
                        name,
                        called=f"duckdb.{name}",
                        statement=_query_by_default,
                    )
                    for name in ("execute", "executemany")
                ),
                *(
                    Operation(
                        name,
                        called=f"duckdb.{name}",
                        does_block=_runs_by_default,
                        statement=_query_by_default,
                    )
                    for name in _LAZY
                ),
                Operation(
                    "table_function",
                    called="duckdb.table_function",
                    does_block=_reads_file_by_default,
                ),
                *(Operation(name, called=f"duckdb.{name}") for name in (*_FETCHES, "complete")),
                *(Operation(name, called=f"duckdb.{name}") for name in _FILES),
                Operation("append", called="duckdb.append"),
                Operation("write_csv", called="duckdb.write_csv"),
                Operation("commit", called="duckdb.commit"),
                Operation("checkpoint", called="duckdb.checkpoint"),
                Operation("close", called="duckdb.close", cleans_up=True),
            ],
        },
    },
    # ReplaceInternal() in src/duckdb_py/python_replacement_scan.cpp of duckdb/duckdb-python.
    replaced={"inspect": {"": {"currentframe": currentframe}}},
    describe=_describe,
    distributions=("duckdb",),
    tested=("1.5.6", "2.0.1"),
    exempt={
        "`sql()` with one statement that only reads, relations that nobody asks for rows": (
            "they run nothing"
        ),
        "`cursor()`, `begin()`, `rollback()`, `interrupt()`, registering": "they do no I/O",
    },
    not_guarded={
        "what `sql()` reads of a file (`from 'x.csv'`) to know its columns": (
            "only duckdb knows that it does; asking for the rows is refused"
        ),
        "what is read from an Arrow reader": "it is pyarrow's",
        "one connection, two tasks": "duckdb doesn't tell whether a transaction is open",
        "what the garbage collector closes": "in C, where it must not raise",
    },
)
