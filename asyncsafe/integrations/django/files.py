"""Django's files and its storage in the file system."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...tables import Integration, Operation
from . import TESTED
from .hints import tell

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def _of(kind: str, *names: str) -> list[Operation]:
    return [Operation(name, called=f"django.files.{kind}.{name.lstrip('_')}") for name in names]


def _is_on_disk(file: Any, *args: object, **kwargs: object) -> bool:
    """Not an upload that is held in memory, nor a ContentFile."""
    from io import BytesIO, StringIO

    held = file
    while hasattr(held, "__dict__") and "chunks" in dir(type(held)):
        # A field's file is a property, which opens it.
        held = vars(held).get("_file", vars(held).get("file"))
    return not isinstance(held, (BytesIO, StringIO))


def _asked_at_the_call(chunks: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """A generator's guard is asked at each step, and isn't told of which file that is."""

    def asked(self: Any, chunk_size: int | None = None) -> Iterator[Any]:
        return chunks(self, chunk_size)

    asked.__name__, asked.__qualname__ = chunks.__name__, chunks.__qualname__
    asked.__module__, asked.__doc__ = chunks.__module__, chunks.__doc__
    return asked


integration: Integration = Integration(
    "django.files",
    {
        "django.core.files.storage.filesystem": {
            "FileSystemStorage": _of(
                "FileSystemStorage",
                *("_open", "_save", "delete", "exists", "listdir", "size"),
                *("get_accessed_time", "get_created_time", "get_modified_time"),
            ),
        },
        "django.core.files.base": {
            "File": [
                Operation("open", called="django.files.File.open", does_block=_is_on_disk),
                Operation(
                    "chunks",
                    called="django.files.File.chunks",
                    does_block=_is_on_disk,
                    adapt=_asked_at_the_call,
                ),
            ],
        },
    },
    describe=tell,
    distributions=("Django",),
    tested=TESTED,
    exempt={
        "uploads in memory, `ContentFile`": "they are in memory",
    },
    not_guarded={
        "`FieldFile.read()` and `write()` of an open file": "a file of Python's: each call is short, and a loop of them is told at `open()`",
    },
)
