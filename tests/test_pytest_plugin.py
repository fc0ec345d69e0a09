"""The pytest plugin, as a project uses it: in runs of pytest of their own, below the tests."""

from __future__ import annotations

import json
import os
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import asyncsafe
from asyncsafe import baseline, exceptions, policy

from .conftest import missing
from .running import on_loop

pytest_plugins = ["pytester"]

SHOP = """
import asyncio, sqlite3, threading

def find():
    return sqlite3.connect(":memory:")

async def view():
    return find()

async def swallowing():
    try:
        return find()
    except Exception:
        return None

async def in_thread():
    return await asyncio.to_thread(lambda: 1 if find() else 0)
"""

#: Runs of nothing but the plugins that a test names.
PLAIN = (
    *("-p", "no:asyncio", "-p", "no:anyio", "-p", "no:trio", "-p", "no:django"),
    *("-p", "no:playwright", "-p", "no:cacheprovider"),
)


def without(*names: str) -> tuple[str, ...]:
    """PLAIN, with these plugins."""
    return tuple(
        part
        for pair in zip(PLAIN[::2], PLAIN[1::2], strict=True)
        if pair[1].removeprefix("no:") not in names
        for part in pair
    )


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makepyfile(shop=SHOP)
    pytester.makeini("[pytest]\n")
    return pytester


def run(
    project: pytest.Pytester, *arguments: str, plugins: tuple[str, ...] = PLAIN, apart: bool = False
) -> pytest.RunResult:
    """Run pytest: in a process of its own where other plugins are on, or where it says so."""
    if apart or plugins is not PLAIN:
        return project.runpytest_subprocess(*plugins, *arguments, timeout=100)
    return project.runpytest_inprocess(*plugins, *arguments, syspathinsert=True)


def write(project: pytest.Pytester, source: str, name: str = "test_shop") -> None:
    header = (
        "import asyncio, pytest, shop, asyncsafe\nfrom asyncsafe import SynchronousOnlyOperation\n"
    )
    (project.path / f"{name}.py").write_text(header + textwrap.dedent(source))


def failed(result: pytest.RunResult) -> dict[str, str]:
    """The tests that failed or had an error, with what the summary says of each."""
    found = {}
    for line in result.outlines:
        kind, _, rest = line.partition(" ")
        if kind in {"FAILED", "ERROR"} and "::" in rest:
            name, _, why = rest.partition(" - ")
            found[f"{kind} {name.partition('::')[2]}"] = why
    return found


SWALLOWED = "*sqlite3.connect() was called from a running event loop (asyncio).*"

# Asked, and not asked ----------------------------------------------------------------------------


def test_it_does_nothing_until_it_is_asked_to(project: pytest.Pytester) -> None:
    write(
        project,
        """
        import sys

        def test_nothing(pytestconfig):
            assert asyncio.run(shop.view())
            assert not pytestconfig.pluginmanager.has_plugin("asyncsafe_session")
            assert "asyncsafe.pytest_session" not in sys.modules
            assert "asyncsafe.guards" not in sys.modules
        """,
    )
    (project.path / "test_shop.py").write_text(
        (project.path / "test_shop.py")
        .read_text()
        .replace("from asyncsafe import SynchronousOnlyOperation\n", "")
    )

    result = run(project, apart=True)

    result.assert_outcomes(passed=1)
    assert "asyncsafe:" not in result.stdout.str()
    assert "= asyncsafe =" not in result.stdout.str()


@pytest.mark.parametrize("by", ["option", "setting"])
@pytest.mark.parametrize("mode", ["raise", "record", "off"])
def test_the_mode_is_the_options_or_the_settings(
    project: pytest.Pytester, by: str, mode: str
) -> None:
    write(project, "def test_view(): assert asyncio.run(shop.view())")
    if by == "setting":
        project.makeini(f"[pytest]\nasyncsafe = {mode}\n")

    result = run(project, *([f"--asyncsafe={mode}"] if by == "option" else []))

    result.assert_outcomes(**{"failed" if mode == "raise" else "passed": 1})
    assert ("1 synchronous call on the event loop" in result.stdout.str()) is (mode != "off")


def test_the_option_is_stronger_than_the_setting(project: pytest.Pytester) -> None:
    write(project, "def test_view(): assert asyncio.run(shop.view())")
    project.makeini("[pytest]\nasyncsafe = raise\n")

    run(project, "--asyncsafe=off").assert_outcomes(passed=1)


def test_a_bad_mode_is_told(project: pytest.Pytester) -> None:
    write(project, "def test_view(): pass")
    project.makeini("[pytest]\nasyncsafe = strict\n")

    result = run(project)

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*must be one of raise, warn, record, off; it is 'strict'*"])


def test_it_can_be_switched_off(project: pytest.Pytester) -> None:
    write(project, "def test_view(): assert asyncio.run(shop.view())")

    run(project, "-p", "no:asyncsafe", apart=True).assert_outcomes(passed=1)


def test_the_header_tells_the_mode_and_what_allows_everything(project: pytest.Pytester) -> None:
    write(project, "def test_view(): assert asyncio.run(shop.view())")
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "1"
    try:
        result = run(project, "--asyncsafe=raise")
    finally:
        del os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"]

    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        ["asyncsafe: mode raise", "asyncsafe: DJANGO_ALLOW_ASYNC_UNSAFE=1 allows everything"]
    )


# Whose violation, and whether it was swallowed ---------------------------------------------------


def test_what_the_application_swallowed_fails_the_test(project: pytest.Pytester) -> None:
    write(
        project,
        """
        def test_before(): pass
        def test_swallowed(): assert asyncio.run(shop.swallowing()) is None
        def test_after(): pass
        """,
    )

    result = run(project, "--asyncsafe=raise")

    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(
        [
            "*test_swallowed*",
            "sqlite3.connect() was called from a running event loop (asyncio).",
            "    at     shop.py:4 in find()",
            "    under  shop.py:11 in async swallowing()*",
            "  Run it in a thread:  await asyncsafe.database_sync_to_async(find)(...)",
            "  It was refused, and the exception was swallowed on its way to the test.",
        ]
    )


