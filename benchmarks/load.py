"""Whether a stream of 512 x 512 uint16 frames at 500 a second is taken for minutes without loss or growth.

    python benchmarks/load.py [--minutes 10] [--variants sink,recorder] [--no-curve] [--folder DIR]

Three processes: this one watches; the sender (`Sender`) paces the frames as a camera does, and never waits;
the receiver is `Ingest` and `Assembler` as in the daemon, with nothing behind them for an engine. Variants:

- sink: frames are safe as soon as ingest handed them on.
- recorder: they go through the real `Recorder` into a run file, and are safe when they are written. Of its
  files all but the last two are emptied as it goes (holes are punched: Linux), so DIR needs 5 GB.

Memory is the receiver's resident set, sampled each second; its slope is fitted from the first minute on (of
a shorter run, from a third on). The latency of a frame is from `put` until ingest hands it on; a frame's age
when it was acknowledged is not measured. The maximum rate, as a share of bare ZeroMQ, is `codec.py`'s, in
the same run. Results go to benchmarks/results/load.json, each variant's replacing its own.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from measuring import ROOT, machine
from support.load import run_load, some_keys
from wire import measure

RESULTS = ROOT / "benchmarks" / "results" / "load.json"


def main() -> None:
    """Measure what was asked for and put it into the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=500.0)
    parser.add_argument("--variants", default="sink,recorder")
    parser.add_argument("--no-curve", action="store_true", help="without the variants that are encrypted")
    parser.add_argument("--folder", type=Path, default=None, help="where the run files go")
    parser.add_argument("--repeats", type=int, default=7, help="turns of the maximum rate; 0: not measured")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    results: dict[str, Any] = {}
    if options.output.exists():
        results = json.loads(options.output.read_text(encoding="utf-8"))
    for curve in (False,) if options.no_curve else (False, True):
        suffix = "_encrypted" if curve else ""
        if options.repeats:
            keys = some_keys() if curve else None
            results["rate" + suffix] = {
                **measure(3000, options.repeats, keys),
                "machine": machine(),
            }
        for variant in filter(None, options.variants.split(",")):
            result = run_load(
                variant,
                seconds=60 * options.minutes,
                rate_hz=options.rate,
                curve=curve,
                folder=options.folder,
            )
            results[variant + suffix] = {**result, "machine": machine()}
            print(json.dumps(result, indent=1), flush=True)
            options.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    options.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
