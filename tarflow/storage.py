"""Files in a local folder or on an object store, at an address such as s3://bucket/study.

An address is a `Path` that reads and writes whole files through `pyarrow.fs`, so the same code of
runs, tables and reports serves both.
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
from urllib.parse import urlsplit

from pyarrow import ArrowException, fs

from tarflow.errors import UserError

_ADDRESS = re.compile(r"([a-z][a-z0-9]+):/+(.*)", re.DOTALL)  # Path turns :// into :/
_RAW = re.compile(r"^.*underlying error message was: | error_info=.*| \(Request ID.*")  # of SDKs
ATTEMPTS = 4  # per request, with growing pauses
CONNECT_SECONDS, REQUEST_SECONDS = 5, 60  # timeouts
RETRY_SECONDS = 10  # for which Google's requests are repeated


def locate(name: str | Path) -> Path:
    """Return the path of a file or folder; an address becomes a `Remote`.

    >>> locate("studies/digits"), locate(Path("s3://bucket/study")) / "runs"
    (PosixPath('studies/digits'), Remote('s3://bucket/study/runs'))
    """
    return Remote(name) if _ADDRESS.match(str(name)) else Path(name)


MODEL = "model.safetensors"  # name of the file in the folder of a run, or of a release


def locate_model(name: str | Path) -> Path:
    """Return the file of a model, given the file itself or the folder that holds it.

    Raises:
        UserError: If the folder holds no model.
    """
    path = locate(name)
    if path.suffix in (".yaml", ".yml"):
        raise UserError(f"{path} is a config: name the folder of a run that was trained with it")
    if path.suffix == ".safetensors" or not path.is_dir():
        return path
    if (path / MODEL).exists():
        return path / MODEL
    advice = f"; name one of its runs, such as {path}/runs/RUN_ID" * (path / "runs").is_dir()
    advice += f"; the run has failed: see {path}/error.txt" * (path / "error.txt").exists()
    raise UserError(f"{path} holds no {MODEL}{advice}")


class Remote(PosixPath):
    """A path on an object store, which holds whole files; folders are only parts of names.

    Methods that access the store raise `UserError` if it cannot be reached or refuses, and
    `FileNotFoundError` if only the file is missing. Stores read the environment variables of their
    own command lines: `docs/cluster.md` lists them.
    """

    def __str__(self) -> str:
        return super().__str__().replace(":/", "://", 1)

    def __fspath__(self) -> str:
        raise TypeError(f"{self} is not a file of this machine")

    @property
    def scheme(self) -> str:
        """Kind of store, such as s3."""
        return self.parts[0].removesuffix(":")

    @property
    def key(self) -> str:
        """Bucket and name, as pyarrow writes them."""
        bucket, *names = self.parts[1:] or ("",)
        return "/".join((bucket.partition("@")[0], *names))  # abfs://container@host/name

    @contextlib.contextmanager
    def _store(self) -> Iterator[fs.FileSystem]:
        """Yield the store, and turn its errors into one line."""
        try:
            yield _filesystem(self.scheme, *self.parts[1:2])
        except FileNotFoundError:
            raise
        except (OSError, NotImplementedError, ArrowException) as error:
            reason = _RAW.sub("", str(error).splitlines()[0])
            raise UserError(
                f"cannot use {self}: {reason}; check the address, the credentials and the "
                "endpoint in the environment"
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
        """Open a copy for reading."""
        if mode not in ("r", "rb", "rt"):
            raise io.UnsupportedOperation(f"{self} can only be written as a whole")
        return io.BytesIO(self.read_bytes()) if "b" in mode else io.StringIO(self.read_text())

    def write_bytes(self, data: Any) -> int:
        """Write the file with one put: readers see the old content or the new."""
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
        """Remove the folder and everything in it."""
        if self.is_dir():  # on Google's store, the folder itself is missing after its files
            with contextlib.suppress(FileNotFoundError), self._store() as store:
                store.delete_dir(self.key)

    def mkdir(self, *_: Any, **__: Any) -> None:
        """Do nothing: the first file creates its folder."""

    def exists(self, **_: Any) -> bool:
        """Tell whether the store has this file, or files in this folder."""
        return bool(self._info().type != fs.FileType.NotFound)

    def is_file(self, **_: Any) -> bool:
        """Tell whether the store has this file."""
        return bool(self._info().type == fs.FileType.File)

    def is_dir(self, **_: Any) -> bool:
        """Tell whether the store has files in this folder."""
        return bool(self._info().type == fs.FileType.Directory)

    def stat(self, **_: Any) -> os.stat_result:
        """Return the size and the time of the last change; the rest is zero."""
        info = self._info()
        if info.type == fs.FileType.NotFound:
            raise FileNotFoundError(str(self))
        seconds = info.mtime_ns // 10**9 if info.mtime_ns else 0
        return os.stat_result((0, 0, 0, 0, 0, 0, info.size or 0, seconds, seconds, seconds))

    def iterdir(self) -> Iterator["Remote"]:  # type: ignore[override]
        """Yield the files and folders in this folder."""
        return self.glob("*")

    def glob(self, pattern: str, **_: Any) -> Iterator["Remote"]:  # type: ignore[override]
        """Yield the files and folders below that match a pattern, in any order.

        All files below are listed in one go, a thousand per request: listing folder by folder
        takes more requests, and finds no folders on Google's store.
        """
        first, _slash, rest = pattern.partition("/")
        if rest and "*" not in first:
            yield from (self / first).glob(rest)
            return
        below = fs.FileSelector(self.key, allow_not_found=True, recursive=True)
        with self._store() as store:
            entries = store.get_file_info(below)
        wanted, start = pattern.split("/"), len(self.key.split("/"))
        names = (tuple(entry.path.split("/")[start:][: len(wanted)]) for entry in entries)
        for parts in dict.fromkeys(names):
            if len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted)):
                yield self.joinpath(*parts)

    def absolute(self) -> "Remote":
        """Return the address, which is already absolute."""
        return self

    def resolve(self, strict: bool = False) -> "Remote":  # noqa: ARG002, the base class's name
        """Return the address, which has no links."""
        return self

    def expanduser(self) -> "Remote":
        """Return the address, which has no home folder."""
        return self


@cache
def _filesystem(scheme: str, bucket: str = "") -> fs.FileSystem:
    """Connect to a store, which repeats failed requests a few times."""
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
        limit = timedelta(seconds=RETRY_SECONDS)
        if emulator := os.environ.get("STORAGE_EMULATOR_HOST"):
            where = urlsplit(emulator)
            return fs.GcsFileSystem(
                anonymous=True,
                scheme=where.scheme,
                endpoint_override=where.netloc,
                retry_time_limit=limit,
            )
        return fs.GcsFileSystem(retry_time_limit=limit)
    if scheme in ("abfs", "abfss", "az"):
        return _azure(bucket.partition("@")[2])
    try:
        return fs.FileSystem.from_uri(f"{scheme}://{bucket}")[0]
    except ValueError as error:  # pyarrow's ArrowInvalid
        raise UserError(f"{scheme}://{bucket}: {str(error).splitlines()[0]}") from None


def _azure(host: str) -> fs.AzureFileSystem:
    """Connect to a storage account of Azure: by its key, a SAS token, or the machine's identity.

    Args:
        host: Its name in the address; empty if the environment names the account.

    Raises:
        UserError: If nothing names the account.
    """
    parts = os.environ.get("AZURE_STORAGE_CONNECTION_STRING", "").split(";")
    settings = dict(part.partition("=")[::2] for part in parts)
    account = (
        host.partition(".")[0]
        or settings.get("AccountName")
        or os.environ.get("AZURE_STORAGE_ACCOUNT")
    )
    if not account:
        raise UserError(
            "which storage account? Write abfs://CONTAINER@ACCOUNT.dfs.core.windows.net/..., or "
            "set AZURE_STORAGE_ACCOUNT"
        )
    options = {
        "account_key": settings.get("AccountKey") or os.environ.get("AZURE_STORAGE_KEY"),
        "sas_token": settings.get("SharedAccessSignature")
        or os.environ.get("AZURE_STORAGE_SAS_TOKEN"),
    }
    endpoint = urlsplit(settings.get("BlobEndpoint", ""))
    if endpoint.path.strip("/") == account:  # an emulator; real accounts are part of the host
        for service in ("blob", "dfs"):
            options[f"{service}_storage_authority"] = endpoint.netloc
            options[f"{service}_storage_scheme"] = endpoint.scheme
    return fs.AzureFileSystem(account, **{key: each for key, each in options.items() if each})


def check_reachable(path: Path) -> None:
    """Check within seconds that the bucket of an address exists.

    Raises:
        UserError: If it does not, or cannot be reached.
    """
    if not isinstance(path, Remote):
        return
    bucket = Remote(*path.parts[:2])
    if len(path.parts) < 2 or not bucket.exists():
        raise UserError(f"there is no bucket {bucket}, or these credentials may not see it")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure to write a file into one line.

    Raises:
        UserError: If the disk is full or read-only, or forbids it.
    """
    try:
        yield
    except (FileExistsError, NotADirectoryError):
        raise UserError(
            f"cannot write {path}: a file stands where a folder should be; name another folder"
        ) from None
    except IsADirectoryError:
        raise UserError(f"cannot write {path}: it is a folder; name a file") from None
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; files written before are intact: "
            "run the same command again to resume"
        ) from None


