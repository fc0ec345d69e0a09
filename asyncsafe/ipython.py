"""%load_ext asyncsafe: cells may use the database; the tasks that they start may not.

A Jupyter kernel runs cells on its event loop, each in a task of its own; IPython in a terminal runs
those that await so. What a cell does itself keeps nobody waiting but who started it: it is allowed,
as by `allow()`, which holds for the cell's task alone. And all cells are one owner of connections:
a transaction that one of them begins is committed by another.
"""

from __future__ import annotations

import os
import sys
import threading
from contextlib import ExitStack
from weakref import WeakKeyDictionary

from . import loops, messages, owners, policy
from .installation import LIBRARIES, install, integration, uninstall
from .recorder import violations
from .reports import text
from .reports.reading import report_of_this_process
from .reports.wording import seconds
from .scopes import allow
from .stacks import call_chain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from IPython.core.interactiveshell import InteractiveShell

#: Why its calls are allowed, as it stands in the record of each.
REASON = "a notebook cell"


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Guard every supported library, let cells through, and bring %asyncsafe."""
    if shell not in _loaded:
        extension = _Extension(shell)
        extension.load()
        _loaded[shell] = extension


def unload_ipython_extension(shell: InteractiveShell) -> None:
    """Put everything back: guards, mode and magic are as they were before."""
    extension = _loaded.pop(shell, None)
    if extension is not None:
        extension.unload()


class _Extension:
    """What %load_ext has changed in a shell."""

    def __init__(self, shell: InteractiveShell) -> None:
        self._shell = shell
        self._installed: list[str] = []
        #: The mode that configure() had set before %asyncsafe did; () while that hasn't.
        self._configured: tuple[policy.Mode | None, ...] = ()

    def load(self) -> None:
        before = {name for name in LIBRARIES if integration(name).installed}
        install()
        self._installed = [name for name in LIBRARIES if name not in before]
        shell = self._shell
        # Not pre_run_cell: what is run without being shown (an IDE's list of variables) and the
        # callbacks of widgets are the notebook's code as well.
        shell.events.register("pre_execute", _begin_cell)
        shell.events.register("post_execute", _end_cell)
        shell.magics_manager.register_function(self.magic, "line", "asyncsafe")
        messages.cell_name = self.cell_name
        for _ in range(_cells_on_the_stack()):  # whose pre_execute is past
            _begin_cell()
        if note := _note_on_override():
            _say(note)

    def unload(self) -> None:
        shell = self._shell
        shell.events.unregister("pre_execute", _begin_cell)
        shell.events.unregister("post_execute", _end_cell)
        while _cells.under_way:
            _end_cell()
        magics = shell.magics_manager
        magics.magics["line"].pop("asyncsafe", None)  # there is no way to unregister one
        vars(magics.user_magics).pop("asyncsafe", None)
        messages.cell_name = messages.no_cell
        if self._configured:
            policy.configure(mode=self._configured[0])
        if self._installed:
            uninstall(*self._installed)
        _cells.owner.release(everything=True)

    def cell_name(self, filename: str) -> str | None:
        """What IPython's tracebacks call a cell: "Cell In[3]"."""
        name = self._shell.compile.format_code_name(filename)
        return None if name is None else " ".join(name)

    def magic(self, line: str) -> None:
        """Show or set what becomes of synchronous calls on the event loop.

        %asyncsafe         the mode, and what was recorded
        %asyncsafe MODE    set it, for tasks and callbacks: raise, warn, record or off
        %asyncsafe report  what blocked the event loop, worst first
        """
        argument = line.strip()
        if argument == "report":
            _say(_report())
        elif argument:
            self._set_mode(argument)
        else:
            _say(_status())

    def _set_mode(self, argument: str) -> None:
        from IPython.core.error import UsageError

        before, where = policy.current_mode()
        for mode in policy.MODES:
            if mode == argument:
                policy.configure(mode=mode)
                break
        else:
            known = ", ".join(policy.MODES)
            raise UsageError(f"%asyncsafe takes {known} or report, not {argument!r}")
        if not self._configured:
            self._configured = (before if where == "configure()" else None,)
        _say(f"mode: {mode}")


_loaded: WeakKeyDictionary[Any, _Extension] = WeakKeyDictionary()


# Cells ------------------------------------------------------------------------------------------


class _Cells(threading.local):
    """Of a thread: Jupyter's subshells have one each."""

    def __init__(self) -> None:
        self.owner = owners.Owner("the notebook", lasting=True)
        #: Innermost last: a cell runs others, as %run and a widget's callback do.
        self.under_way: list[ExitStack] = []


_cells = _Cells()


def _begin_cell() -> None:
    cell = ExitStack()
    running = loops.find_running()
    task = loops.current_task(running)
    if running is not None:
        cell.enter_context(allow(REASON))
    if task is None or running is None or running[0] == "curio":  # which doesn't show its tasks
        cell.enter_context(owners.acting_for(_cells.owner, lent=False))
    else:
        owners.stand_for(_cells.owner, task)
    _cells.under_way.append(cell)


def _end_cell() -> None:
    # It may have been begun in a task that has ended by now: that of a cell that awaits.
    if _cells.under_way:
        _cells.under_way.pop().close()


def _cells_on_the_stack() -> int:
    """How many cells are being run by this call chain: what is called from a cell, from one."""
    from IPython.core.interactiveshell import InteractiveShell

    run_cell = InteractiveShell.run_cell_async.__code__
    return sum(frame.f_code is run_cell for frame in call_chain(sys._getframe(1)))


# %asyncsafe -------------------------------------------------------------------------------------


def _status() -> str:
    mode, source = policy.current_mode()
    guarded = filter(_is_guarded, LIBRARIES)
    calls = sum(site.calls for site in violations)
    refused = sum(site.outcomes.get("raised", 0) for site in violations)
    lines = [
        f"mode: {mode} ({source})",
        "cells may use the database; the tasks and callbacks that they start go by the mode",
        f"guarded: {', '.join(guarded) or 'nothing that is imported yet'}",
        f"recorded: {calls:,} calls, {refused:,} of them refused (%asyncsafe report)",
    ]
    return "\n".join([*lines, *filter(None, [_note_on_override()])])


def _is_guarded(name: str) -> bool:
    """Whether some of its modules are imported, and guarded."""
    library = integration(name)
    modules = {module for module in library.operations if not module.startswith(f"{__package__}.")}
    return library.installed and not modules.isdisjoint(sys.modules)


def _note_on_override() -> str | None:
    name = policy.DJANGO_VARIABLE
    value = os.environ.get(name)
    if not value:
        return None
    return f"{name}={value} allows tasks, too: del os.environ[{name!r}] has them guarded"


def _report() -> str:
    report = report_of_this_process()
    cells = [site for site in report["sites"] if _is_of_cells(site)]
    others = [site for site in report["sites"] if not _is_of_cells(site)]
    told = text.render({**report, "sites": others})
    if cells:
        calls = sum(site["calls"] for site in cells)
        took = seconds(sum(site["seconds"] for site in cells))
        told += f"\nCalls of the cells themselves: {calls:,}, {took}.\n"
    return told


def _is_of_cells(site: dict[str, Any]) -> bool:
    return bool(site["reason"] == REASON and site["outcomes"]["allowed"] == site["calls"])


def _say(what: str) -> None:
    print(what.rstrip("\n"))  # noqa: T201
