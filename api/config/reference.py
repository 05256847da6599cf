"""Every key of the configuration, and what is written from them: commented TOML and the reference page.

Derived from the models' JSON schema, so that messages, files and documentation say what the models enforce
and cannot drift from them. Pure functions, safe on any thread.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microdiffusion.config.models import Config

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

KeyPath = tuple[str, ...]
"""Tables and name of a key: ("engine", "inr", "rank")."""

UNITS = {"um": "µm", "ms": "ms", "s": "s", "mb": "MB", "hz": "Hz", "per_min": "per minute"}
"""The unit that the last part of a key's name stands for."""

LIMITS = {
    "minimum": "of at least",
    "exclusiveMinimum": "greater than",
    "maximum": "of at most",
    "exclusiveMaximum": "below",
}
COMMENT_COLUMN = 38
WIDTH = 100

INTRODUCTION = """\
# Configuration

A configuration is a TOML file, or one of the presets that ship with mdd:

```bash
mdd serve --config my.toml
mdd serve --config bessel-2p-neurons --set sweep.step_um=10
mdd config show bessel-2p-neurons > my.toml
```

What is closer to you wins: the command line (`--set section.key=value`), then the environment
(`MDD_SECTION__KEY`, e.g. `MDD_SWEEP__STEP_UM=12` or `MDD_ENGINE__INR__WARM_STEPS=10`), then the file or
preset, then the default. `none` on the command line or in the environment empties a key that may be
empty; in a file, leave the key out. Relative paths in a file are relative to that file. The end of a
name is its unit: `_um` µm, `_ms` milliseconds, `_s` seconds, `_mb` MB, `_hz` per second.

`mdd config check FILE` names the line of anything that is unknown or impossible.

This page is written by `mdd config reference`; a test keeps it up to date.
"""


@dataclass(frozen=True, slots=True)
class Key:
    """One key.

    Attributes
    ----------
    schema : dict
        JSON schema of its value, without None.
    optional : bool
        Whether the value may be None, which TOML writes by leaving the key out.
    default : object
        As the JSON schema has it: paths are text, tuples are lists.
    """

    path: KeyPath
    schema: Mapping[str, Any]
    optional: bool
    default: Any
    description: str

    @property
    def name(self) -> str:
        """Dotted name, ``engine.inr.rank``."""
        return ".".join(self.path)

    @property
    def environment(self) -> str:
        """Name of its environment variable, ``MDD_ENGINE__INR__RANK``."""
        return "MDD_" + "__".join(self.path).upper()

    @property
    def is_path(self) -> bool:
        """Whether the value names a file or folder."""
        return self.schema.get("format") == "path"

    @property
    def is_path_list(self) -> bool:
        """Whether the value lists files or folders."""
        return bool(self.schema.get("items", {}).get("format") == "path")

    @property
    def is_text(self) -> bool:
        """Whether the value is text, also where it looks like a number."""
        return self.schema.get("type") == "string"

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that are allowed, where they are listed."""
        return tuple(self.schema.get("enum", ()))

    @property
    def unit(self) -> str:
        """Unit of the value, "" where it has none."""
        return unit_of(self.path[-1])

    @property
    def expected(self) -> str:
        """The values that are allowed, in words: "a number greater than 0, in µm"."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if self.is_path:
            return "a path in quotes"
        text = f"{_kind(self.schema)} {_limits(self.schema)}".rstrip()
        return f"{text}, in {self.unit}" if self.unit else text


def unit_of(name: str) -> str:
    """Return the unit that the end of a key's name stands for, or ""."""
    return next((unit for suffix, unit in UNITS.items() if name.endswith("_" + suffix)), "")


@cache
def keys() -> dict[KeyPath, Key]:
    """Return every key by its path, in the order of the models."""
    return {
        path: Key(
            path=path,
            schema=next(kind for kind in schema.get("anyOf", [schema]) if kind.get("type") != "null"),
            optional="anyOf" in schema,
            default=schema["default"],
            description=schema.get("description", ""),
        )
        for path, schema in _schemas().items()
        if "properties" not in schema
    }


@cache
def tables() -> dict[KeyPath, str]:
    """Return every table by its path, with its one-line description; () is the top."""
    return {
        path: schema["description"].partition("\n")[0]
        for path, schema in _schemas().items()
        if "properties" in schema
    }


