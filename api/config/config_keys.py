"""Every key of the configuration, with the words that describe it.

Derived from the models' JSON schema, so that messages, the commented TOML and the reference page say
what the models enforce, and cannot drift from them. Pure functions, safe on any thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from microdiffusion.config.models import Config

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

UNITS = {"um": "µm", "ms": "ms", "s": "s", "mb": "MB", "hz": "Hz", "per_min": "per minute"}
"""What a key's last part says about its unit."""

Path_ = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Key:
    """One key.

    Attributes
    ----------
    path : tuple of str
        Tables and name, ("engine", "inr", "rank").
    schema : dict
        JSON schema of its value, without None.
    optional : bool
        Whether the value may be None, which TOML writes by leaving the key out.
    default : object
        As the JSON schema has it: paths are text, tuples are lists.
    description : str
    """

    path: Path_
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
        """What a value has to be, in words: "a number greater than 0, in µm"."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if self.is_path:
            return "a path in quotes"
        words = _kind(self.schema)
        limits = _limits(self.schema)
        text = f"{words} {limits}" if limits else words
        return f"{text}, in {self.unit}" if self.unit else text


def unit_of(name: str) -> str:
    """Return the unit that the end of a key's name says, or ""."""
    return next((unit for suffix, unit in UNITS.items() if name.endswith("_" + suffix)), "")


@cache
def keys() -> dict[Path_, Key]:
    """Return every key by its path, in the order of the models."""
    schema = Config.model_json_schema()
    return {key.path: key for key in _walk(schema, schema["$defs"], ())}


@cache
def tables() -> dict[Path_, str]:
    """Return every table by its path, with its one-line description; () is the top."""
    schema = Config.model_json_schema()
    return dict(_tables(schema, schema["$defs"], ()))


def _walk(table: Mapping[str, Any], definitions: Mapping[str, Any], above: Path_) -> Iterator[Key]:
    for name, schema in table["properties"].items():
        path = (*above, name)
        if "$ref" in schema:
            yield from _walk(_resolved(schema, definitions), definitions, path)
            continue
        kinds = [kind for kind in schema.get("anyOf", [schema]) if kind.get("type") != "null"]
        yield Key(
            path=path,
            schema=kinds[0],
            optional=len(kinds) < len(schema.get("anyOf", [schema])),
            default=schema["default"],
            description=schema.get("description", ""),
        )


def _tables(
    table: Mapping[str, Any], definitions: Mapping[str, Any], above: Path_
) -> Iterator[tuple[Path_, str]]:
    yield above, table.get("description", "").partition("\n")[0]
    for name, schema in table["properties"].items():
        if "$ref" in schema:
            yield from _tables(_resolved(schema, definitions), definitions, (*above, name))


def _resolved(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    resolved: Mapping[str, Any] = definitions[schema["$ref"].rpartition("/")[2]]
    return resolved


def _kind(schema: Mapping[str, Any]) -> str:
    kind = schema["type"]
    if kind == "array":
        items = schema["items"]
        of = {"array": "pairs of numbers", "integer": "whole numbers"}.get(items["type"], "texts")
        return f"a list of {'paths' if items.get('format') == 'path' else of}"
    return {"number": "a number", "integer": "a whole number", "boolean": "true or false", "string": "text"}[
        kind
    ]


def _limits(schema: Mapping[str, Any]) -> str:
    """Return "from 1 to 8", "greater than 0 and below 1", ..."""
    if "pattern" in schema:
        return f"matching {schema['pattern']}"
    if "minimum" in schema and "maximum" in schema:
        words = f"from {schema['minimum']:g} to {schema['maximum']:g}"
    else:
        limits = (
            ("minimum", "of at least"),
            ("exclusiveMinimum", "greater than"),
            ("maximum", "of at most"),
            ("exclusiveMaximum", "below"),
        )
        words = " and ".join(f"{text} {schema[limit]:g}" for limit, text in limits if limit in schema)
    if "multipleOf" in schema:
        words += f", a multiple of {schema['multipleOf']}"
    return words.strip(", ")
