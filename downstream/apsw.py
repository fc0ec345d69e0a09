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


@contextmanager
def prepared(directory: Path) -> Iterator[list[Suite]]:
    version = installed("apsw")
    (directory / "run_tests.py").write_text(SCRIPT)
    yield [Suite("apsw", f"apsw {version}", ["run_tests.py"], ["apsw"], directory=directory)]
