"""Forty names that are legal somewhere and go wrong somewhere: in paths, links, headers, printed commands."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import pytest

from microdiffusion.daemon.cli.dispatch import main

NAMES: dict[str, str] = {
    "percent": "100%",
    "percent-b": "a%bc",
    "percent-escape": "a%20b",
    "percent-var": "%PATH%",
    "micro": "µm",
    "greek": "γ-TRPC",
    "umlaut": "Zähler",
    "decomposed": "Za\u0308hler",
    "chinese": "光片",
    "emoji": "🔬",
    "right-to-left": "a\u202eb",
    "arabic": "مجهر",
    "zero-width": "a\u200bb",
    "no-break-space": "a\u00a0b",
    "apostrophe": "O'Brien",
    "quote": 'a "b"',
    "both-quotes": "a'b\"c",
    "space": "my run",
    "spaces": "  two  ",
    "newline": "new\nline",
    "tab": "tab\tname",
    "return": "a\rb",
    "escape": "a\x1b[31mb",
    "dash": "-name",
    "dashes": "--help",
    "dot-end": "name.",
    "dots": "a..b",
    "hidden": ".hidden",
    "con": "CON",
    "nul": "NUL.txt",
    "surrogate": "a\udcffb",
    "hash": "a#b",
    "ampersand": "a&b",
    "less": "a<b>c",
    "semicolon": "a;b",
    "dollar": "$HOME",
    "backtick": "a`id`b",
    "star": "a*b?",
    "bracket": "a[0]b",
    "backslash": "a\\nb",
    "long": "n" * 180,
}


def cases(*fast: str) -> list[Any]:
    """Return the names as parameters, slow ones but for those whose keys are given."""
    return [
        pytest.param(name, id=key, marks=() if key in fast else pytest.mark.slow)
        for key, name in NAMES.items()
    ]


def folder_of(tmp_path: Path, name: str) -> Path:
    """Return a folder of that name; skip where the system has none such."""
    folder = tmp_path / name
    try:
        folder.mkdir()
    except (OSError, ValueError) as error:
        pytest.skip(f"no such name here: {error}")
    return folder


def mdd(*words: object) -> tuple[int, str]:
    """Run a command as in a terminal, which is UTF-8 and strict; return its exit code and what it says."""
    out = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="strict")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = main([str(word) for word in words])
    out.flush()
    return code, out.buffer.getvalue().decode()
