"""The documentation: it builds without a warning, and what it tells people to type works.

Every `mdd` command in a code block of README.md and docs/ is parsed by its own parser, and run, in a folder
with the files that the pages speak of, unless `NOT_RUN` says why not.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from support.calibration_scenes import BeadScene, bead_stack, camera_series, layer_stack
from support.mdd_process import free_port

from microdiffusion.config.reference import reference_page as configuration_reference
from microdiffusion.daemon.cli import dispatch as cli
from microdiffusion.daemon.cli.command_reference import reference as command_reference

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
MDD = Path(sys.executable).with_name("mdd.exe" if os.name == "nt" else "mdd")

NOT_RUN = {
    r"mdd serve --demo$": "tests/system/test_serve.py runs the demo",
    r"mdd serve --config (bessel|my.toml --set engine.weights)": "waits for a microscope, or for weights",
    r"mdd (train|adapt) ": "takes minutes: tests/engines/test_training.py, tests/engines/test_adapt.py",
    r"mdd reconstruct .*engine.weights=mine": "needs what the training wrote: tests/system/test_first_day.py",
    r"mdd reconstruct .*(--local|--scheduler|--slurm)": "tests/daemon/test_farm.py opens clusters",
    r"mdd bench": "takes a minute and more: tests/daemon/test_bench.py",
    r"mdd compile( --weights|$)": "takes a minute: tests/engines/test_compile.py",
    r"mdd calibrate beam --acquire": "a core of its own: tests/daemon/test_calibrate.py",
    r"mdd keys": "tests/api/test_keys.py",
    r"mdd export .* s3://": "needs a server: tests/api/test_object_store.py",
}


def commands() -> Iterator[tuple[Path, str]]:
    """Yield every line of code that begins with mdd, without its remark."""
    for page in PAGES:
        if page.name in ("commands.md",):
            continue
        for language, code in BLOCK.findall(page.read_text(encoding="utf-8")):
            if language not in ("bash", ""):
                continue
            for line in code.splitlines():
                for part in line.split("&&"):
                    command = part.partition(" # ")[0].strip()
                    if command.startswith("mdd ") and "<--" not in line and "-->" not in line:
                        yield page, command


COMMANDS = sorted({command for _, command in commands()})


def arguments(command: str) -> list[str]:
    """Return a command's words, without the redirection."""
    words = shlex.split(command)[1:]
    return words[: next((at for at, word in enumerate(words) if word.startswith((">", ">>"))), len(words))]


def test_the_pages_name_commands() -> None:
    assert len(COMMANDS) > 20
    assert "mdd serve --demo" in COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_docs_is_one(command: str) -> None:
    name, *rest = arguments(command)
    cli.command_parser(name).parse_args(rest)


def test_a_command_that_a_sentence_names_has_what_it_says() -> None:
    """In running text a command may be half of one: its name and its options have to be there."""
    wrong = []
    for page in (page for page in PAGES if page.parent.name != "decisions"):  # they keep what was true then
        for span in re.findall(r"`(mdd [-\w][^`]+)`", page.read_text(encoding="utf-8")):
            name, *words = span.split()[1:]
            if name in cli.commands():
                known = option_strings(cli.command_parser(name))
                used = {word.partition("=")[0] for word in words if word.startswith("--")}
                wrong += [(page.name, span, option) for option in used - known]
            elif name not in ("COMMAND", "--help", "--version"):
                wrong.append((page.name, span, name))
    assert not wrong


