"""Printing of commands: results to stdout, what is wrong to stderr. Any thread."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from microdiffusion.text import strip_control

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def say(text: str = "", *, styled: bool = False) -> None:
    """Print to stdout; if the reader goes away (`mdd ... | head`) the command ends quietly.

    Text from files and daemons cannot send control sequences; `styled` is a text with colours of our own.
    """
    try:
        print(text if styled else strip_control(text), flush=True)
    except BrokenPipeError:
        # The interpreter flushes once more at exit, and must not stumble over the same pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None


def say_json(content: DataclassInstance | dict[str, Any], **more: object) -> None:
    """Print a dataclass or a dictionary, with more fields, as JSON."""
    values = content if isinstance(content, dict) else asdict(content)
    say(json.dumps(values | more, indent=2, ensure_ascii=False, allow_nan=False, default=str))


def complain(text: str) -> None:
    """Print to stderr."""
    print(strip_control(text), file=sys.stderr, flush=True)
