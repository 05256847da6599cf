"""A catalogue as a table of pandas. Pure; any thread."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, fields
from importlib import import_module
from typing import Any

from microdiffusion.errors import DependencyError
from microdiffusion.runfile import RunEntry


def to_pandas(runs: Iterable[RunEntry]) -> Any:
    """Return runs as a pandas.DataFrame: a row each, a column for each attribute of `RunEntry`.

    `created_utc` is a time with its zone (NaT where it is unknown).

    >>> to_pandas(list_runs("runs")).query("state == 'closed'").written.sum()   # doctest: +SKIP

    Raises
    ------
    DependencyError
        pandas is not installed; the message has the install line.
    """
    try:
        pandas: Any = import_module("pandas")
    except ImportError as error:
        raise DependencyError(
            'This needs pandas: python -m pip install "microdiffusion-daemon[pandas]".'
        ) from error
    columns = [each.name for each in fields(RunEntry)]
    table = pandas.DataFrame([asdict(run) for run in runs], columns=columns)
    table["created_utc"] = pandas.to_datetime(
        table["created_utc"], errors="coerce", utc=True, format="ISO8601"
    )
    return table
