"""The table: what a terminal shows."""

from __future__ import annotations

from asyncsafe.reports import text

from .making import hostile, place, report, site


def test_names_of_the_programs_neither_end_a_line_nor_reach_the_terminal() -> None:
    at = place("/app/one\x1b[2Jtwo\nthree\x85.py", 3, "find\r")
    told = text.render(report(site(1, call_site=at), hostile(2)))

    assert all(character == "\n" or character.isprintable() for character in told)
    assert r"one\x1b[2Jtwo\nthree\x85.py:3 find\r()" in told
    plain = text.render(report(site(1), site(2)))
    assert told.count("\n") == plain.count("\n")


def test_one_call_was_refused_and_two_were() -> None:
    def told(refused: int) -> str:
        outcomes = {"raised": refused, "warned": 0, "recorded": 2, "allowed": 0}
        return text.render(report(site(1, calls=2 + refused, outcomes=outcomes)))

    assert "; 1 was refused.\n" in told(1)
    assert "; 2 were refused.\n" in told(2)
