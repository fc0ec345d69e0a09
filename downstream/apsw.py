"""apsw's own tests, which are installed with it.

They are a script, which prepares them before it runs them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .environments import installed
from .suites import Suite

SCRIPT = """\
import unittest
from apsw.tests import __main__ as tests
tests.setup()
unittest.main(tests, argv=["tests", "-v"])
"""

ON_LOOP = "it makes a synchronous Connection on the loop, to compare with an asynchronous one"
ON_LOOPS = {"AnyIO": ["anyio', be='asyncio", "anyio', be='trio"]}
ON_LOOPS |= {"AsyncIO": ["asyncio"], "Trio": ["trio"]}
TESTS = ("Closing", "ClosingSync", "Configure", "Connection", "CursorStatementAttributes", "Str")
DIFFER = {
    f"apsw.tests.aiotest.Async.test{name} (fw='{loop}', fn=<bound method Async.atest{test} of "
    f"<apsw.tests.aiotest.Async testMethod=test{name}>>)": ON_LOOP
    for name, loops in ON_LOOPS.items()
    for loop in loops
    for test in TESTS
}
DIFFER |= {f"apsw.tests.aiotest.Async.test{name}": "the above are parts of it" for name in ON_LOOPS}
DIFFER |= {
    "apsw.tests.__main__.APSW.testArgparse": (
        "it passes a keyword that is no string, which a function of Python's refuses in other words"
    ),
    "apsw.tests.__main__.APSW.testVFSWithWAL": (
        "its VFS raises below a connection hook's execute(), where no method written in Python may "
        "come between: with a subclass of Cursor that has one it fails as well"
    ),
}


@contextmanager
def prepared(directory: Path) -> Iterator[list[Suite]]:
    version = installed("apsw")
    (directory / "run_tests.py").write_text(SCRIPT)
    yield [
        Suite(
            "apsw",
            f"apsw {version}",
            ["run_tests.py"],
            ["apsw"],
            directory=directory,
            differ=DIFFER,
        )
    ]
