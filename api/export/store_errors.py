"""Object stores through fsspec: opening one, and its errors as one sentence.

Only stores are taken in which an object is there whole or not at all. Credentials and the server's address
are those of the store's own tools (environment, configuration files, fsspec's). Any thread.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, NamedTuple

from microdiffusion.errors import ConfigError, DiskError, MddError, MissingFileError, NoRoomError
from microdiffusion.export.options import needs

_LIBRARIES = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
_FULL = ("storagefull", "quotaexceeded", "insufficientstorage", "no space left", "insufficient storage")
_NOBODY = (
    "NoCredentials",
    "PartialCredentials",
    "CredentialRetrieval",
    "TokenRetrieval",
    "ClientAuthentication",
)
_AWAY = ("Connect", "Timeout", "ServerDisconnected", "HTTPClientError", "ClosedError", "IncompleteRead")
_GO_ON = "what was written stays: run the same command again, and it goes on there"


class Store(NamedTuple):
    """A place in an object store.

    Attributes
    ----------
    zarr : zarr.abc.store.Store
    keys : callable
        Return the keys of all objects.
    put : callable
        Write an object, key and content, in one request. Any thread.
    """

    zarr: Any
    keys: Callable[[], set[str]]
    put: Callable[[str, bytes], None]


def open_store(url: str) -> Store:
    """Return the store at an address.

    Raises
    ------
    ConfigError
        There is no such kind of store, or no name behind the bucket's.
    DependencyError
        Its library is not installed.
    """
    protocol, _, place = url.partition("://")
    if protocol not in _LIBRARIES:
        raise ConfigError(
            f"{url}: an export goes to s3://, gs:// or az://, where objects are there whole or not at all, "
            "or to a folder."
        )
    bucket, _, name = place.partition("/")
    if not bucket or not name.strip("/"):
        raise ConfigError(f"{url} names no object in a bucket: give {protocol}://BUCKET/NAME.ome.zarr.")
    try:
        wrapper = import_module("fsspec.implementations.asyn_wrapper").AsyncFileSystemWrapper
        storage: Any = import_module("zarr.storage")
        # No listing is remembered, and no instance: its credentials may be others by now.
        fs, path = import_module("fsspec.core").url_to_fs(
            url, use_listings_cache=False, skip_instance_cache=True
        )
    except ImportError as error:
        raise needs(_LIBRARIES[protocol], error, "s3" if protocol == "s3" else "export") from error

    def keys() -> set[str]:
        return {str(key).removeprefix(path).lstrip("/") for key in fs.find(path)}

    def put(key: str, content: bytes) -> None:
        fs.pipe_file(f"{path}/{key}", content)

    # One instance for zarr and for us, which closes its connections when it is no longer needed.
    return Store(storage.FsspecStore(wrapper(fs, asynchronous=True), path=path), keys, put)


@contextlib.contextmanager
def explained(url: str) -> Iterator[None]:
    """Turn the errors of a store into mdd's."""
    try:
        yield
    except MddError:
        raise
    except Exception as error:  # each store, and each layer below it, has classes of its own
        raise _sentence(url, error) from error


def _sentence(url: str, error: Exception) -> MddError:
    bucket = url.partition("://")[2].partition("/")[0]
    chain = _chain(error)
    kinds = [kind.__name__ for one in chain for kind in type(one).__mro__]
    reason = (str(error).splitlines() or [""])[0].rstrip(".") or type(error).__name__
    said = " ".join(str(one) for one in chain).lower()
    if any(kind.startswith(name) for kind in kinds for name in _NOBODY):
        return ConfigError(
            f"There are no credentials for {url}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use "
            "`aws configure` (gs://, az://: their own tools)."
        )
    full = any(isinstance(one, OSError) and one.errno == errno.ENOSPC for one in chain)
    if full or any(text in said.replace("_", "") for text in _FULL):
        return NoRoomError(f"{url}: the store is full ({reason}): free some space; {_GO_ON}.")
    if any(isinstance(one, PermissionError) for one in chain):
        return ConfigError(
            f"{url} may not be written ({reason}): check the credentials, and what they may do in {bucket}."
        )
    if any(isinstance(one, FileNotFoundError) for one in chain):
        return MissingFileError(f"There is no bucket {bucket} ({reason}): create it, or correct --output.")
    if any(isinstance(one, ConnectionError | TimeoutError) for one in chain) or any(
        name in kind for kind in kinds for name in _AWAY
    ):
        return DiskError(f"{url}: the server does not answer ({reason}): check it and the network; {_GO_ON}.")
    return DiskError(f"{url} cannot be written ({type(error).__name__}: {reason}): {_GO_ON}.")


def _chain(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in found:
        found.append(one)
        one = one.__cause__ or one.__context__
    return found
