"""Write docs/integrations.md from the integrations themselves: python docs/integrations_table.py"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from asyncsafe.installation import LIBRARIES, OPTIONAL, Integration, integration

PAGE = Path(__file__).parent / "integrations.md"

HEAD = """\
# What is guarded, and what isn't

<!-- Written by docs/integrations_table.py: change the integrations, and run it. -->

`asyncsafe.install()` guards the libraries of this table, each when it is imported. Those of the
second one are guarded where they are asked for, by `install("{optional}")`. What you
[bring yourself](guides/library-author.md) is guarded like them.

Guarded are operations that do I/O, at the entry of the public call. A call of theirs that does none
passes: a fetch from a result that the client has, `close()` on what is closed, `commit()` outside of
a transaction. In worker threads everything passes.
"""


def page() -> str:
    """The page, as Markdown."""
    parts = [HEAD.format(optional=OPTIONAL[0])]
    for title, names in {"By `install()`": LIBRARIES, "On demand": OPTIONAL}.items():
        parts += [f"## {title}\n", _overview([integration(name) for name in names])]
    parts.append("## Library by library\n")
    parts += [_section(integration(name)) for name in (*LIBRARIES, *OPTIONAL)]
    return "\n".join(parts)


def _overview(integrations: list[Integration]) -> str:
    rows = [
        "| library | versions tested | operations guarded | exempt | not guarded |",
        "|---|---|---|---|---|",
    ]
    for one in integrations:
        count = sum(len(operations) for _, operations in _operations(one))
        cells = [
            f"[`{one.name}`](#{_anchor(one)})",
            _versions(one),
            str(count),
            "; ".join(one.exempt) or "—",
            "; ".join(one.not_guarded) or "—",
        ]
        rows.append(_row(cells))
    return "\n".join(rows) + "\n"


def _section(one: Integration) -> str:
    lines = [f"({_anchor(one)})=", f"### `{one.name}`", ""]
    lines += [f"Tested with {_versions(one)}.", ""] if one.tested else []
    lines += ["| | refused on the loop |", "|---|---|"]
    lines += [
        _row([f"`{owner}`", ", ".join(f"`{name}`" for name in names)])
        for owner, names in _operations(one)
    ]
    for title, entries in {"Exempt": one.exempt, "Not guarded": one.not_guarded}.items():
        lines += _reasons(title, entries)
    return "\n".join(lines) + "\n"


def _reasons(title: str, entries: Mapping[str, str]) -> Iterator[str]:
    if entries:
        yield from ["", f"{title}:", ""]
        yield from (f"- {what}: {why}" for what, why in entries.items())


def _operations(one: Integration) -> list[tuple[str, list[str]]]:
    """The names of its operations as messages tell them, by what they are of. Each counts once."""
    found: dict[str, dict[str, None]] = {}
    for classes in one.operations.values():
        for class_name, operations in classes.items():
            of = ".".join(filter(None, (one.name, class_name)))
            for operation in operations:
                called = operation.called or f"{of}.{operation.name}"
                owner, _, name = called.rpartition(".")
                name += " = ..." if operation.setter else ""
                found.setdefault(owner, {})[name] = None
    return [(owner, list(names)) for owner, names in found.items()]


def _versions(one: Integration) -> str:
    return ", ".join(one.tested) or "—"


def _anchor(one: Integration) -> str:
    return f"guarded-{one.name.replace('.', '-')}"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{PAGE} is written.\n")
