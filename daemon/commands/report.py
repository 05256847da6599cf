"""Make one HTML page of a run: what was acquired, pictures, quality and latency over time, gaps, versions.

  mdd report runs/demo.h5 --output page.html

The page holds everything it shows and loads nothing: it can be mailed, opened offline and printed. The
run may still be going on; the page shows it as it is now.
"""

from __future__ import annotations

import os
import uuid
from typing import TYPE_CHECKING

from microdiffusion.daemon.cli import options, say

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from pathlib import Path


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("file", type=options.file, metavar="RUN")
    parser.add_argument(
        "--output",
        type=options.file,
        metavar="PAGE.html",
        help="left out: the run's name with .html, beside it",
    )
    parser.add_argument("--title", metavar="TEXT", help="heading of the page (the run's name)")


def run(args: Namespace) -> int:
    """Write the page."""
    from microdiffusion.daemon.report import write_page
    from microdiffusion.daemon.status import size
    from microdiffusion.errors import ConfigError

    output = args.output or args.file.with_suffix(".html")
    if output.resolve() == args.file.resolve():
        raise ConfigError(f"--output {output} is the run itself: name another file.")
    page = write_page(args.file, title=args.title)
    _replace(output, page)
    say(f"wrote {output} ({size(len(page.encode()))})")
    return 0


def _replace(output: Path, page: str) -> None:
    from microdiffusion.errors import DiskError

    new = output.with_name(f".{output.name}.{uuid.uuid4().hex[:8]}")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        new.write_text(page, encoding="utf-8")
        os.replace(new, output)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise DiskError(f"{output} cannot be written ({error.strerror}): choose another folder.") from error