def test_what_leaves_the_test_fails_it_as_any_error_does(project: pytest.Pytester) -> None:
    write(project, "def test_view(): asyncio.run(shop.view())")

    result = run(project, "--asyncsafe=raise")

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            ">   *sqlite3.connect*",
            "E * SynchronousOnlyOperation: *".replace(" S", "*S"),
            "shop.py:4: *",
        ]
    )
    assert "swallowed on its way" not in result.stdout.str()
    assert "asyncsafe wrapper" not in result.stdout.str()
    assert "guards.py" not in result.stdout.str()


def test_what_a_test_expects_passes(project: pytest.Pytester) -> None:
    write(
        project,
        """
        import unittest

        def test_raises():
            with pytest.raises(SynchronousOnlyOperation):
                asyncio.run(shop.view())

        def test_raises_on_the_loop():
            async def main():
                with pytest.raises(SynchronousOnlyOperation):
                    await shop.view()
            asyncio.run(main())

        def test_except():
            try:
                asyncio.run(shop.view())
            except SynchronousOnlyOperation:
                pass

        class TestCase(unittest.TestCase):
            def test_assert_raises(self):
                with self.assertRaises(SynchronousOnlyOperation):
                    asyncio.run(shop.view())

        class TestIsolated(unittest.IsolatedAsyncioTestCase):
            async def test_assert_raises(self):
                with self.assertRaises(SynchronousOnlyOperation):
                    await shop.view()

        @pytest.fixture
        def expecting():
            with pytest.raises(SynchronousOnlyOperation):
                asyncio.run(shop.view())
            yield
            with pytest.raises(SynchronousOnlyOperation):
                asyncio.run(shop.view())

        def test_fixture(expecting): pass

        class TestMethods:
            def setup_method(self):
                with pytest.raises(SynchronousOnlyOperation):
                    asyncio.run(shop.view())
            def test_method(self): pass

        class TestDerived(TestMethods):
            def setup_method(self): super().setup_method()

        class TestBase:
            @staticmethod
            def test_static():
                with pytest.raises(SynchronousOnlyOperation): asyncio.run(shop.view())
        class TestOverridden(TestBase):
            def test_static(self): super().test_static()
        """,
    )

    run(project, "--asyncsafe=raise").assert_outcomes(passed=10)


def test_what_never_came_to_the_test_was_swallowed(project: pytest.Pytester) -> None:
    write(
        project,
        """
        import threading, unittest

        def test_task_that_nobody_awaits():
            async def main():
                async def child():
                    await shop.view()
                task = asyncio.create_task(child())
                await asyncio.wait([task])
            asyncio.run(main())

        def test_thread():
            thread = threading.Thread(target=lambda: asyncio.run(shop.swallowing()))
            thread.start()
            thread.join()

        def test_another_error_in_its_place():
            with pytest.raises(LookupError):
                asyncio.run(application())

        async def application():
            try:
                await shop.view()
            except Exception as error:
                raise LookupError from error

        def test_skipped():
            asyncio.run(shop.swallowing())
            pytest.skip("no server")

        class TestCase(unittest.IsolatedAsyncioTestCase):
            async def test_swallowed(self):
                await shop.swallowing()

        class TestSetUp(unittest.IsolatedAsyncioTestCase):
            async def asyncSetUp(self):
                await shop.swallowing()
            async def test_set_up(self): pass

        @pytest.mark.xfail(strict=True)
        def test_expected_to_fail(): asyncio.run(shop.swallowing())
        """,
    )

    result = run(project, "--asyncsafe=raise", "-p", "no:threadexception")

    result.assert_outcomes(failed=6, xfailed=1)
    assert set(failed(result)) == {
        "FAILED test_task_that_nobody_awaits",
        "FAILED test_thread",
        "FAILED test_another_error_in_its_place",
        "FAILED test_skipped",
        "FAILED TestCase::test_swallowed",
        "FAILED TestSetUp::test_set_up",
    }
    for why in failed(result).values():
        assert why.startswith("Failed: sqlite3.")


def test_an_applications_answer_hides_nothing(project: pytest.Pytester) -> None:
    write(
        project,
        """
        from starlette.applications import Starlette
        from starlette.routing import Route
        from starlette.testclient import TestClient

        def client(**options):
            async def orders(request):
                return shop.find()
            return TestClient(Starlette(routes=[Route("/", orders)]), **options)

        def test_status():
            assert client(raise_server_exceptions=False).get("/").status_code == 500

        def test_endpoint_of_its_own():
            async def orders(request):
                return shop.find()
            app = Starlette(routes=[Route("/", orders)])
            client = TestClient(app, raise_server_exceptions=False)
            assert client.get("/").status_code == 500

        def test_expected():
            with pytest.raises(SynchronousOnlyOperation):
                client().get("/")
        """,
    )

    result = run(project, "--asyncsafe=raise")

    result.assert_outcomes(passed=1, failed=2)
    assert set(failed(result)) == {"FAILED test_status", "FAILED test_endpoint_of_its_own"}


def test_a_test_that_is_skipped_has_swallowed_it_all_the_same(project: pytest.Pytester) -> None:
    write(
        project,
        """
        import unittest

        class TestUnit(unittest.TestCase):
            def test_skipped(self):
                asyncio.run(shop.swallowing())
                self.skipTest("no server")

            def test_expected(self):
                with self.assertRaises(SynchronousOnlyOperation): asyncio.run(shop.view())
                self.skipTest("enough")

            @unittest.expectedFailure
            def test_known_to_fail(self):
                asyncio.run(shop.swallowing())
                self.fail("as ever")

        def test_skipped():
            asyncio.run(shop.swallowing())
            pytest.skip("no server")

        def test_skipped_as_unittest_does():
            asyncio.run(shop.swallowing())
            raise unittest.SkipTest("no server")
        """,
    )

    result = run(project, "--asyncsafe=raise")

    result.assert_outcomes(failed=3, skipped=1, xfailed=1)
    whys = failed(result)
    assert set(whys) == {
        "FAILED TestUnit::test_skipped",
        "FAILED test_skipped",
        "FAILED test_skipped_as_unittest_does",
    }
    assert all("sqlite3.connect() was" in why for why in whys.values())


