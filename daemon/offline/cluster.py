"""Dask clusters that reconstruct: workers on this machine, a scheduler that runs, or jobs of SLURM.

Dask is imported when a cluster is opened. A worker has one thread of Dask's: it does one piece at a time,
with the threads that the engine is given, on a device of its own.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from microdiffusion.errors import AddressError, ConfigError, DependencyError, EngineError
from microdiffusion.text import count_noun

_CONNECT_S = 30.0
_STARTS = 3
_SETUP = "microdiffusion.daemon.offline.worker_setup"
_HEAVY = ["distributed", "microdiffusion.daemon.offline", "microdiffusion.engines.pipeline"]
_FORKS = sys.platform == "linux"  # elsewhere there is no fork, or the system's libraries do not stand it
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_SETTINGS = {
    # Each death is told at once: whose fault it was is decided by what the piece had done (`farm`).
    "distributed.scheduler.allowed-failures": 0,
    "distributed.worker.preload": [_SETUP],
    "distributed.worker.profile.enabled": False,  # a look at every thread's stack, a hundred times a second
}


@dataclass(frozen=True, slots=True)
class Where:
    """The cluster to use: one of `local` and `scheduler`, or else SLURM.

    Attributes
    ----------
    local : int, optional
        Workers on this machine.
    scheduler : str
        Address of a scheduler, tcp://host:port or tls://host:port.
    jobs : int
        Of SLURM, each a worker.
    memory_gb : float, optional
        Of a worker that is started here; None: an equal share of this machine's, or what Dask's settings say.
    threads : int, optional
        Of the engine in each worker; None: an equal share of this machine's cores, or one.
    """

    local: int | None = None
    scheduler: str = ""
    jobs: int = 1
    memory_gb: float | None = None
    threads: int | None = None

    @property
    def threads_each(self) -> int | None:
        """Threads of the engine in a worker; None: what the worker has."""
        if self.threads is not None or self.local is None:
            return self.threads
        return max((os.cpu_count() or 1) // self.local, 1)

    @property
    def memory_each(self) -> int | None:
        """Bytes of a worker that is started here; None: unknown."""
        if self.memory_gb is not None:
            return int(self.memory_gb * 1e9)
        if self.local is None:
            return None
        import psutil

        return int(psutil.virtual_memory().total) // self.local


def prepare_workers(where: Where) -> None:
    """Begin to start what workers on this machine are forked from, while other things are done.

    A process that has imported torch: workers are there at once, and so is one in the place of one that died.
    """
    if where.local is None or not _FORKS:
        return
    from multiprocessing import forkserver, get_context

    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))  # as Dask does; the engine has `engine.threads`
    try:
        get_context("forkserver").set_forkserver_preload(_HEAVY)
        forkserver.ensure_running()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def open_cluster(where: Where) -> Iterator[Any]:
    """Yield a `dask.distributed.Client`; what was started for it ends with the block.

    Raises
    ------
    DependencyError
        Dask, or dask-jobqueue, is not installed.
    AddressError
        Nobody answers at the scheduler's address.
    ConfigError, EngineError
        Dask's settings lack something that SLURM needs; the cluster cannot be started.
    """
    distributed = _import("distributed")
    import dask

    with contextlib.ExitStack() as stack:
        if where.local is not None:
            prepare_workers(where)
            method = {"distributed.worker.multiprocessing-method": "forkserver"} if _FORKS else {}
            stack.enter_context(dask.config.set(_SETTINGS | method))
        for name in ("distributed", "distributed.nanny", "distributed.worker", "distributed.scheduler"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # of workers that die the summary tells
        if where.scheduler:
            try:
                client = stack.enter_context(distributed.Client(where.scheduler, timeout=_CONNECT_S))
            except (OSError, ValueError) as error:
                raise AddressError(
                    f"No scheduler of Dask answers at {where.scheduler} ({error}): start one with `dask "
                    "scheduler`, and workers with `dask worker ADDRESS --nthreads 1`."
                ) from error
            yield client  # not within the try: what fails later is another thing
            return
        start = _local if where.local is not None else _slurm
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # another program has the dashboard's usual port
                cluster = stack.enter_context(_started(lambda: start(where, distributed)))
            client = stack.enter_context(distributed.Client(cluster, timeout=_CONNECT_S))
        except (OSError, RuntimeError, TimeoutError) as error:
            raise EngineError(f"Dask's cluster cannot be started ({error}).") from error
        yield client


def describe(client: Any, where: Where) -> list[str]:
    """Return what is known of a cluster, in sentences."""
    lines = []
    threads = where.threads_each
    if where.local is not None:
        each = f"{count_noun(threads or 1, 'thread')} and {(where.memory_each or 0) / 1e9:.1f} GB each"
        lines.append(f"{count_noun(where.local, 'worker')} on this machine, {each}")
    elif where.scheduler:
        lines.append(f"{count_noun(len(client.nthreads()), 'worker')} of {where.scheduler}")
    else:
        lines.append(f"{count_noun(where.jobs, 'job')} of SLURM, each a worker")
    shared = [address for address, count in client.nthreads().items() if count > 1]
    if shared:
        lines.append(
            f"{count_noun(len(shared), 'worker')} of several threads, where pieces wait for each other: "
            "start workers with --nthreads 1, and set engine.threads"
        )
    if client.dashboard_link:
        lines.append(f"Dask's dashboard: {client.dashboard_link}")
    return lines


def _started(start: Callable[[], Any]) -> Any:
    """Return a cluster; where one of its workers dies as it starts, it is started again."""
    for left in reversed(range(_STARTS)):
        try:
            return start()
        except RuntimeError:
            if not left:
                raise
    return None


def _local(where: Where, distributed: Any) -> Any:
    # With pickles on its sockets, whoever can connect can do anything: other users of this machine too.
    safe = importlib.util.find_spec("cryptography") is not None
    return distributed.LocalCluster(
        n_workers=where.local,
        threads_per_worker=1,
        memory_limit=where.memory_each,
        silence_logs=logging.CRITICAL,
        security=safe or None,
    )


def _slurm(where: Where, distributed: Any) -> Any:
    jobqueue = _import("dask_jobqueue")
    given = {} if where.memory_gb is None else {"memory": f"{where.memory_gb:g}GB"}
    try:
        # One thread of Dask's; the engine's are what the job asks the system for.
        cluster = jobqueue.SLURMCluster(cores=1, processes=1, job_cpu=where.threads_each or 1, **given)
    except ValueError as error:
        raise ConfigError(
            f"SLURM's jobs cannot be described ({error}): give --memory GB, and what else your cluster wants "
            "in ~/.config/dask/jobqueue.yaml."
        ) from error
    cluster.scale(jobs=where.jobs)
    return cluster


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.replace("_", "-")
        raise DependencyError(
            f"{package} is not installed: pip install 'microdiffusion-daemon[dask]'."
        ) from error
