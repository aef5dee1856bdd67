"""One driver at a time on a study folder: a lease that names its owner and has a heartbeat."""

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

from tarflow.config import ConfigError

HEARTBEAT_SECONDS = 5.0
STALE_SECONDS = 60.0  # without a heartbeat: the owner's machine is gone
FILE = "lease.json"


class Lease:
    """What the owner of a folder holds; `lost` says that another driver has taken it over."""

    def __init__(self, path: Path, owner: dict[str, Any]) -> None:
        """Describe a lease that has just been written."""
        self.path, self.owner = path, owner
        self.lost = False

    def beat(self) -> None:
        """Renew the heartbeat, unless somebody else owns the folder by now."""
        with _locked(self.path):
            self.lost = self.lost or _read(self.path) != self.owner
            if not self.lost:
                os.utime(self.path)

    def release(self) -> None:
        """Let the next driver in."""
        with _locked(self.path):
            if _read(self.path) == self.owner:
                self.path.write_text("")


@contextlib.contextmanager
def lease(folder: Path) -> Iterator[Lease]:
    """Own a folder for as long as the block runs.

    A lease is taken over if its owner is a dead process of this host, or has had no heartbeat for
    `STALE_SECONDS`.

    Raises:
        ConfigError: if another driver owns the folder, saying which.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    owner = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
    with _locked(path):
        there = _read(path)
        if there and _alive(there, path):
            raise ConfigError(
                f"{folder} is in use by process {there['pid']} on {there['host']}; "
                "wait for it, stop it, or choose another --out"
            )
        path.write_text(json.dumps(owner))
    held, ended = Lease(path, owner), threading.Event()

    def keep() -> None:
        while not ended.wait(HEARTBEAT_SECONDS):
            held.beat()

    heart = threading.Thread(target=keep, daemon=True)
    heart.start()
    try:
        yield held
    finally:
        ended.set()
        heart.join()
        held.release()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other drivers out while a lease is read and written."""
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _read(path: Path) -> dict[str, Any]:
    try:
        owner: dict[str, Any] = json.loads(path.read_text())
    except ValueError:
        return {}  # released, or cut off while it was written
    return owner


def _alive(owner: dict[str, Any], path: Path) -> bool:
    if time.time() - path.stat().st_mtime > STALE_SECONDS:
        return False
    if owner["host"] != socket.gethostname():
        return True
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # alive, of another user
    return True
