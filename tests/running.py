"""Running something: on an event loop, or in a Python of its own."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def on_loop(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a synchronous function from a coroutine."""

    async def main() -> Any:
        return call(*args, **kwargs)

    return asyncio.run(main())


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