@contextlib.contextmanager
def local_copy(path: Path) -> Iterator[Path]:
    """Yield a local file with the content of `path`: itself, if it is local."""
    if not isinstance(path, Remote):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="tarflow-") as folder:
        copy = Path(folder) / path.name
        copy.write_bytes(path.read_bytes())
        yield copy


def expand(path: Path) -> Path:
    """Return a path with a leading `~` replaced by the home folder.

    Raises:
        UserError: If there is no such home.
    """
    try:
        return path.expanduser()
    except RuntimeError:
        raise UserError(f"{path} has no home folder behind its ~: write a whole path") from None


def home_folder() -> Path:
    """Return this user's home folder, or a temporary folder if there is none to write to.

    Containers often run as a user without a home, or with the root folder as home.
    """
    home = os.path.expanduser("~")  # noqa: PTH111 - Path.expanduser fails if there is none
    if home in ("~", "/") or not os.access(home, os.W_OK):
        return Path(tempfile.gettempdir()) / f"tarflow-{os.getuid()}"
    return Path(home)


def cache_folder() -> Path:
    """Return the folder for files that can be rebuilt: `$TARFLOW_CACHE`, or the user's cache.

    Raises:
        UserError: If the environment names a folder below a home that does not exist.
    """
    chosen, base = os.environ.get("TARFLOW_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        folder = expand(Path(chosen or base or home_folder() / ".cache"))
    except UserError as error:
        raise UserError(f"{'TARFLOW_CACHE' if chosen else 'XDG_CACHE_HOME'}: {error}") from None
    return folder if chosen else folder / "tarflow"
