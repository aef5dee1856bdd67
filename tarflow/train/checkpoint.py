"""The full state of an unfinished run on disk: whole, checksummed, the two newest kept.

Tensors are safetensors and facts are JSON, so reading a state runs no code from it.
"""

import contextlib
import json
import time
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from mmap import ACCESS_READ, mmap
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from tarflow.errors import UserError
from tarflow.record import write_json
from tarflow.storage import local_copy

if TYPE_CHECKING:
    from torch import Tensor

KEPT = 2
SHARE = 0.02  # of training time that saving states may cost


class StateWriter:
    """Saves states in the background, one at a time, while training goes on.

    A write that failed raises its error at the next `save` or at the end of the block.
    """

    def __init__(self, folder: Path) -> None:
        """Serve one folder of states."""
        self.folder = folder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="state")
        self._pending: Future[None] | None = None
        self._host: dict[str, Tensor] = {}
        self._copying = self._writing = 0.0  # seconds of the last state, if they slow training
        self._apart = False  # whether training goes on in an accelerator while a state is written

    def __enter__(self) -> "StateWriter":
        """Begin."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Wait for the last write; its error is raised unless there is another one already."""
        self._thread.shutdown()
        if error is None:
            self.wait()

    def wait(self) -> None:
        """Wait for the write that is going on."""
        pending, self._pending = self._pending, None
        if pending:
            pending.result()

    def interval(self, wanted: float) -> float:
        """Return the seconds between states: more than wanted if they are dear; 0 stays 0."""
        return max(wanted, (self._copying + self._writing) / SHARE) if wanted else 0.0

    def save(
        self,
        images: int,
        tensors: "Iterable[tuple[str, Tensor]]",
        facts: Mapping[str, Any],
        kept: Path | None = None,
    ) -> None:
        """Copy the tensors to host memory, one by one, and begin to write; see `save_state`.

        With `kept`, another folder, they go there instead and no older state is removed.
        """
        import torch

        self.wait()
        start = time.perf_counter()
        for name, tensor in tensors:
            if name not in self._host:  # used again: fresh memory costs more than the copy
                self._host[name] = torch.empty_like(
                    tensor, device="cpu", pin_memory=tensor.is_cuda, requires_grad=False
                )
            self._host[name].copy_(tensor.detach())
            self._apart = tensor.is_cuda
        self._copying = time.perf_counter() - start
        try:
            self._pending = self._thread.submit(self._write, images, facts, kept)
        except RuntimeError:  # the interpreter is shutting down and starts no thread any more
            self._write(images, facts, kept)

    def _write(self, images: int, facts: Mapping[str, Any], kept: Path | None) -> None:
        start = time.perf_counter()
        save_state(kept or self.folder, images, self._host, facts, 0 if kept else KEPT)
        self._writing = 0.0 if self._apart else time.perf_counter() - start


def save_state(
    folder: Path,
    images: int,
    tensors: "Mapping[str, Tensor]",
    facts: Mapping[str, Any],
    newest: int = KEPT,
) -> None:
    """Save a state reached at `images` seen; facts are JSON. Only the newest are kept; 0 is all.

    Raises:
        UserError: if it cannot be written; the states before are then whole.
    """
    from tarflow.model.weights import write_tensors

    stem = folder / checkpoint_name(images)
    checksum = write_tensors(stem.with_suffix(".safetensors"), tensors)
    write_json(stem.with_suffix(".json"), {"crc32": checksum, "images": images, **facts})
    for old in sorted(folder.glob("*.json"))[:-newest]:
        remove_checkpoint(folder, int(old.stem))


def load_state(
    folder: Path, images: int | None = None
) -> "tuple[dict[str, Tensor], dict[str, Any]] | None":
    """Return tensors and facts of the newest sound state, or None.

    With `images`, states beyond so many are not looked at. A state that is truncated or whose
    checksum is wrong is passed over for the one before. Tensors are read when they are used.

    Raises:
        UserError: if the object store that holds them cannot be reached.
    """
    from safetensors.torch import load_file

    for path in sorted(folder.glob("*.json"), reverse=True):
        if images is not None and path.stem > checkpoint_name(images):
            continue
        try:
            facts: dict[str, Any] = json.loads(path.read_text())
            with local_copy(path.with_suffix(".safetensors")) as local:
                with local.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as whole:
                    sound = zlib.crc32(whole) == facts["crc32"]
                if sound:
                    return load_file(local), facts
        except UserError:
            raise
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            continue
    return None


def checkpoint_name(images: int) -> str:
    """Return the stem of the files of a checkpoint; stems sort by images seen."""
    return f"{images:015d}"


def saved_images(folder: Path) -> list[int]:
    """Return the numbers of images at which the checkpoints of a folder were saved, ascending."""
    return sorted(int(path.stem) for path in folder.glob("*.json"))


def remove_checkpoint(folder: Path, images: int) -> None:
    """Remove a checkpoint if it exists."""
    for suffix in (".json", ".safetensors"):
        (folder / checkpoint_name(images)).with_suffix(suffix).unlink(missing_ok=True)


def remove_checkpoints(folder: Path) -> None:
    """Remove a folder of checkpoints if it exists."""
    with contextlib.suppress(OSError):
        for path in folder.glob("*"):
            path.unlink(missing_ok=True)
        folder.rmdir()
