"""Sphinx: `sphinx-build -W docs docs/_build`. The pages are Markdown (MyST); the reference is made of docstrings."""

from __future__ import annotations

import inspect
import re
from typing import Any

import asyncsafe

project = "asyncsafe"
author = "The asyncsafe authors"
copyright = "The asyncsafe authors"
release = version = asyncsafe.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"asyncsafe {release}"
html_static_path: list[str] = []

# What stands in single backticks in a docstring is code, and not always a name that exists.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True

_ITEM = re.compile(r"(\w+(?:, \w+)*): (.*)")


def _list_parameters(
    app: object, what: str, name: str, obj: Any, options: object, lines: list[str]
) -> None:
    """Make fields of the docstrings' own form: `name: what it is`, at the margin."""
    if what not in {"function", "method", "class"}:
        return
    try:
        parameters = set(inspect.signature(obj).parameters)
    except (TypeError, ValueError):
        return
    told: list[str] = []
    in_fields = False
    for line in lines:
        found = _ITEM.fullmatch(line)
        is_field = found is not None and set(found[1].split(", ")) <= parameters
        # A field list is a block of its own.
        if told and told[-1] and line and not line.startswith(" ") and is_field != in_fields:
            told.append("")
        if not line.startswith(" "):
            in_fields = is_field
        told.append(f":param {found[1]}: {found[2]}" if found and is_field else line)
    lines[:] = told


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", _list_parameters)
