"""Where files live: a folder, or an address on an object store such as s3://bucket/study.

An address is a `Path` whose files are read and written whole, through `pyarrow.fs`. So the code of
runs, tables and reports is the same for both, and nothing is ever kept on one machine only.
"""

import contextlib
import fnmatch
import io
import os
import re
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from functools import cache
from pathlib import Path, PosixPath
from typing import Any

from pyarrow import fs

from tarflow.errors import UserError

_ADDRESS = re.compile(r"([a-z][a-z0-9]+):/+(.*)", re.DOTALL)  # Path turns :// into :/
ATTEMPTS = 4  # of a request, with growing pauses
CONNECT_SECONDS, REQUEST_SECONDS = 5, 60


def locate(place: str | Path) -> Path:
    """Return the path of a file or folder that a user names; an address becomes a `Remote`.

    >>> locate("studies/digits"), locate(Path("s3://bucket/study")) / "runs"
    (PosixPath('studies/digits'), Remote('s3://bucket/study/runs'))
    """
    return Remote(place) if _ADDRESS.match(str(place)) else Path(place)


class Remote(PosixPath):
    """A path on an object store, where only whole files exist; folders are parts of names.

    Every method that reaches the store raises `UserError` if the store cannot be reached or
    refuses, and `FileNotFoundError` if only the file is absent. S3 is found through the standard
    environment: credentials, AWS_REGION or AWS_DEFAULT_REGION, AWS_ENDPOINT_URL.
    """

    def __str__(self) -> str:
        """Return the address."""
        return super().__str__().replace(":/", "://", 1)

    def __fspath__(self) -> str:
        """Refuse to be opened as a file of this machine."""
        raise TypeError(f"{self} is not a file of this machine")

    @property
    def scheme(self) -> str:
        """Kind of the store, such as s3."""
        return self.parts[0].removesuffix(":")

    @property
    def key(self) -> str:
        """Bucket and name, as pyarrow has it."""
        return "/".join(self.parts[1:])

    @contextlib.contextmanager
    def _store(self) -> Iterator[fs.FileSystem]:
        """Give the store, and turn its errors into one line."""
        try:
            yield _filesystem(self.scheme, *self.parts[1:2])
        except FileNotFoundError:
            raise
        except (OSError, NotImplementedError) as error:
            said = str(error).splitlines()[0].split(" (Request ID")[0]
            raise UserError(
                f"cannot use {self}: {said}; check the address, the credentials and the endpoint "
                "in the environment"
            ) from None

    def _info(self) -> fs.FileInfo:
        with self._store() as store:
            return store.get_file_info(self.key)

    def read_bytes(self) -> bytes:
        """Return the content."""
        with self._store() as store, store.open_input_stream(self.key) as stream:
            content: bytes = stream.read()
            return content

    def read_text(self, *_: Any, **__: Any) -> str:
        """Return the content, as UTF-8."""
        return self.read_bytes().decode()

    def open(self, mode: str = "r", *_: Any, **__: Any) -> io.IOBase:  # type: ignore[override]
        """Open a copy to be read."""
        if mode not in ("r", "rb", "rt"):
            raise io.UnsupportedOperation(f"{self} is written whole")
        return io.BytesIO(self.read_bytes()) if "b" in mode else io.StringIO(self.read_text())

    def write_bytes(self, data: Any) -> int:
        """Write the file with one put: a reader sees the old content or the new."""
        with self._store() as store, store.open_output_stream(self.key) as stream:
            stream.write(data)
        return len(data)

    def write_text(self, data: str, *_: Any, **__: Any) -> int:
        """Write the file with one put, as UTF-8."""
        return self.write_bytes(data.encode())

    def touch(self, *_: Any, **__: Any) -> None:
        """Write an empty file."""
        self.write_bytes(b"")

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the file."""
        try:
            with self._store() as store:
                store.delete_file(self.key)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def rmdir(self) -> None:
        """Remove the folder and all below it."""
        with contextlib.suppress(FileNotFoundError), self._store() as store:
            store.delete_dir(self.key)

    def mkdir(self, *_: Any, **__: Any) -> None:
        """Do nothing: a folder comes with its first file."""

    def exists(self, **_: Any) -> bool:
        """Tell whether there is such a file, or a file below it."""
        return bool(self._info().type != fs.FileType.NotFound)

    def is_file(self, **_: Any) -> bool:
        """Tell whether there is such a file."""
        return bool(self._info().type == fs.FileType.File)

    def is_dir(self, **_: Any) -> bool:
        """Tell whether there is a file below this name."""
        return bool(self._info().type == fs.FileType.Directory)

    def stat(self, **_: Any) -> os.stat_result:
        """Return size and time of the last change; the rest is zero."""
        info = self._info()
        if info.type == fs.FileType.NotFound:
            raise FileNotFoundError(str(self))
        seconds = info.mtime_ns // 10**9 if info.mtime_ns else 0
        return os.stat_result((0, 0, 0, 0, 0, 0, info.size or 0, seconds, seconds, seconds))

    def iterdir(self) -> Iterator["Remote"]:  # type: ignore[override]
        """Yield what lies directly below."""
        with self._store() as store:
            found = store.get_file_info(fs.FileSelector(self.key, allow_not_found=True))
        yield from (self / info.base_name for info in found)

    def glob(self, pattern: str, **_: Any) -> Iterator["Remote"]:  # type: ignore[override]
        """Yield what lies below and fits a pattern, in any order."""
        first, _slash, rest = pattern.partition("/")
        for path in self.iterdir():
            if fnmatch.fnmatchcase(path.name, first):
                yield from path.glob(rest) if rest else (path,)

    def absolute(self) -> "Remote":
        """Return the same: an address is whole."""
        return self

    def resolve(self, strict: bool = False) -> "Remote":  # noqa: ARG002, the base class's name
        """Return the same."""
        return self

    def expanduser(self) -> "Remote":
        """Return the same."""
        return self


@cache
def _filesystem(scheme: str, bucket: str = "") -> fs.FileSystem:
    """Connect to a store; requests are tried a few times and then given up."""
    if scheme == "s3":
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        if not region and not endpoint:
            region = fs.resolve_s3_region(bucket)
        return fs.S3FileSystem(
            region=region,
            endpoint_override=endpoint,
            connect_timeout=CONNECT_SECONDS,
            request_timeout=REQUEST_SECONDS,
            allow_delayed_open=True,  # small files are one request
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        )
    if scheme in ("gs", "gcs"):
        return fs.GcsFileSystem(retry_time_limit=timedelta(seconds=REQUEST_SECONDS))
    try:
        return fs.FileSystem.from_uri(f"{scheme}://{bucket}")[0]
    except ValueError as error:  # pyarrow's ArrowInvalid
        raise UserError(f"{scheme}://{bucket}: {str(error).splitlines()[0]}") from None


def check_reachable(place: Path) -> None:
    """Make sure, in seconds, that there is a bucket behind an address.

    Raises:
        UserError: if there is none, or it cannot be reached.
    """
    if not isinstance(place, Remote):
        return
    bucket = Remote(*place.parts[:2])
    if len(place.parts) < 2 or not bucket.exists():
        raise UserError(f"there is no bucket {bucket}, or these credentials may not see it")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the failure to write a file into one line.

    Raises:
        UserError: if the disk is full, read-only, or forbids it.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; what was written before is whole, "
            "the same command goes on from there"
        ) from None


@contextlib.contextmanager
def local_copy(path: Path) -> Iterator[Path]:
    """Give a file of this machine with the content of `path`: itself, if it is local."""
    if not isinstance(path, Remote):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="tarflow-") as folder:
        copy = Path(folder) / path.name
        copy.write_bytes(path.read_bytes())
        yield copy


def cache_folder() -> Path:
    """Return the folder of files that can be rebuilt: `$TARFLOW_CACHE`, or the user's cache."""
    if chosen := os.environ.get("TARFLOW_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "tarflow"
