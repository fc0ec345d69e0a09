"""Running something: on an event loop, or in a Python of its own."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import asyncsafe


def on_loop(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a synchronous function from a coroutine."""

    async def main() -> Any:
        return call(*args, **kwargs)

    return asyncio.run(main())


def in_thread(call: Callable[..., Any], *args: Any) -> Any:
    """Call a synchronous function in a thread for which a coroutine waits."""

    async def main() -> Any:
        return await asyncio.to_thread(call, *args)

    return asyncio.run(main())


def refused(call: Callable[..., Any]) -> asyncsafe.Violation:
    """Call it from a coroutine, where it must be refused. Returns what is told of it."""
    with pytest.raises(asyncsafe.SynchronousOnlyOperation) as caught:
        on_loop(call)
    return caught.value.violation


def python(code: str, cwd: Path, *options: str, **environment: str) -> Any:
    """Run `code` in another process, which must end well. Returns its stdout and stderr."""
    result = subprocess.run(
        [sys.executable, *options, "-c", code],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result