def test_a_doctest_may_expect_a_refusal(project: pytest.Pytester) -> None:
    write(
        project,
        '''
        def documented():
            """
            >>> asyncio.run(shop.view())
            Traceback (most recent call last):
              ...
            asyncsafe.exceptions.SynchronousOnlyOperation: sqlite3.connect() was called from...
            """

        def swallowed():
            """
            >>> asyncio.run(shop.swallowing())
            """
        ''',
        "examples",
    )
    options = ("--doctest-modules", "-o", "doctest_optionflags=ELLIPSIS", "examples.py")

    result = run(project, "--asyncsafe=raise", *options)

    result.assert_outcomes(passed=1, failed=1)
    assert set(failed(result)) == {"FAILED examples.swallowed"}


def test_a_test_that_ends_the_run_has_no_outcome(project: pytest.Pytester) -> None:
    write(
        project,
        """
        def test_enough():
            with pytest.raises(SynchronousOnlyOperation): asyncio.run(shop.view())
            pytest.exit("enough", returncode=0)
        """,
    )

    result = run(project, "--asyncsafe=raise")

    assert result.ret == pytest.ExitCode.OK
    assert "belongs to no test" not in result.stdout.str()


def test_set_up_and_teardown_have_their_own(project: pytest.Pytester) -> None:
    write(
        project,
        """
        @pytest.fixture
        def before(): asyncio.run(shop.swallowing())

        @pytest.fixture
        def after():
            yield
            asyncio.run(shop.swallowing())

        @pytest.fixture(scope="session")
        def at_the_end():
            yield
            asyncio.run(shop.swallowing())

        def test_set_up(before): raise AssertionError("it isn't called")
        def test_teardown(after): pass
        def test_last(at_the_end): pass
        """,
    )

    result = run(project, "--asyncsafe=raise")

    result.assert_outcomes(passed=2, errors=3)
    assert set(failed(result)) == {"ERROR test_set_up", "ERROR test_teardown", "ERROR test_last"}
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_last*", SWALLOWED])


def test_it_is_told_beside_the_tests_own_failure(project: pytest.Pytester) -> None:
    write(
        project,
        """
        import unittest

        def test_status():
            assert asyncio.run(shop.swallowing()) == 200

        class TestCase(unittest.TestCase):
            def test_status(self):
                self.assertEqual(asyncio.run(shop.swallowing()), 200)
        """,
    )

    result = run(project, "--asyncsafe=raise", "-p", "no:logging")

    result.assert_outcomes(failed=2)
    output = result.stdout.str()
    assert output.count("-- asyncsafe --") == 2
    assert output.count("swallowed on its way to the test") == 2
    assert {why.partition(" ")[0] for why in failed(result).values()} == {
        "assert",
        "AssertionError:",
    }


def test_one_failure_tells_each_call_site_once(project: pytest.Pytester) -> None:
    write(
        project,
        """
        def test_loop():
            async def main():
                for _ in range(3):
                    await shop.swallowing()
            asyncio.run(main())
        """,
    )

    # -rN: in CI, pytest's own summary has the whole message.
    result = run(project, "--asyncsafe=raise", "-p", "no:logging", "-rN")

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["  It was refused, 3 times, and the exception was swallowed*"])
    assert result.stdout.str().count("    at     shop.py:4 in find()") == 1


def test_what_belongs_to_no_test_fails_the_run(project: pytest.Pytester) -> None:
    project.makeconftest(
        "import asyncio, shop\ndef pytest_sessionfinish(): asyncio.run(shop.swallowing())"
    )
    write(project, "def test_nothing(): pass")

    result = run(project, "--asyncsafe=raise")

    result.assert_outcomes(passed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["1 refused call belongs to no test:", SWALLOWED])


def test_an_import_that_fails_is_told_once(project: pytest.Pytester) -> None:
    write(project, "asyncio.run(shop.view())\ndef test_nothing(): pass")

    result = run(project, "--asyncsafe=raise")

    result.assert_outcomes(errors=1)
    assert "belongs to no test" not in result.stdout.str()


def test_the_guards_and_the_mode_are_there_for_each_test(project: pytest.Pytester) -> None:
    write(
        project,
        """
        def test_changes():
            asyncsafe.violations.clear()
            asyncsafe.configure(mode="off")
            asyncsafe.uninstall()
            asyncio.run(shop.view())

        def test_after_it(): asyncio.run(shop.swallowing())
        """,
    )

    result = run(project, "--asyncsafe=raise")

    result.assert_outcomes(passed=1, failed=1)
    assert set(failed(result)) == {"FAILED test_after_it"}


def test_they_are_there_when_a_test_is_run_again(project: pytest.Pytester) -> None:
    """As pytest-rerunfailures does."""
    project.makeconftest(
        """
        from _pytest.runner import runtestprotocol

        def pytest_runtest_protocol(item, nextitem):
            runtestprotocol(item, nextitem=nextitem, log=False)
            item._initrequest()
            runtestprotocol(item, nextitem=nextitem)
            return True
        """
    )
    write(
        project,
        """
        runs = []

        def test_again():
            runs.append(1)
            if len(runs) == 1:
                asyncsafe.uninstall()
                asyncsafe.configure(mode="off")
                raise AssertionError
            with pytest.raises(SynchronousOnlyOperation):
                asyncio.run(shop.view())
        """,
    )

    run(project, "--asyncsafe=raise").assert_outcomes(passed=1)


def test_the_summary_keeps_what_a_test_clears(project: pytest.Pytester) -> None:
    write(
        project,
        """
        def test_clears():
            asyncio.run(shop.view())
            asyncsafe.violations.clear()
        def test_again():
            asyncio.run(shop.view())
        """,
    )

    result = run(project, "--asyncsafe=record")

    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(
        ["asyncsafe: 2 synchronous calls on the event loop, at 1 call site*"]
    )


@pytest.mark.parametrize("options", [[], ["-p", "xdist", "-n", "2"]])
def test_a_report_is_written(project: pytest.Pytester, options: list[str]) -> None:
    write(project, "def test_view(): asyncio.run(shop.view())")

    result = run(project, "--asyncsafe-report=report.sarif", *options)  # which asks for mode record

    result.assert_outcomes(passed=1)
    (found,) = json.loads((project.path / "report.sarif").read_text())["runs"][0]["results"]
    place = found["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"] == "shop.py"


