"""One driver at a time per study folder: a lease file names its owner and has a heartbeat."""

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tarflow.errors import UserError
from tarflow.storage import Remote, writing

HEARTBEAT_SECONDS = 5.0
STALE_SECONDS = 60.0  # without a heartbeat for this long, the owner's machine is lost
SETTLE_SECONDS = 1.0  # until the last of several puts to an object store has won
FILE = "lease.json"


class Lease:
    """Ownership of a folder; `lost` says that another driver has taken it over."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.owner = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
        self.lost = False
        self.beaten = time.time()

    def take(self) -> None:
        """Become the owner of the folder.

        Raises:
            UserError: If another driver owns it.
        """
        with _locked(self.path):
            owner = read_owner(self.path)
            if alive(owner):
                raise self._in_use(owner)
            self._write()
        if isinstance(self.path, Remote):  # no lock there: of two writers, the last one wins
            time.sleep(SETTLE_SECONDS)
            if not self._is_ours(owner := read_owner(self.path)):
                raise self._in_use(owner)

    def beat(self) -> None:
        """Renew the heartbeat, unless another driver owns the folder by now."""
        with _locked(self.path):
            owner = read_owner(self.path)
            self.lost = self.lost or (bool(owner) and not self._is_ours(owner))
            if not self.lost:
                self._write()

    def release(self) -> None:
        """Give the folder up."""
        with _locked(self.path):
            if self._is_ours(read_owner(self.path)):
                self.path.write_text("")

    def _write(self) -> None:
        self.beaten = time.time()
        self.path.write_text(json.dumps(self.owner | {"beat": self.beaten}))

    def _is_ours(self, owner: dict[str, Any]) -> bool:
        return self.owner.items() <= owner.items()

    def _in_use(self, owner: dict[str, Any]) -> UserError:
        return UserError(
            f"{self.path.parent} is in use by process {owner.get('pid')} on {owner.get('host')}; "
            "wait for it, stop it, or choose another --out"
        )


@contextlib.contextmanager
def lease(folder: Path) -> Iterator[Lease]:
    """Own a folder for the duration of the block.

    The lease of a dead process of this host is taken over, and so is one without a heartbeat for
    `STALE_SECONDS`.

    Raises:
        UserError: If another driver owns the folder, naming it; or if it cannot be written.
    """
    own, ended = Lease(folder / FILE), threading.Event()
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        own.take()

    def keep_alive() -> None:
        while not ended.wait(HEARTBEAT_SECONDS):
            try:
                own.beat()
            except (OSError, UserError):  # a full disk or a lost network: try again
                own.lost = time.time() - own.beaten > STALE_SECONDS

    heart = threading.Thread(target=keep_alive, daemon=True)
    heart.start()
    try:
        yield own
    finally:
        ended.set()
        heart.join()
        with contextlib.suppress(OSError, UserError):  # otherwise it becomes stale
            own.release()


def not_visible(folder: Path, host: str) -> UserError:
    """Return the error that a machine does not see the folder that the driver owns."""
    return UserError(
        f"{folder} is not visible on {host}; choose an --out on a disk that all machines share, "
        "or on an object store such as s3://bucket/study"
    )


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other drivers out while a lease is read and written."""
    if isinstance(path, Remote):
        yield
        return
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def read_owner(path: Path) -> dict[str, Any]:
    """Return host, pid, since and beat (Unix times) of the last owner; empty if it released it."""
    try:
        owner: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}  # released, or interrupted while it was written
    return owner


def alive(owner: dict[str, Any]) -> bool:
    """Tell whether an owner still works, as far as this host can tell."""
    if not owner or time.time() - owner["beat"] > STALE_SECONDS:
        return False
    if owner["host"] != socket.gethostname():
        return True
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # alive, owned by another user
    return True