def dump_toml(config: Config) -> str:
    """Return `config` as commented TOML that `load_config` reads back to the same.

    A key that is empty appears as a comment, so that the text shows every key.
    """
    lines = []
    for table in tables():
        lines += _heading(table)
        for key in _keys_of(table):
            text = _assignment(config, key)
            line = f"{text:<{COMMENT_COLUMN}}  # {key.description}"
            lines += [line] if len(line) <= WIDTH else [f"# {key.description}", text]
    return "\n".join(lines) + "\n"


def chosen_toml(config: Config, chosen: Mapping[KeyPath, str], introduction: str) -> str:
    """Return the `chosen` keys of `config` as TOML, each with its meaning and the origin of its value.

    Parameters
    ----------
    chosen : mapping
        Path of a key to a remark on its value ("from the camera"); all other keys keep their defaults.
    introduction : str
        Lines at the top, written as comments.
    """
    lines = [f"# {line}".rstrip() for line in introduction.splitlines()]
    for table in tables():
        rows = [key for key in _keys_of(table) if key.path in chosen]
        if rows:
            lines += _heading(table)
        for key in rows:
            lines += [f"# {key.description}.", f"#   here: {chosen[key.path]}", _assignment(config, key)]
    return "\n".join(lines) + "\n"


def reference_page() -> str:
    """Return the reference page in Markdown."""
    parts = [INTRODUCTION]
    for table, description in tables().items():
        heading = f"## `[{'.'.join(table)}]`\n\n{description}" if table else "## At the top of the file"
        rows = [f"| {' | '.join(_row(key))} |" for key in _keys_of(table)]
        head = "| key | default | expected | meaning |\n|---|---|---|---|"
        parts.append("\n".join([heading, "", head, *rows, ""]))
    return "\n".join(parts)


def toml_value(value: object) -> str:
    """Return `value` (bool, int, float, text, path, or a sequence of them) as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Path):
        return toml_value(value.as_posix())
    if isinstance(value, str):
        # A TOML basic string is a JSON string, but for the one control character that JSON lets through.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return f"[{', '.join(toml_value(item) for item in value)}]"
    raise TypeError(f"TOML has no value for {type(value).__name__}")


@cache
def _schemas() -> dict[KeyPath, Mapping[str, Any]]:
    schema = Config.model_json_schema()
    return dict(_walk(schema, schema["$defs"], ()))


def _walk(
    schema: Mapping[str, Any], definitions: Mapping[str, Any], path: KeyPath
) -> Iterator[tuple[KeyPath, Mapping[str, Any]]]:
    """Yield path and schema of a table, and of all tables and keys below it."""
    schema = definitions.get(schema.get("$ref", "").rpartition("/")[2], schema)
    yield path, schema
    for name, below in schema.get("properties", {}).items():
        yield from _walk(below, definitions, (*path, name))


def _keys_of(table: KeyPath) -> list[Key]:
    return [key for key in keys().values() if key.path[:-1] == table]


def _heading(table: KeyPath) -> list[str]:
    return ["", f"[{'.'.join(table)}]  # {tables()[table]}"] if table else []


def _assignment(config: Config, key: Key) -> str:
    value: Any = config
    for name in key.path:
        value = getattr(value, name)
    return f"# {key.path[-1]} =" if value is None else f"{key.path[-1]} = {toml_value(value)}"


def _row(key: Key) -> list[str]:
    default = "" if key.default is None else f"`{toml_value(key.default)}`"
    cells = (f"`{key.path[-1]}`", default, key.expected, key.description)
    return [cell.replace("|", "\\|") for cell in cells]


def _kind(schema: Mapping[str, Any]) -> str:
    kinds = {"number": "a number", "integer": "a whole number", "boolean": "true or false", "string": "text"}
    if schema["type"] != "array":
        return kinds[schema["type"]]
    items = schema["items"]
    of = {"array": "pairs of numbers", "integer": "whole numbers"}.get(items["type"], "texts")
    return f"a list of {'paths' if items.get('format') == 'path' else of}"


def _limits(schema: Mapping[str, Any]) -> str:
    """Return "from 1 to 8", "greater than 0 and below 1", ..."""
    if "pattern" in schema:
        return f"matching {schema['pattern']}"
    if "minimum" in schema and "maximum" in schema:
        words = f"from {schema['minimum']:g} to {schema['maximum']:g}"
    else:
        words = " and ".join(f"{text} {schema[limit]:g}" for limit, text in LIMITS.items() if limit in schema)
    return f"{words}, a multiple of {schema['multipleOf']}" if "multipleOf" in schema else words
