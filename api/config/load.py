"""Loading of a configuration: file, environment and command line become one checked `Config`.

Precedence: command line > environment (``MDD_SECTION__KEY``) > file or preset > default. Every value
remembers its source, so a refusal names the file and line, the variable or the option, says what was
expected and what came, and suggests the closest key that exists. Relative paths in a file are relative
to that file, all others to the working folder. Pure functions, safe on any thread.
"""

from __future__ import annotations

import json
import math
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from microdiffusion.config.calibration import read_beam, read_camera
from microdiffusion.config.checks import check_geometry, missing_inputs
from microdiffusion.config.models import Config
from microdiffusion.config.reference import Key, KeyPath, keys, tables, toml_value, unit_of
from microdiffusion.errors import ConfigError, GeometryError, MissingFileError, UserError
from microdiffusion.text import did_you_mean, encodable

CALIBRATED = {"sweep": ("length_um",), "camera": ("offset", "gain", "read_noise")}
"""Keys of a table whose values its calibration file has."""

REPLACES: dict[KeyPath, tuple[str, ...]] = {
    ("sweep", "step_um"): ("overlap",),
    ("sweep", "overlap"): ("step_um",),
    ("sweep", "length_um"): ("calibration",),
    ("sweep", "axial_profile"): ("calibration",),
    ("sweep", "calibration"): ("axial_profile", *CALIBRATED["sweep"]),
    ("camera", "calibration"): CALIBRATED["camera"],
}
"""Keys that say the same thing in another way: one that is closer to the user removes these of its table."""

REMOVED: dict[KeyPath, str] = {("engine", "network"): "one network ships now; engine.weights names another"}
"""Keys of earlier versions, and what to do without them."""

_MULTI_LINE_TEXT = re.compile(r'("""|\'\'\').*?\1', re.DOTALL)
_STATEMENT = re.compile(r"\s*(?P<table>\[+)?\s*(?P<name>[\w.\"'\t -]+?)\s*[]=]")
_ANY_UNIT = re.compile(r"_(nm|um|mm|us|ms|s|min|hz|khz|kb|mb|gb|bytes|pixels|px)$")


@dataclass(frozen=True, slots=True)
class Given:
    """A value that the user gave, the source that it was given in, and its line there (0: it has none)."""

    value: Any
    source: str
    line: int = 0

    @property
    def origin(self) -> str:
        """The place of the value: "demo.toml, line 12"."""
        return f"{self.source}, line {self.line}" if self.line else self.source


