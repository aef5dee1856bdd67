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

from tarflow.errors import UserError
from tarflow.storage import Remote, writing

HEARTBEAT_SECONDS = 5.0
STALE_SECONDS = 60.0  # without a heartbeat: the owner's machine is gone
SETTLE_SECONDS = 1.0  # until the last of several puts to an object store is the one that counts
FILE = "lease.json"


class Lease:
    """What the owner of a folder holds; `lost` says that another driver has taken it over."""

    def __init__(self, path: Path) -> None:
        """Describe a lease that is about to be written."""
        self.path = path
        self.owner = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
        self.lost = False
        self.beaten = time.time()

    def take(self) -> None:
        """Become the owner.

        Raises:
            UserError: if another driver is.
        """
        with _locked(self.path):
            there = _read(self.path)
            if there and _alive(there):
                raise self._taken(there)
            self._write()
        if isinstance(
            self.path, Remote
        ):  # which has no lock: of two that write, the last one wins
            time.sleep(SETTLE_SECONDS)
            if not self._ours(there := _read(self.path)):
                raise self._taken(there)

    def beat(self) -> None:
        """Renew the heartbeat, unless somebody else owns the folder by now."""
        with _locked(self.path):
            there = _read(self.path)
            self.lost = self.lost or (bool(there) and not self._ours(there))
            if not self.lost:
                self._write()

    def release(self) -> None:
        """Let the next driver in."""
        with _locked(self.path):
            if self._ours(_read(self.path)):
                self.path.write_text("")

    def _write(self) -> None:
        self.beaten = time.time()
        self.path.write_text(json.dumps(self.owner | {"beat": self.beaten}))

    def _ours(self, there: dict[str, Any]) -> bool:
        return self.owner.items() <= there.items()

    def _taken(self, there: dict[str, Any]) -> UserError:
        return UserError(
            f"{self.path.parent} is in use by process {there.get('pid')} on {there.get('host')}; "
            "wait for it, stop it, or choose another --out"
        )


@contextlib.contextmanager
def lease(folder: Path) -> Iterator[Lease]:
    """Own a folder for as long as the block runs.

    A lease is taken over if its owner is a dead process of this host, or has had no heartbeat for
    `STALE_SECONDS`.

    Raises:
        UserError: if another driver owns the folder, saying which; or if it cannot be written.
    """
    held, ended = Lease(folder / FILE), threading.Event()
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        held.take()

    def keep() -> None:
        while not ended.wait(HEARTBEAT_SECONDS):
            try:
                held.beat()
            except (OSError, UserError):  # the disk is full, or the network away: try again
                held.lost = time.time() - held.beaten > STALE_SECONDS

    heart = threading.Thread(target=keep, daemon=True)
    heart.start()
    try:
        yield held
    finally:
        ended.set()
        heart.join()
        with contextlib.suppress(OSError, UserError):  # then it goes stale
            held.release()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other drivers out while a lease is read and written."""
    if isinstance(path, Remote):
        yield
        return
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _read(path: Path) -> dict[str, Any]:
    try:
        owner: dict[str, Any] = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}  # released, or cut off while it was written
    return owner


def _alive(owner: dict[str, Any]) -> bool:
    if time.time() - owner["beat"] > STALE_SECONDS:
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
