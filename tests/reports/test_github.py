"""Annotations: one command a line, whatever stands in them."""

from __future__ import annotations

from asyncsafe.reports import github

from .making import HOSTILE, allowed, hostile, place, refused, report, sharing, site


def test_each_site_is_a_command_at_its_line() -> None:
    told = github.render(
        report(site(1), refused(2), allowed(3, "fast"), sharing(4)), "/app"
    ).splitlines()

    assert [line.partition(" ")[0] for line in told] == [
        "::warning",
        "::error",
        "::notice",
        "::error",
    ]
    assert told[0] == (
        "::warning file=orders/queries_1.py,line=1,"
        "title=sqlite3.Cursor.execute() blocks the event loop::"
        "2 calls blocked it for 6.0 ms, 4.0 ms at worst; 5 tasks or callbacks waited."
        "%0ASELECT total FROM orders_1"
        "%0AUnder async list_orders(), orders/views.py:42."
        "%0AWrite instead: await asyncsafe.database_sync_to_async(find_1)(...)"
    )
    assert "%0AAllowed: fast%0A" in told[2]


def unescape(text: str) -> str:
    """As the runner does it (actions/runner, ActionCommand.cs)."""
    for code, character in {"%0D": "\r", "%0A": "\n", "%3A": ":", "%2C": ",", "%25": "%"}.items():
        text = text.replace(code, character)
    return text


def test_what_is_hostile_ends_no_property_and_no_line() -> None:
    strange = site(call_site=place("/app/a,line=9::b%0A.py", 1, "f"))
    first, second = github.render(report(hostile(1), strange), "/app").splitlines()

    properties, _, message = first.removeprefix("::warning ").partition("::")
    named = dict(part.split("=", 1) for part in properties.split(","))
    assert named.keys() == {"file", "line", "title"}
    assert unescape(named["file"]) == f"{HOSTILE}.py"
    assert HOSTILE in unescape(message)
    assert second.startswith("::warning file=a%2Cline=9%3A%3Ab%250A.py,line=1,title=")


def test_nothing_to_tell_is_told_by_nothing() -> None:
    assert github.render(report(), "/app") == ""
