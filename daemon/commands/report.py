"""Make an HTML page about a run: pictures, quality, latency, gaps, versions.

  mdd report runs/demo.h5 --output page.html

The page is self-contained: it can be mailed, opened offline and printed. If the
run is still being recorded, the page shows it as it is now.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from microdiffusion.daemon.cli import options, say


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    options.add(parser, "RUN", "run file", options.file)
    options.add(parser, "--output PAGE.html", "default: the run's name with .html, beside it", options.file)
    options.add(parser, "--title TEXT", "heading of the page; default: the run's name")


def run(args: Namespace) -> int:
    """Write the page."""
    from microdiffusion.daemon.report import write_page
    from microdiffusion.daemon.status import size
    from microdiffusion.errors import ConfigError
    from microdiffusion.files import replacing
    from microdiffusion.runfile import require_run_file

    require_run_file(args.run)
    output = args.output or args.run.with_suffix(".html")
    if output.resolve() == args.run.resolve():
        raise ConfigError(f"--output {output} is the run itself: choose another file.")
    page = write_page(args.run, title=args.title).encode()
    with replacing(output) as new:
        new.parent.mkdir(parents=True, exist_ok=True)
        new.write_bytes(page)
    say(f"wrote {output} ({size(len(page))})")
    return 0
