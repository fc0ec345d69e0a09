"""What the author of a blocking call is told."""

from __future__ import annotations

import os

from .stacks import working_directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .lifespan import Phase
    from .violation import Frame, Violation


def no_cell(filename: str) -> str | None:
    """Tell that no file is a cell: what `cell_name` is where there are none."""
    return None


#: Called with a file's name: what the user calls it if it is a notebook's cell, "Cell In[3]".
cell_name: Callable[[str], str | None] = no_cell

#: What Django's own guards say, which tests compare.
DJANGO_SAYS = "You cannot call this from an async context - use a thread or sync_to_async."


def describe(violation: Violation) -> str:
    """The whole message: headline, statement, where, under what, how to mend it."""
    parts = [headline(violation)]
    if violation.statement:
        parts.append(f"    {violation.statement}")
    parts.append("\n".join(_places(violation)))
    parts.append("\n".join(_fixes(violation)))
    return "\n\n".join(parts)


def headline(violation: Violation) -> str:
    """The operation and the loop, in a line."""
    if violation.headline:
        return violation.headline
    if violation.begun_by:
        return (
            f"{violation.operation}() was called on a connection that has an open transaction of "
            f"{violation.begun_by}."
        )
    loop = "Twisted" if violation.loop == "twisted" else violation.loop
    if violation.loop_type:
        loop = f"{loop}, {violation.loop_type}"
    verb = "was called" if violation.outcome == "raised" else "blocks: it was called"
    when = f", {during(violation.phase)}" if violation.phase else ""
    if violation.importing:
        when += f", while importing {violation.importing}"
    if violation.subject:
        return f"{violation.subject} from a running event loop ({loop}){when}."
    return f"{violation.operation}() {verb} from a running event loop ({loop}){when}."


def during(phase: Phase) -> str:
    """When an ASGI server's start-up or shutdown is."""
    return "during start-up" if phase == "startup" else "during shutdown"


def place(frame: Frame) -> str:
    """File and line, as short as the working directory allows."""
    return f"{shorten(frame.filename)}:{frame.lineno}"


def shorten(filename: str) -> str:
    """The path from the working directory, or within the folder of installed packages."""
    if (cell := cell_name(filename)) is not None:
        return cell
    installed = within_packages(filename)
    if installed is not None:
        return installed
    try:
        return filename.removeprefix(working_directory().rstrip(os.sep) + os.sep)
    except OSError:  # it is gone
        return filename


def within_packages(filename: str) -> str | None:
    """The path within the folder of installed packages; None where it isn't in one."""
    for packages in ("site-packages", "dist-packages"):
        _, found, rest = filename.rpartition(f"{os.sep}{packages}{os.sep}")
        if found:
            return rest
    return None


def function(frame: Frame) -> str:
    """The function's name as it is called: without the functions that it is defined in."""
    name = frame.function.rpartition("<locals>.")[2]
    if name == "<module>":
        return "the module's own code" if cell_name(frame.filename) is None else "the cell itself"
    return f"async {name}()" if frame.asynchronous else f"{name}()"


def _places(violation: Violation) -> list[str]:
    site = violation.call_site
    lines = [f"    at     {place(site)} in {function(site)}"]
    under = violation.coroutine
    task = f"      task {violation.task!r}" if violation.task else ""
    if under is None and violation.begun_by:
        lines[0] += task
    elif under is None:
        lines.append("    under  a callback of the event loop")
    elif under == site:
        lines[0] += task
    else:
        lines.append(f"    under  {place(under)} in {function(under)}{task}")
    if violation.begun_at:
        begun = violation.begun_at
        lines.append(f"    begun  {place(begun)} in {function(begun)}      {violation.begun_by}")
    if violation.whole_stack:
        lines += ["", "  No frame on the stack is your own code's. All of it, innermost first:"]
        lines += [f"    {place(frame)} in {function(frame)}" for frame in violation.whole_stack]
    return lines


def _fixes(violation: Violation) -> list[str]:
    if violation.begun_by:
        share = 'connections["default"]' if violation.library == "django" else "connection"
        return [
            f"  Give each its own:   {fix(violation)}",
            f"  or let them share:   asyncsafe.exempt({share})",
        ]
    if violation.importing:
        lines = [f"  Import it earlier:   {fix(violation)}"]
    elif violation.subject and violation.hint and not _is_in_thread(violation.hint):
        lines = [
            f"  Write instead:       {violation.hint}",
            f"  or in a thread:      {_thread_fix(violation)}",
        ]
        if _first_call(violation) is not None and "await " in violation.hint:
            # It can't stand in that line, which is a synchronous function's.
            lines = [
                f"  Run it in a thread:  {_thread_fix(violation)}",
                f"  or, in a coroutine:  {violation.hint}",
            ]
    else:
        lines = [f"  Run it in a thread:  {fix(violation)}"]
    lines.append('  or allow it here:    with asyncsafe.allow("..."):')
    if violation.library == "django":
        lines += ["", f"  {DJANGO_SAYS}"]
    return lines


def _is_in_thread(hint: str) -> bool:
    return hint.startswith("await asyncsafe.database_sync_to_async(")


def fix(violation: Violation) -> str:
    """What to write instead, in a line."""
    if violation.begun_by and violation.library == "django":
        return "no connection of Django's before the tasks that use it are started"
    if violation.begun_by:
        return 'asyncsafe.ConnectionHandler({"default": ...})["default"], in each task'
    if violation.hint and not violation.importing and _first_call(violation) is None:
        return violation.hint
    return _thread_fix(violation)


def _thread_fix(violation: Violation) -> str:
    if violation.importing:
        return f"import {violation.importing} before the event loop starts"
    entry = _first_call(violation)
    if entry is not None:
        return f"await asyncsafe.database_sync_to_async({entry})(...)"
    # check() without a name is named after the function that it stands in: no name to call.
    if violation.library is None and violation.operation != violation.call_site.function:
        name = violation.operation.rpartition(".")[2]
        return f"await asyncsafe.database_sync_to_async({name})(...)"
    return "await asyncsafe.database_sync_to_async(f)(...), these lines being moved to a function f"


def _first_call(violation: Violation) -> str | None:
    """The synchronous function that the coroutine (or the loop) called, on the way to the call."""
    entry = None
    for frame in violation.stack:
        if frame.asynchronous:
            break
        entry = frame
    if entry is None or "<" in entry.function.rpartition("<locals>.")[2]:
        return None
    return entry.function.rpartition("<locals>.")[2]
