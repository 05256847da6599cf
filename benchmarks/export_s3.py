"""Rate of an export to an S3 server on this machine, as a share of the same OME-Zarr on the local disk.

    python benchmarks/export_s3.py --volumes 12 --shape 64x512x512 --pairs 3

The server is moto's, in a process of its own: it computes checksums in Python, keeps objects in memory up to
5 MB and in temporary files beyond, and shares the processor and the disk with the export. Folder and store
alternate; each export is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from export import make_run
from measuring import ROOT, machine

RESULT = ROOT / "benchmarks" / "results" / "export_s3.json"
_ONE = """
import sys, time
from pathlib import Path
import s3fs, zarr
from microdiffusion.export import export_run
run, output = sys.argv[1:]
target = output if output.startswith("s3://") else Path(output)
began = time.monotonic()
export_run(Path(run), "ome-zarr", target, ngff="0.5")
print(time.monotonic() - began, time.process_time())
"""


_BARE = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import boto3
client = boto3.client("s3")
files = [path for path in Path(sys.argv[1]).rglob("*") if path.is_file()]
objects = [(str(number), path.read_bytes()) for number, path in enumerate(files)]
began = time.monotonic()
with ThreadPoolExecutor(4) as threads:
    list(threads.map(lambda each: client.put_object(Bucket="bench", Key=each[0], Body=each[1]), objects))
print(time.monotonic() - began)
"""


def bare_seconds_of(folder: Path) -> float:
    """Return how long four threads of boto3 take for the files of a folder, which are in memory."""
    done = subprocess.run(
        [sys.executable, "-c", _BARE, str(folder)], check=True, capture_output=True, text=True
    )
    return float(done.stdout)


def seconds_of(run: Path, output: str) -> tuple[float, float]:
    """Return how long an export takes, without the start of its process, and the processor time of both."""
    done = subprocess.run(
        [sys.executable, "-c", _ONE, str(run), output], check=True, capture_output=True, text=True
    )
    wall_s, used_s = (float(value) for value in done.stdout.split())
    return wall_s, used_s


def used_by(server: subprocess.Popen[str]) -> float:
    """Return the processor time of the server so far, s."""
    times = psutil.Process(server.pid).cpu_times()
    return float(times.user + times.system)


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--volumes", type=int, default=24)
    parser.add_argument("--shape", default="64x512x512")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    args = parser.parse_args()
    z, y, x = (int(length) for length in args.shape.split("x"))
    size_mb = args.volumes * z * y * x * 2 / 1e6
    from support.s3_server import ENVIRONMENT

    os.environ.update(ENVIRONMENT)
    import s3fs

    server = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "support" / "s3_server.py")], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None  # noqa: S101
    os.environ["AWS_ENDPOINT_URL"] = server.stdout.readline().strip()
    pairs = []
    try:
        s3fs.S3FileSystem().mkdir("bench")
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            run = Path(folder) / "run.h5"
            make_run(run, args.volumes, (z, y, x))
            for number in range(args.pairs):
                local = Path(folder) / "out.ome.zarr"
                os.sync()
                began_s = time.monotonic()
                local_s, local_used_s = seconds_of(run, str(local))
                os.sync()
                flushed_s = time.monotonic() - began_s - local_s
                stored = sum(path.stat().st_size for path in local.rglob("*") if path.is_file())
                bare_s = bare_seconds_of(local)
                s3fs.S3FileSystem(use_listings_cache=False).rm("bench/", recursive=True)
                s3fs.S3FileSystem(use_listings_cache=False).makedirs("bench", exist_ok=True)
                shutil.rmtree(local)
                before_s = used_by(server)
                store_s, store_used_s = seconds_of(run, f"s3://bench/out{number}.ome.zarr")
                server_s = used_by(server) - before_s
                s3fs.S3FileSystem(use_listings_cache=False).rm("bench/", recursive=True)
                pairs.append(
                    {
                        "folder_mb_per_s": round(size_mb / local_s, 1),
                        "store_mb_per_s": round(size_mb / store_s, 1),
                        "bare_mb_per_s": round(size_mb / bare_s, 1),
                        "ratio": round(local_s / store_s, 3),
                        "ratio_of_bare_to_folder": round(local_s / bare_s, 3),
                        "ratio_to_bare": round(bare_s / store_s, 3),
                        "ratio_flushed": round((local_s + flushed_s) / store_s, 3),
                        "folder_processor_s": round(local_used_s, 2),
                        "store_processor_s": round(store_used_s, 2),
                        "server_processor_s": round(server_s, 2),
                        "flush_s": round(flushed_s, 2),
                        "stored_mb": round(stored / 1e6, 1),
                        "load_average": round(os.getloadavg()[0], 1),
                    }
                )
                print(pairs[-1], flush=True)
                if number < args.pairs - 1:
                    s3fs.S3FileSystem(use_listings_cache=False).makedirs("bench", exist_ok=True)
    finally:
        server.terminate()
        server.wait()
    result = {
        "volumes": args.volumes,
        "shape": [z, y, x],
        "volume_mb": z * y * x * 2 / 1e6,
        "pairs": pairs,
        "median_ratio_to_bare": statistics.median(pair["ratio_to_bare"] for pair in pairs),
        "median_ratio_of_bare_to_folder": statistics.median(
            pair["ratio_of_bare_to_folder"] for pair in pairs
        ),
        "median_ratio": statistics.median(pair["ratio"] for pair in pairs),
        "median_ratio_flushed": statistics.median(pair["ratio_flushed"] for pair in pairs),
        "note": "MB of voxels. ratio: the folder is in the system's memory; ratio_flushed: until it is on "
        "the disk, with whatever else the system had to write. bare: boto3 sends the folder's compressed "
        "files from memory, with four threads, to the same server. Processor time includes 1 s of imports.",
        "machine": machine(),
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