def option_strings(parser: argparse.ArgumentParser) -> set[str]:
    """Return all options of a command and its parts."""
    known: set[str] = {"--help"}
    for action in parser._actions:
        known.update(action.option_strings)
        if isinstance(action, argparse._SubParsersAction):
            for part in action.choices.values():
                known |= option_strings(part)
    return known


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the pages speak of."""
    desk = tmp_path_factory.mktemp("desk")
    generator = np.random.default_rng(3)
    for name in ("stack.h5", "stacks/stack_01.h5", "stacks/stack_07.h5", "volumes/one.h5"):
        (desk / name).parent.mkdir(exist_ok=True)
        with h5py.File(desk / name, "w") as file:
            spots = np.zeros((24, 32, 32), np.float32)
            spots[tuple(generator.integers(2, 22, (3, 40)))] = 1000
            file["volume"] = spots
            file["volume"].attrs["voxel_size_um"] = (2.0, 1.0, 1.0)
    scene = BeadScene(beads=10, size=(64, 64), length_um=24.0)
    dark, flat = camera_series(size=(48, 48))
    stacks = {"beads": bead_stack(scene)[0], "layer": layer_stack(scene)[0], "dark": dark, "flat": flat}
    for name, pixels in stacks.items():
        with h5py.File(desk / f"{name}.h5", "w") as file:
            file["volume"] = pixels
            file["volume"].attrs["voxel_size_um"] = (2.0, 1.0, 1.0)
    for command in (
        "mdd simulate stack.h5 --length-um 12 --step-um 12 --output made.h5",
        "mdd reconstruct made.h5 --output run.h5 --method tikhonov",
        "mdd config show demo > my.toml",
    ):
        run(command, desk)
    (desk / "runs").mkdir()
    (desk / "runs" / "RUN.h5").write_bytes((desk / "run.h5").read_bytes())
    return desk


def run(command: str, desk: Path) -> subprocess.CompletedProcess[str]:
    """Run a command of the docs in `desk`, as a user would, on ports of its own."""
    words = arguments(command)
    if words[0] == "serve":
        words += ["--headless", "--volumes", "2"]  # the last one counts
    ports = {f"MDD_WIRE__{name}": f"tcp://127.0.0.1:{free_port()}" for name in ("DATA", "STATUS", "CONTROL")}
    home = {"MDD_WIRE__JOURNAL": str(desk / "journal"), "NO_COLOR": "1"}
    done = subprocess.run(
        [MDD, *words], cwd=desk, env=os.environ | ports | home, capture_output=True, text=True, timeout=300
    )
    written = desk / command.split(">")[-1].strip() if ">" in command else None
    if written is not None and done.returncode == 0 and not written.exists():  # my.toml stays the demo's
        written.write_text(done.stdout, encoding="utf-8")
    return done


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_commands_of_the_docs_work(desk: Path) -> None:
    untried = dict.fromkeys(NOT_RUN, False)
    failed = []
    for command in dict.fromkeys(command for _, command in commands()):
        reason = next((pattern for pattern in NOT_RUN if re.search(pattern, command)), None)
        if reason is not None:
            untried[reason] = True
            continue
        output = re.search(r"--output (\S+)", command)
        if output and (desk / output[1]).is_file():  # pages name the same output more than once
            (desk / output[1]).unlink()
        began_s = time.monotonic()
        done = run(command, desk)
        print(f"{time.monotonic() - began_s:6.1f} s  {command}")
        if done.returncode != 0 or "Traceback" in done.stderr:
            failed.append((command, done.returncode, done.stderr[-300:]))
    assert not failed
    assert all(untried.values()), "a reason not to run what no page names"


def test_the_reference_pages_are_what_the_program_says() -> None:
    pages = {"commands.md": command_reference, "configuration.md": configuration_reference}
    for name, made in pages.items():
        page = (ROOT / "docs" / name).read_text(encoding="utf-8")
        assert page.rstrip("\n") == made().rstrip("\n"), (
            f"docs/{name} is out of date; its last lines say how to make it"
        )


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="the extra docs is not installed")
    build = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert build.returncode == 0, build.stdout + build.stderr
    assert "WARNING" not in build.stdout + build.stderr
    for page in (tmp_path / "site").glob("*.html"):
        text = page.read_text(encoding="utf-8")
        for outside in re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"(https?://[^\"]+)", text):
            assert "arxiv" in outside, f"{page.name} fetches {outside}"