def test_a_report_that_cant_be_written_is_told_before_the_tests(project: pytest.Pytester) -> None:
    write(project, "def test_view(): asyncio.run(shop.view())")

    result = run(project, "--asyncsafe-report=gone/report.json")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*gone/report.json: there is no such directory"])


def test_the_summary_is_short_unless_it_is_asked_for_more(project: pytest.Pytester) -> None:
    functions = "".join(f"\ndef find{n}(): sqlite3.connect(':memory:')" for n in range(30))
    (project.path / "shop.py").write_text(
        f"import sqlite3{functions}\nasync def main():\n    "
        + "; ".join(f"find{n}()" for n in range(30))
    )
    write(project, "def test_many(): asyncio.run(shop.main())")

    short = run(project, "--asyncsafe=record").stdout
    short.fnmatch_lines(["30 call sites. Of the 20 worst (-v tells all):", "*at 20 call sites*"])
    whole = run(project, "--asyncsafe=record", "-v").stdout
    whole.fnmatch_lines(["asyncsafe: 30 synchronous calls on the event loop, at 30 call sites*"])

    baseline = ("--asyncsafe-baseline=baseline.txt",)
    run(project, *baseline, "--update-baseline")
    known = run(project, *baseline).stdout
    known.fnmatch_lines(["Baseline baseline.txt: 30 calls at 30 of 30 known call sites passed."])
    assert "synchronous call" not in known.str()


# The marker --------------------------------------------------------------------------------------


def test_the_marker_allows_a_test_a_class_or_a_module(project: pytest.Pytester) -> None:
    write(
        project,
        """
        import threading

        @pytest.fixture
        def connection():
            yield asyncio.run(shop.view())
            asyncio.run(shop.view())

        @pytest.mark.allow_async_unsafe("a test")
        def test_one(connection):
            assert asyncio.run(shop.view())

        @pytest.mark.allow_async_unsafe(reason="a class")
        class TestClass:
            def test_one(self): assert asyncio.run(shop.view())
            def test_thread(self):
                found = []
                thread = threading.Thread(target=lambda: found.append(asyncio.run(shop.view())))
                thread.start()
                thread.join()
                assert found

        def test_another(): asyncio.run(shop.view())
        """,
    )
    write(
        project,
        """
        pytestmark = pytest.mark.allow_async_unsafe("a module")
        def test_one(): assert asyncio.run(shop.view())
        def test_strict():
            with asyncsafe.forbid(), pytest.raises(SynchronousOnlyOperation):
                asyncio.run(shop.view())
            async def main():
                with asyncsafe.forbid(): await shop.view()
            with pytest.raises(SynchronousOnlyOperation): asyncio.run(main())
        """.replace(
            "with asyncsafe.forbid(), pytest.raises(SynchronousOnlyOperation):", "if True:"
        ),
        "test_module",
    )

    result = run(project, "--asyncsafe=raise", "--strict-markers")

    result.assert_outcomes(passed=5, failed=1)
    assert set(failed(result)) == {"FAILED test_another"}
    assert "allowed nothing" not in result.stdout.str()


@pytest.mark.parametrize("given", ["", "''", "1", "'two', 'reasons'", "because='of this'"])
def test_a_marker_without_a_reason_is_an_error(project: pytest.Pytester, given: str) -> None:
    write(
        project,
        f"""
        @pytest.mark.allow_async_unsafe({given})
        def test_one(): pass
        def test_two(): pass
        """,
    )

    result = run(project, "--asyncsafe=raise")

    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(['write @pytest.mark.allow_async_unsafe("why this is fine"), *'])


def test_markers_that_allow_nothing_are_told(project: pytest.Pytester) -> None:
    write(
        project,
        """
        @pytest.mark.allow_async_unsafe("once it was slow")
        @pytest.mark.parametrize("n", [1, 2])
        def test_unused(n): pass

        @pytest.mark.allow_async_unsafe("the second needs it")
        @pytest.mark.parametrize("n", [1, 2])
        def test_used(n):
            if n == 2: asyncio.run(shop.view())

        @pytest.mark.allow_async_unsafe("it came to nothing")
        def test_failed(): raise AssertionError

        @pytest.mark.allow_async_unsafe("nobody needs it")
        class TestUnused:
            def test_one(self): pass
            def test_two(self): pass
        """,
    )

    result = run(project, "--asyncsafe=raise")

    result.assert_outcomes(passed=6, failed=1)
    result.stdout.fnmatch_lines(
        [
            "Markers that allowed nothing (allow_async_unsafe):",
            "  test_shop.py::TestUnused: nobody needs it",
            "  test_shop.py::test_unused: once it was slow",
        ],
        consecutive=True,
    )
    assert "test_used: the second needs it" not in result.stdout.str()
    assert "test_failed: it came to nothing" not in result.stdout.str()


# The fixture -------------------------------------------------------------------------------------


def test_the_fixture_has_the_tests_violations(project: pytest.Pytester) -> None:
    write(
        project,
        """
        def test_taken(asyncsafe_violations: list[asyncsafe.Violation]):
            asyncio.run(shop.swallowing())
            assert [v.operation for v in asyncsafe_violations] == ["sqlite3.connect"]
            assert asyncsafe_violations.pop().outcome == "raised"

        def test_left(asyncsafe_violations):
            asyncio.run(shop.swallowing())
            asyncio.run(shop.swallowing())
            asyncsafe_violations.pop()

        def test_none(asyncsafe_violations):
            with pytest.raises(AssertionError):
                asyncio.run(shop.swallowing())
                assert not asyncsafe_violations
            asyncsafe_violations.clear()
            async def main():
                with asyncsafe.allow("here"): shop.find()
            asyncio.run(main())
            assert asyncsafe_violations == []
        """,
    )

    result = run(project, "--asyncsafe=raise")

    result.assert_outcomes(passed=2, failed=1)
    assert set(failed(result)) == {"FAILED test_left"}


def test_the_fixture_has_what_is_only_recorded(project: pytest.Pytester) -> None:
    write(
        project,
        """
        def test_recorded(asyncsafe_violations):
            asyncio.run(shop.view())
            asyncio.run(shop.view())
            assert [v.outcome for v in asyncsafe_violations] == ["recorded", "recorded"]
        """,
    )

    run(project, "--asyncsafe=record").assert_outcomes(passed=1)


