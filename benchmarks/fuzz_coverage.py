"""Let atheris look for messages that take new ways through `wire.decode`; called by benchmarks/fuzz.py.

    python benchmarks/fuzz_coverage.py CORPUS RUNS

An input is a byte of choices (1: there is a body; 2: its first four bytes are the header's check, which is
right otherwise), the size of the header in two bytes, the header, and the body.
"""

import sys

import atheris

with atheris.instrument_imports(include=["microdiffusion"]):
    from microdiffusion import wire
    from microdiffusion.errors import WireError

from zlib_ng.zlib_ng import crc32


def one(data: bytes) -> None:
    """Decode one input; anything but WireError ends the search."""
    flags, size = data[0] if data else 0, int.from_bytes(data[1:3], "little")
    header, body = data[3 : 3 + size], data[3 + size :]
    check = body[:4] if flags & 2 else crc32(header).to_bytes(4, "little")
    try:
        wire.decode([header, body, check] if flags & 1 else [header, check])
    except WireError:
        return


corpus, runs = sys.argv[1:]
atheris.Setup(
    [sys.argv[0], f"-runs={runs}", "-timeout=5", "-rss_limit_mb=1024", "-max_len=70000", corpus], one
)
atheris.Fuzz()