def load_config(
    source: str | Path | None = None,
    *,
    overrides: Mapping[str, object] | None = None,
    implied: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Config:
    """Return the checked configuration.

    Parameters
    ----------
    source
        A TOML file, the name of a preset (see `presets`), or None for the defaults.
    overrides : mapping
        Dotted key to value, from the command line; text is read as TOML where the key is not text, and
        ``none`` empties a key that may be empty.
    implied : mapping
        The same, between the environment and `overrides`: what the command itself begins with, such as the
        configuration of the run that is resumed.
    environ
        None: the process's environment.

    Raises
    ------
    ConfigError
        Not TOML, an unknown key, a wrong type or unit, an impossible value; one line per problem.
    MissingFileError
        The file, or a file that it names, does not exist.
    """
    text, label, folder = _read(source)
    layers = [
        _from_toml(text, label, folder),
        _from_environment(os.environ if environ is None else environ),
        _from_mapping(implied or {}, "the command's own"),
        _from_mapping(overrides or {}, "command line"),
    ]
    given: dict[KeyPath, Given] = {}
    for layer in layers:
        for path in layer:
            for name in REPLACES.get(path, ()):
                given.pop((path[0], name), None)
        given.update(layer)
    if misplaced := list(_misplaced(given)):
        raise ConfigError("\n".join(misplaced))
    _fill_in(given)
    for path, value in given.items():
        text = ", ".join(map(str, value.value)) if isinstance(value.value, list | tuple) else str(value.value)
        if (shown := encodable(text)) != text:
            raise ConfigError(
                f"{value.origin}: {'.'.join(path)} is {shown}, a name that is not UTF-8, which no "
                "configuration can hold: rename that file or folder."
            )
    try:
        config = Config.model_validate_json(json.dumps(_nested(given), default=str), strict=True)
    except ValidationError as error:
        problems = [
            _problem(given, detail["loc"], detail["msg"], detail["type"]) for detail in error.errors()
        ]
        raise ConfigError("\n".join(dict.fromkeys(problems))) from None
    for path, file in missing_inputs(config).items():
        raise MissingFileError(f"{given[path].origin}: {'.'.join(path)} names {file}, which does not exist.")
    try:
        check_geometry(config)
    except GeometryError as error:
        places = sorted({value.origin for path, value in given.items() if path[0] in ("sweep", "volume")})
        raise ConfigError(f"{'; '.join(places)}: {error}" if places else str(error)) from None
    return config


def presets() -> dict[str, str]:
    """Return the names of the presets that ship with mdd, and the first sentence of each."""
    shipped = (file for file in files("microdiffusion.configs").iterdir() if file.name.endswith(".toml"))
    return {
        file.name.removesuffix(".toml"): file.read_text("utf-8").partition("\n")[0].lstrip("# ")
        for file in sorted(shipped, key=lambda file: file.name)
    }


def explained(name: str) -> str:
    """Return what a key means, expects and is by default; the keys of a table where `name` is one.

    Raises
    ------
    ConfigError
        There is neither key nor table of that name.
    """
    path = tuple(name.split("."))
    if path in tables():
        below = (key for key in keys().values() if key.path[:-1] == path)
        lines = [f"[{name}]  {tables()[path]}", *(f"  {key.name:<24} {key.description}" for key in below)]
        return "\n".join(lines)
    if path not in keys():
        raise ConfigError(f"There is no key {name}{_closest_key(path)}: see `mdd config reference`.")
    key = keys()[path]
    default = "none" if key.default is None else toml_value(key.default)
    return (
        f"{key.name}\n  {key.description}\n  expected  {key.expected}\n  default   {default}\n"
        f"  set it    [{'.'.join(path[:-1])}] {path[-1]} = ... in a file, or --set {name}=..."
    )


def _read(source: str | Path | None) -> tuple[str, str, Path]:
    """Return the TOML text, the name that messages use, and the folder of relative paths."""
    if source is None:
        return "", "", Path()
    if isinstance(source, str) and re.fullmatch(r"[\w-]+", source):
        if source not in presets():
            raise ConfigError(
                f"There is no preset called {source}{did_you_mean(source, presets())}: "
                f"expected a TOML file or one of {', '.join(presets())}."
            )
        return files("microdiffusion.configs").joinpath(f"{source}.toml").read_text("utf-8"), source, Path()
    file = _expanded(source)
    try:
        return file.read_text("utf-8-sig"), str(file), file.absolute().parent
    except FileNotFoundError:
        raise MissingFileError(f"There is no configuration file {file}: check its name.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not a text file in UTF-8 ({error.reason}): save it as UTF-8.") from None
    except OSError as error:
        raise ConfigError(f"{file} cannot be read ({error.strerror}).") from None


def _from_toml(text: str, label: str, folder: Path) -> dict[KeyPath, Given]:
    try:
        parsed = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        what, _, place = str(error).partition(" (at ")
        line = re.search(r"line (\d+)", place)
        number = int(line[1]) if line else text.rstrip("\n").count("\n") + 1
        hint = ": write paths with / or in 'single quotes'" if "\\" in what or "hex value" in what else ""
        raise ConfigError(f"{label}, line {number}: not valid TOML ({what.lower()}){hint}.") from None
    lines = _line_numbers(text)
    given = {}
    for path, value in _leaves(parsed, ()):
        key = keys().get(path)
        if key is not None and key.is_path and isinstance(value, str):
            value = str(folder / _expanded(value))
        elif key is not None and key.is_path_list and isinstance(value, list):
            value = [str(folder / _expanded(v)) if isinstance(v, str) else v for v in value]
        above = (path[:n] for n in range(len(path), 0, -1))  # a key of an inline table has its table's line
        given[path] = Given(value, label, next((lines[part] for part in above if part in lines), 0))
    return given


def _line_numbers(text: str) -> dict[KeyPath, int]:
    """Return the line on which every table and key of a valid TOML text begins; `tomllib` keeps none."""
    found: dict[KeyPath, int] = {}
    table: KeyPath = ()
    text = _MULTI_LINE_TEXT.sub(lambda quoted: "\n" * quoted[0].count("\n"), text)
    for number, line in enumerate(text.split("\n"), 1):
        statement = _STATEMENT.match(line)
        if statement is None:
            continue
        path = tuple(part.strip(" \t\"'") for part in statement["name"].split("."))
        path = path if statement["table"] else (*table, *path)
        table = path if statement["table"] else table
        for n in range(1, len(path) + 1):
            found.setdefault(path[:n], number)
    return found


def _leaves(table: Mapping[str, Any], above: KeyPath) -> Iterator[tuple[KeyPath, Any]]:
    for name, value in table.items():
        path = (*above, name)
        if isinstance(value, dict) and path in tables():
            yield from _leaves(value, path)
        else:
            yield path, value


def _from_environment(environ: Mapping[str, str]) -> dict[KeyPath, Given]:
    known = {key.environment: key for key in keys().values()}
    given = {}
    for variable, text in environ.items():
        name = variable.upper()
        if not name.startswith("MDD_"):
            continue
        if name in known:
            given[known[name].path] = Given(_parsed(text, known[name]), f"environment variable {variable}")
        elif (path := tuple(name.removeprefix("MDD_").lower().split("__"))) in REMOVED:
            given[path] = Given(text, f"environment variable {variable}")  # refused as in a file
        elif "__" in name or get_close_matches(name, known, cutoff=0.9):
            raise ConfigError(
                f"The environment variable {variable} names no key{did_you_mean(name, known)}: "
                "expected MDD_SECTION__KEY, like MDD_SWEEP__STEP_UM."
            )
    return given


def _from_mapping(mapping: Mapping[str, object], source: str) -> dict[KeyPath, Given]:
    given = {}
    for name, value in mapping.items():
        path = tuple(name.split("."))
        if isinstance(value, str) and path in keys():
            value = _parsed(value, keys()[path])
        elif isinstance(value, Path):
            value = str(_expanded(value))
        elif isinstance(value, list | tuple):
            value = [str(_expanded(v)) if isinstance(v, Path) else v for v in value]
        given[path] = Given(value, source)
    return given


def _parsed(text: str, key: Key) -> Any:
    """Return `text` from outside of a file as the TOML value that `key` needs, or as it is."""
    if key.optional and text.strip().lower() == "none":
        return None
    if key.is_path:
        return str(_expanded(text))
    if key.is_text:
        return text
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if len(parsed) == 1 else text


def _expanded(path: str | Path) -> Path:
    """Return a path with ~ expanded; as it is where there is no such user, or no home."""
    return Path(os.path.expanduser(path))


def _fill_in(given: dict[KeyPath, Given]) -> None:
    """Take the values of calibrated keys from the calibration files.

    Raises
    ------
    ConfigError
        The configuration file that names the calibration gives another value itself.
    MissingFileError, InputFileError
        A calibration file does not exist, or is none.
    """
    for table, names in CALIBRATED.items():
        named = given.get((table, "calibration"))
        if named is None or not isinstance(named.value, str):
            continue
        file = Path(named.value)
        try:
            read = read_beam(file) if table == "sweep" else read_camera(file)
        except UserError as error:
            raise type(error)(f"{named.origin}: {error}") from None
        for name in names:
            measured = float(getattr(read, name))
            stated = given.setdefault((table, name), Given(measured, str(file)))
            number = stated.value if isinstance(stated.value, int | float) else math.nan
            if stated.source == named.source and not math.isclose(number, measured, rel_tol=1e-9):
                raise ConfigError(
                    f"{stated.origin}: {table}.{name} = {_shown(stated.value)}, but {file.name}, which "
                    f"{table}.calibration names, says {measured:g}: leave one of the two out."
                )


def _nested(given: Mapping[KeyPath, Given]) -> dict[str, Any]:
    root: dict[str, Any] = {}
    for path, value in given.items():
        table = root
        for name in path[:-1]:
            table = table.setdefault(name, {})
        table[path[-1]] = value.value
    return root


def _misplaced(given: Mapping[KeyPath, Given]) -> Iterator[str]:
    """Yield a sentence for each path that is no key."""
    for path, value in given.items():
        if path in keys():
            continue
        name = ".".join(path)
        if path in tables():
            yield f"{value.origin}: {name} is a table, [{name}], and takes no value of its own."
        elif isinstance(value.value, dict):
            known = [".".join(table) for table in tables() if table]
            yield f"{value.origin}: there is no table [{name}]{did_you_mean(name, known)}."
        else:
            yield f"{value.origin}: unknown key {name}{_closest_key(path)}."


def _closest_key(path: KeyPath) -> str:
    """Return " (did you mean ...?)", or why it is gone, for a key that does not exist, or ""."""
    if path in REMOVED:
        return f" ({REMOVED[path]})"
    name = path[-1]
    here = [key.path[-1] for key in keys().values() if key.path[:-1] == path[:-1]]
    stem = _ANY_UNIT.sub("", name)  # step_nm, step_mm, step: a key with another unit, or without one
    for other in here:
        unit = unit_of(other)
        if unit and other != name and _ANY_UNIT.sub("", other) == stem:
            return f" (did you mean {other}, in {unit}?)"
    elsewhere = " or ".join(key.name for key in keys().values() if key.path[-1] == name)
    return (
        did_you_mean(name, here)
        or (elsewhere and f" (did you mean {elsewhere}?)")
        or did_you_mean(".".join(path), [key.name for key in keys().values()])
    )


def _problem(given: Mapping[KeyPath, Given], loc: tuple[int | str, ...], message: str, kind: str) -> str:
    """Return the sentence for one of pydantic's errors at `loc`."""
    message = message.removeprefix("Value error, ")
    path: KeyPath = ()
    for part in loc:
        if path in keys():
            break
        path = (*path, str(part))
    if path not in keys():  # a rule about several keys: name the place of the last one that it mentions
        inside = [p for p in given if p[: len(path)] == path]
        named = [p for p in inside if p[-1] in message] or inside
        place = f"{given[named[-1]].origin}: " if named else ""
        return f"{place}{'.'.join(path)}{': ' if path else ''}{message}."
    key, value = keys()[path], given[path]
    shown = _shown(value.value)
    if kind == "value_error":
        return f"{value.origin}: {key.name}: {message}, not {shown}."
    extra = ""
    if key.choices and isinstance(value.value, str):
        extra = did_you_mean(value.value, key.choices)
    elif isinstance(value.value, str) and not key.is_text and re.match(r"[-+.\d]", value.value):
        extra = " (without quotes, and without its unit)" if key.unit else " (without quotes)"
    meaning = key.description.removesuffix(f", {key.unit}")
    return f"{value.origin}: {key.name} should be {key.expected} ({meaning}), not {shown}{extra}."


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