def test_the_fixture_says_that_nobody_is_on_guard(project: pytest.Pytester) -> None:
    write(project, "def test_one(asyncsafe_violations): pass")

    result = run(project)

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["asyncsafe_violations needs the guards: run pytest with --async*"])
    run(project, "--asyncsafe=off").assert_outcomes(skipped=1)


# Warnings ----------------------------------------------------------------------------------------


def test_mode_warn_warns_as_pytest_does(project: pytest.Pytester) -> None:
    write(
        project,
        """
        def test_one(): asyncio.run(shop.view())
        def test_two(): asyncio.run(shop.view())
        def test_told():
            with pytest.warns(asyncsafe.AsyncUnsafeWarning, match="sqlite3.connect"):
                asyncio.run(shop.view())

        @pytest.mark.filterwarnings("error::asyncsafe.exceptions.AsyncUnsafeWarning")
        def test_error():
            with pytest.raises(asyncsafe.AsyncUnsafeWarning):
                asyncio.run(shop.view())

        @pytest.mark.filterwarnings("ignore::asyncsafe.exceptions.AsyncUnsafeWarning")
        def test_ignored(): asyncio.run(shop.view())
        """,
    )

    result = run(project, "--asyncsafe=warn", apart=True)

    result.assert_outcomes(passed=5, warnings=2)
    result.stdout.fnmatch_lines(
        [
            "*warnings summary*",
            "test_shop.py::test_one",
            "test_shop.py::test_two",
            "*AsyncUnsafeWarning*",
        ]
    )


# Beside other plugins ----------------------------------------------------------------------------

#: For each: the plugins, the setting, and how its tests and fixtures are written.
RUNNERS = {
    "pytest-asyncio, strict": (
        ("asyncio",),
        "asyncio_default_fixture_loop_scope = function",
        "@pytest.mark.asyncio",
        "@pytest_asyncio.fixture",
    ),
    "pytest-asyncio, auto": (
        ("asyncio",),
        "asyncio_mode = auto\nasyncio_default_fixture_loop_scope = function",
        "",
        "@pytest.fixture",
    ),
    "pytest-asyncio, one loop": (
        ("asyncio",),
        "asyncio_mode = auto\nasyncio_default_fixture_loop_scope = session\n"
        "asyncio_default_test_loop_scope = session",
        "",
        "@pytest.fixture",
    ),
    "anyio, asyncio": (("anyio",), "", "@pytest.mark.anyio", "@pytest.fixture"),
    "anyio, trio": (("anyio",), "", "@pytest.mark.anyio", "@pytest.fixture"),
    "pytest-trio": (("trio",), "trio_mode = true", "", "@pytest.fixture"),
}

ASYNC_TESTS = """
import sys
{imports}

{backend}

{fixture}
async def good():
    await shop.sleep()
    yield 1

{fixture}
async def bad_before():
    await shop.swallowing()
    yield 1

{fixture}
async def bad_after():
    yield 1
    await shop.swallowing()

{test}
async def test_good(good):
    await shop.sleep()

{test}
async def test_swallowed():
    assert await shop.swallowing() is None

{test}
async def test_left():
    await shop.view()

{test}
async def test_expected():
    with pytest.raises(SynchronousOnlyOperation):
        await shop.view()

{test}
async def test_before(bad_before): pass

{test}
async def test_after(bad_after): pass

{test}
@pytest.mark.allow_async_unsafe("a reason")
async def test_allowed(bad_before, bad_after):
    assert await shop.view()

class TestMethods:
    {test}
    async def test_swallowed(self):
        assert await shop.swallowing() is None

    {test}
    async def test_expected(self):
        with pytest.raises(SynchronousOnlyOperation):
            await shop.view()
"""


@pytest.mark.parametrize("name", RUNNERS)
def test_asynchronous_tests_and_fixtures(project: pytest.Pytester, name: str) -> None:
    plugins, settings, test, fixture = RUNNERS[name]
    trio = "trio" in name
    (project.path / "pytest.ini").write_text("[pytest]\nasyncsafe = raise\n" + settings + "\n")
    (project.path / "tox.ini").unlink(missing_ok=True)
    library = "trio" if trio else "asyncio"
    with (project.path / "shop.py").open("a") as file:
        file.write(f"\nimport {library}\nasync def sleep(): await {library}.sleep(0)\n")
    backend = ""
    if plugins == ("anyio",):
        backend = f"@pytest.fixture(scope='session')\ndef anyio_backend(): return {library!r}\n"
        backend += "@pytest.fixture(scope='session', autouse=True)\nasync def runner(): yield\n"
    source = ASYNC_TESTS.format(
        imports="import pytest_asyncio" if plugins == ("asyncio",) else "",
        backend=backend,
        fixture=fixture,
        test=test,
    )
    write(project, source)

    result = run(project, "-W", "ignore::DeprecationWarning", plugins=without(*plugins))

    swallowed = {
        "FAILED test_swallowed",
        "ERROR test_before",
        "ERROR test_after",
        "FAILED TestMethods::test_swallowed",
    }
    if name == "pytest-trio":  # its fixtures are set up and torn down in the test's own task
        swallowed = {kind.replace("ERROR", "FAILED") for kind in swallowed}
    assert set(failed(result)) == {*swallowed, "FAILED test_left"}
    loop = "trio" if trio else "asyncio"
    output = result.stdout.str()
    assert output.count(f"sqlite3.connect() was called from a running event loop ({loop}).") >= 5
    assert "belongs to no test" not in output
    assert "allowed nothing" not in output


def test_hypothesis(project: pytest.Pytester) -> None:
    pytest.importorskip("hypothesis")
    write(
        project,
        """
        from hypothesis import given, settings, strategies

        examples = settings(max_examples=5, database=None)

        @examples
        @given(strategies.integers())
        def test_expected(n):
            with pytest.raises(SynchronousOnlyOperation): asyncio.run(shop.view())

        @examples
        @given(strategies.integers())
        def test_swallowed(n): asyncio.run(shop.swallowing())

        @pytest.mark.anyio  # on asyncio, then on trio
        @examples
        @given(strategies.integers())
        async def test_expected_by_anyio(n):
            with pytest.raises(SynchronousOnlyOperation): await shop.view()

        @pytest.mark.anyio
        @examples
        @given(strategies.integers())
        async def test_swallowed_below_anyio(n): await shop.swallowing()
        """,
    )

    result = run(project, "--asyncsafe=raise", plugins=without("anyio"))

    result.assert_outcomes(passed=3, failed=3)
    assert set(failed(result)) == {
        "FAILED test_swallowed",
        "FAILED test_swallowed_below_anyio[asyncio]",
        "FAILED test_swallowed_below_anyio[trio]",
    }


