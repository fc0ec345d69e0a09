"""In which formats a report can be written, and the writing of it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import tempfile
from pathlib import Path

from ..exceptions import AsyncsafeError
from . import github, json, sarif, text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class MissingExtra(AsyncsafeError, ImportError):  # noqa: N818  (it names what is missing)
    """What a format is written with isn't installed; the message tells how to install it."""


def _text(report: dict[str, Any], root: str) -> str:
    return text.render(report)


def _json(report: dict[str, Any], root: str) -> str:
    return json.render(report)


def _html(report: dict[str, Any], root: str) -> str:
    from . import html

    return html.render(report, root)


#: Each is called with the report and the folder that paths are relative to.
FORMATS: dict[str, Callable[[dict[str, Any], str], str]] = {
    "text": _text,
    "json": _json,
    "sarif": sarif.render,
    "github": github.render,
    "html": _html,
}
_ENDINGS = {".txt": "text", ".json": "json", ".sarif": "sarif", ".html": "html", ".htm": "html"}


def format_of(path: str) -> str | None:
    """The format that a file's name tells, or None."""
    if path.lower().endswith(".sarif.json"):
        return "sarif"
    return _ENDINGS.get(Path(path).suffix.lower())


def require(name: str) -> None:
    """Raise MissingExtra where a report can't be written in this format."""
    if name == "html" and importlib.util.find_spec("jinja2") is None:
        raise MissingExtra("the HTML page needs jinja2: pip install 'asyncsafe[cli]'")


def check_file(option: str, path: str) -> None:
    """Raise NotADirectoryError or MissingExtra where `write_file` couldn't write this file."""
    if not Path(path).resolve().parent.is_dir():
        raise NotADirectoryError(f"{option} {path}: there is no such directory")
    require(format_of(path) or "json")


def write_file(path: str, report: dict[str, Any], root: str) -> None:
    """Write the report in the format that the file's name ends in, else as JSON. Raises OSError."""
    write(Path(path), FORMATS[format_of(path) or "json"](report, root))


def write(path: Path, content: str) -> None:
    """Write a file, or leave the one that is there as it was. Raises OSError."""
    # File names needn't be UTF-8, and statements may have half a surrogate pair; the file is UTF-8.
    data = content.encode("utf-8", "backslashreplace")
    if path.exists() and not path.is_file():  # /dev/stdout, whose link leads nowhere, or a pipe
        path.write_bytes(data)
        return
    path = path.resolve()
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, path.stat().st_mode if path.exists() else 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