def test_pytest_xdist_merges(project: pytest.Pytester) -> None:
    write(
        project,
        """
        import enum

        @pytest.mark.parametrize("n", range(6))
        def test_view(n):
            with pytest.raises(SynchronousOnlyOperation):
                asyncio.run(shop.view())

        def test_swallowed(): asyncio.run(shop.swallowing())

        @pytest.mark.allow_async_unsafe("unused in both")
        @pytest.mark.parametrize("n", range(6))
        def test_unused(n): pass

        class Reason(str, enum.Enum):
            TICKET = "a member of an enumeration"

        @pytest.mark.allow_async_unsafe(Reason.TICKET)
        def test_unused_too(): pass

        @pytest.mark.allow_async_unsafe("used in one")
        @pytest.mark.parametrize("n", range(6))
        def test_used(n):
            if n == 3: asyncio.run(shop.view())
        """,
    )
    project.makeconftest(
        "import asyncio, shop\n"
        "def pytest_sessionfinish(session):\n"
        "    if hasattr(session.config, 'workerinput'): asyncio.run(shop.swallowing())\n"
    )

    result = run(project, "--asyncsafe=raise", "-n2", "-v")

    result.assert_outcomes(passed=19, failed=1)
    assert set(failed(result)) == {"FAILED test_swallowed"}
    result.stdout.fnmatch_lines(
        [
            "asyncsafe: 10 synchronous calls on the event loop, at 2 call sites*",
            "2 refused calls belong to no test:",
            "Markers that allowed nothing (allow_async_unsafe):",
            "  test_shop.py::test_unused: unused in both",
            "  test_shop.py::test_unused_too: a member of an enumeration",
        ]
    )
    assert "used in one" not in result.stdout.str()
    assert result.stdout.str().count("while no test was under way") == 1


def test_a_worker_that_crashes_takes_nobody_along(project: pytest.Pytester) -> None:
    write(
        project,
        """
        import os

        def test_view(): asyncio.run(shop.view())

        @pytest.mark.parametrize("n", range(4))
        def test_other(n): asyncio.run(shop.view())

        def test_crash():
            asyncio.run(shop.view())
            os._exit(1)
        """,
    )

    result = run(project, "--asyncsafe=record", "-n2")

    result.assert_outcomes(passed=5, failed=1)
    result.stdout.fnmatch_lines(
        ["asyncsafe: 6 synchronous calls on the event loop, at 1 call site*"]
    )


DJANGO_TESTS = """
from django.contrib.auth.models import User
from django.test import TestCase

def names(): return [user.username for user in User.objects.all()]

async def swallowing():
    try:
        return names()
    except Exception:
        return None

@pytest.mark.django_db
def test_synchronous(): assert names() == []

@pytest.mark.django_db
def test_client(client): assert client.get("/nothing").status_code == 404

@pytest.mark.asyncio
@pytest.mark.django_db(transaction=True)
async def test_asynchronous(): assert [user async for user in User.objects.all()] == []

@pytest.mark.asyncio
@pytest.mark.django_db(transaction=True)
async def test_swallowed(): assert await swallowing() is None

@pytest.mark.asyncio
@pytest.mark.django_db(transaction=True)
async def test_expected():
    from django.core.exceptions import SynchronousOnlyOperation
    with pytest.raises(SynchronousOnlyOperation):
        names()

@pytest.mark.allow_async_unsafe("a reason")
@pytest.mark.asyncio
@pytest.mark.django_db(transaction=True)
async def test_allowed(): assert names() == []

class TestUsers(TestCase):
    @classmethod
    def setUpTestData(cls):
        async def call(): names()
        with pytest.raises(SynchronousOnlyOperation):
            asyncio.run(call())
    def test_synchronous(self): assert names() == []
    async def test_asynchronous(self): assert await User.objects.acount() == 0
    async def test_swallowed(self): assert await swallowing() is None
    async def test_expected(self):
        with self.assertRaises(SynchronousOnlyOperation):
            names()

def test_live_server(live_server):
    import urllib.request
    assert urllib.request.urlopen(live_server.url + "/names").read() == b"[]"
"""

DJANGO_SETTINGS = """
SECRET_KEY = "secret"
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
INSTALLED_APPS = ["asyncsafe.integrations.django", "django.contrib.contenttypes", "django.contrib.auth"]
ROOT_URLCONF = "urls"
ALLOWED_HOSTS = ["*"]
STATIC_URL = "static/"
USE_TZ = True
"""


def test_pytest_django(project: pytest.Pytester) -> None:
    (project.path / "settings.py").write_text(DJANGO_SETTINGS)
    (project.path / "urls.py").write_text(
        "from django.http import HttpResponse\nfrom django.urls import path\n"
        "def names(request):\n"
        "    from django.contrib.auth.models import User\n"
        "    return HttpResponse(str(list(User.objects.all())))\n"
        "urlpatterns = [path('names', names)]\n"
    )
    project.makeini(
        "[pytest]\nDJANGO_SETTINGS_MODULE = settings\nasyncsafe = raise\n"
        "asyncio_default_fixture_loop_scope = function\n"
    )
    write(project, DJANGO_TESTS)

    result = run(project, "-p", "no:randomly", plugins=without("django", "asyncio"))

    assert set(failed(result)) == {"FAILED test_swallowed", "FAILED TestUsers::test_swallowed"}
    result.assert_outcomes(passed=9, failed=2)


def test_pytest_playwright(project: pytest.Pytester) -> None:
    """Its synchronous API parks a loop below the tests, which the tests don't block."""
    chromium = Path("/usr/bin/chromium")
    if not chromium.exists():
        missing("Chromium", "apt-get install chromium")
    project.makeconftest(
        f"""
        import pytest

        @pytest.fixture(scope="session")
        def browser_type_launch_args(browser_type_launch_args):
            return {{**browser_type_launch_args, "executable_path": {str(chromium)!r},
                     "args": ["--no-sandbox"]}}
        """
    )
    write(
        project,
        """
        def test_plain(page):
            page.goto("data:text/html,<title>Orders</title>")
            assert shop.find()
            assert page.title() == "Orders"

        def test_swallowed(page):
            page.goto("data:text/html,<title>Orders</title>")
            import threading
            thread = threading.Thread(target=lambda: asyncio.run(shop.swallowing()))
            thread.start()
            thread.join()
        """,
    )

    result = run(project, "--asyncsafe=raise", plugins=without("playwright"))

    result.assert_outcomes(passed=1, failed=1)
    assert set(failed(result)) == {"FAILED test_swallowed[chromium]"}


# The baseline ------------------------------------------------------------------------------------

KNOWN = """\
# asyncsafe baseline 1
shop.py::find sqlite3.connect
shop.py::gone sqlite3.connect
"""

NEW = """

def find_more():
    return sqlite3.connect(":memory:")

async def more():
    return find_more()
"""


@pytest.fixture
def with_baseline(project: pytest.Pytester) -> pytest.Pytester:
    (project.path / "baseline.txt").write_text(KNOWN)
    with (project.path / "shop.py").open("a") as file:
        file.write(NEW)
    write(
        project,
        """
        def test_known(): assert asyncio.run(shop.view())
        def test_new(): assert asyncio.run(shop.more())
        """,
    )
    return project


def entries(project: pytest.Pytester) -> list[str]:
    lines = (project.path / "baseline.txt").read_text().splitlines()
    return [line for line in lines if not line.startswith("#")]


@pytest.mark.parametrize("workers", [(), ("-n2",)])
def test_known_call_sites_pass_and_new_ones_are_refused(
    with_baseline: pytest.Pytester, workers: tuple[str, ...]
) -> None:
    result = run(with_baseline, "--asyncsafe-baseline=baseline.txt", *workers)

    result.assert_outcomes(passed=1, failed=1)
    assert set(failed(result)) == {"FAILED test_new"}
    result.stdout.fnmatch_lines(
        [
            "Baseline baseline.txt: 1 call at 1 of 2 known call sites passed.",
            "1 new call site:",
            "  shop.py::find_more sqlite3.connect",
        ],
        consecutive=True,
    )
    # Not every test has passed: what is known may be there all the same.
    assert "shop.py::gone" not in result.stdout.str()
    assert (with_baseline.path / "baseline.txt").read_text() == KNOWN


@pytest.mark.parametrize(
    ("option", "workers"),
    [("--update-baseline", ("-n2",)), ("--asyncsafe-update-baseline", ())],
)
def test_the_baseline_is_updated_and_pruned_by_whole_runs(
    with_baseline: pytest.Pytester, option: str, workers: tuple[str, ...]
) -> None:
    project = with_baseline
    arguments = ["--asyncsafe-baseline=baseline.txt", option, *workers]

    result = run(project, *arguments)

    result.assert_outcomes(passed=2)  # it refuses nothing
    assert entries(project) == [
        "shop.py::find sqlite3.connect",
        "shop.py::find_more sqlite3.connect",
        "shop.py::gone sqlite3.connect",
    ]
    result.stdout.fnmatch_lines(["1 new call site, added to it:", "1 known call site not seen in*"])

    result = run(project, *arguments, "--prune-baseline", "-k", "new")

    result.stdout.fnmatch_lines(["Nothing was taken out: tests were deselected."])
    assert len(entries(project)) == 3

    result = run(project, *arguments, "--prune-baseline", "test_shop.py::test_new")

    result.stdout.fnmatch_lines(["Nothing was taken out: it was a run of some tests."])
    assert len(entries(project)) == 3

    result = run(project, *arguments, option.replace("update", "prune"))

    assert entries(project) == [
        "shop.py::find sqlite3.connect",
        "shop.py::find_more sqlite3.connect",
    ]
    run(project, "--asyncsafe-baseline=baseline.txt", *workers).assert_outcomes(passed=2)


def test_patterns_in_testpaths_are_a_whole_run(with_baseline: pytest.Pytester) -> None:
    with_baseline.makeini("[pytest]\ntestpaths = test_*.py\n")

    run(with_baseline, "--asyncsafe-baseline=baseline.txt", "--update-baseline", "--prune-baseline")

    assert "shop.py::gone sqlite3.connect" not in entries(with_baseline)


def test_an_override_for_all_takes_nothing_out(
    with_baseline: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")

    result = run(with_baseline, "--asyncsafe-baseline=baseline.txt", "--prune-baseline")

    result.stdout.fnmatch_lines(["Nothing was taken out: DJANGO_ALLOW_ASYNC_UNSAFE allowed*"])
    assert (with_baseline.path / "baseline.txt").read_text() == KNOWN


def test_what_forbid_refuses_is_in_the_table_though_it_is_known(
    with_baseline: pytest.Pytester,
) -> None:
    with_baseline.makepyfile(
        test_forbidden="""
        import asyncio
        import asyncsafe, pytest, shop

        async def call():
            shop.find()

        async def call_forbidden():
            with asyncsafe.forbid(), pytest.raises(asyncsafe.SynchronousOnlyOperation):
                await call()

        def test_forbidden():
            asyncio.run(call())
            asyncio.run(call_forbidden())
        """
    )

    result = run(with_baseline, "--asyncsafe-baseline=baseline.txt", "test_forbidden.py")

    result.stdout.fnmatch_lines(["asyncsafe: 2 synchronous calls on the event loop*1 was refused."])


@pytest.mark.parametrize(
    "option",
    ["--collect-only", "--setup-only", "--setup-plan", "--fixtures", "--ignore=test_shop.py"],
)
def test_a_run_without_its_tests_takes_nothing_out(
    with_baseline: pytest.Pytester, option: str
) -> None:
    with_baseline.makepyfile(test_other="def test_nothing(): pass\n")

    run(with_baseline, "--asyncsafe-baseline=baseline.txt", "--prune-baseline", option)

    assert (with_baseline.path / "baseline.txt").read_text() == KNOWN


def test_the_first_baseline(with_baseline: pytest.Pytester) -> None:
    (with_baseline.path / "baseline.txt").unlink()

    result = run(with_baseline, "--asyncsafe-baseline=baseline.txt")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*asyncsafe: there is no baseline *--update-baseline*"])

    run(with_baseline, "--asyncsafe-baseline=baseline.txt", "--update-baseline").assert_outcomes(
        passed=2
    )
    assert entries(with_baseline) == [
        "shop.py::find sqlite3.connect",
        "shop.py::find_more sqlite3.connect",
    ]


def test_updating_refuses_where_it_is_told_to(with_baseline: pytest.Pytester) -> None:
    result = run(
        with_baseline,
        *("--asyncsafe=raise", "--asyncsafe-baseline=baseline.txt", "--update-baseline"),
    )

    result.assert_outcomes(passed=1, failed=1)
    assert "shop.py::find_more sqlite3.connect" in entries(with_baseline)


def test_updating_what_nobody_has_named_is_an_error(with_baseline: pytest.Pytester) -> None:
    result = run(with_baseline, "--update-baseline")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*Name it with --asyncsafe-baseline=FILE"])


def test_the_baseline_of_pyproject_toml(with_baseline: pytest.Pytester) -> None:
    (with_baseline.path / "pyproject.toml").write_text(
        '[tool.asyncsafe]\nbaseline = "baseline.txt"\n'
    )

    result = run(with_baseline, "--asyncsafe=raise")

    result.assert_outcomes(passed=1, failed=1)
    assert set(failed(result)) == {"FAILED test_new"}


def test_another_plugins_option_of_that_name_is_its_own(with_baseline: pytest.Pytester) -> None:
    with_baseline.makeconftest(
        "def pytest_addoption(parser): parser.addoption('--update-baseline', action='store_true')"
    )

    result = run(with_baseline, "--update-baseline", "--asyncsafe-baseline=baseline.txt")

    result.assert_outcomes(passed=1, failed=1)
    assert entries(with_baseline) == [
        "shop.py::find sqlite3.connect",
        "shop.py::gone sqlite3.connect",
    ]


# Runs inside a test ------------------------------------------------------------------------------


def state() -> tuple[Any, ...]:
    return (
        policy.configured(),
        [name for name in asyncsafe.installation.LIBRARIES if _installed(name)],
        [(site.violation.operation, site.calls) for site in asyncsafe.violations],
        list(exceptions.listeners),
        baseline._active if baseline._looked else None,
        policy.allow_process(None),
        list(asyncsafe.violations._keepers),
    )


def _installed(name: str) -> bool:
    return asyncsafe.installation.integration(name).installed


def test_a_run_inside_a_test_leaves_nothing_behind(
    project: pytest.Pytester, guarded: None, tmp_path: Path
) -> None:
    write(
        project,
        """
        def test_swallowed(): asyncio.run(shop.swallowing())

        @pytest.mark.allow_async_unsafe("a reason")
        def test_allowed(): asyncio.run(shop.view())
        """,
    )
    project.syspathinsert()
    asyncsafe.configure(mode="record")
    import sqlite3

    on_loop(sqlite3.connect, ":memory:").close()
    before = state()

    result = project.runpytest_inprocess(*PLAIN, "--asyncsafe=raise")

    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["asyncsafe: 2 synchronous calls on the event loop*"])
    assert state() == before


def test_a_run_inside_a_guarded_test_is_its_own(project: pytest.Pytester) -> None:
    project.makeconftest("pytest_plugins = ['pytester']")
    write(
        project,
        """
        INNER = "import asyncio, shop\\ndef test_inner(): asyncio.run(shop.swallowing())\\n"

        def test_inner_is_guarded(pytester, asyncsafe_violations):
            pytester.makepyfile(INNER)
            result = pytester.runpytest_inprocess("--asyncsafe=raise", "-p", "no:cacheprovider")
            result.assert_outcomes(failed=1)

        def test_still_guarded():
            asyncio.run(shop.swallowing())

        def test_inner_records(pytester):
            pytester.makepyfile(INNER)
            pytester.runpytest_inprocess("--asyncsafe=record").assert_outcomes(passed=1)
            with pytest.raises(SynchronousOnlyOperation):
                asyncio.run(shop.view())
        """,
    )

    result = run(project, "--asyncsafe=raise", f"--basetemp={project.path / 'inner'}", apart=True)

    assert set(failed(result)) == {"FAILED test_still_guarded"}
    summary = result.stdout.str().rpartition("= asyncsafe =")[2]
    assert "asyncsafe: 2 synchronous calls on the event loop, at 2 call sites; all" in summary


# The guide ---------------------------------------------------------------------------------------


def test_the_guides_examples_do_what_it_says(project: pytest.Pytester) -> None:
    guide = (Path(__file__).parent.parent / "docs" / "guides" / "tests.md").read_text()
    module = "\n\n".join(re.findall(r"^```python\n(.*?)^```$", guide, re.M | re.S))
    (shown,) = re.findall(r"without the xfail -->\n```\n(.*?)^```$", guide, re.M | re.S)
    path = project.path / "test_customers.py"
    path.write_text(module)

    run(project, "--asyncsafe=raise").assert_outcomes(passed=3, xfailed=1)

    path.write_text(re.sub("^@pytest.mark.xfail.*\n", "", module, flags=re.M))
    result = run(project, "--asyncsafe=raise")
    result.assert_outcomes(passed=3, failed=1)
    assert re.sub("Task-[0-9]+", "Task-1", shown) in re.sub(
        "Task-[0-9]+", "Task-1", result.stdout.str()
    )


# As installed ------------------------------------------------------------------------------------


def test_asyncsafe_run_can_run_it(project: pytest.Pytester) -> None:
    """asyncsafe is imported before pytest, which must not take that for a mistake.

    Where it is installed as a wheel: pytest reads from an editable install no list of modules.
    """
    assert "PYTEST_DONT_REWRITE" in (asyncsafe.__doc__ or "")
    write(project, "def test_view(): assert asyncio.run(shop.view())")

    result = project.run(
        *(sys.executable, "-m", "asyncsafe", "run", "-m", "pytest", *PLAIN),
        *("-W", "error::pytest.PytestAssertRewriteWarning"),
    )

    assert result.ret == 0
    result.stdout.fnmatch_lines(["*1 passed*"])
    result.stderr.fnmatch_lines(
        ["asyncsafe: 1 synchronous call on the event loop, at 1 call site*"]
    )
