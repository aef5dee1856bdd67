"""Checkpoints of an unfinished run: how its training state is saved, listed and restored.

A checkpoint is two files, tensors as safetensors and metadata as JSON, so reading one runs no code
from it. It holds whole tensors: one saved by four workers can be resumed by two. The newest two of
a run are kept. Only functions that move tensors import torch, so that a study can be planned
without it.
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

from tarflow.config import RunConfig
from tarflow.record import read_json, write_json
from tarflow.storage import local_copy
from tarflow.train.schedule import shared_images
from tarflow.train.trunk import Trunk

if TYPE_CHECKING:
    from torch import Tensor

    from tarflow.train.state import TrainState

KEPT = 2  # newest checkpoints of a run
SHARE = 0.02  # of training time that saving may cost


def checkpoint_name(images: int) -> str:
    """Return the stem of a checkpoint's files; stems sort by images seen."""
    return f"{images:015d}"


def saved_images(folder: Path) -> list[int]:
    """Return the numbers of images at which the checkpoints of a folder were saved, ascending."""
    return sorted(int(path.stem) for path in folder.glob("*.json"))


def newest_metadata(folder: Path) -> dict[str, Any]:
    """Return the metadata of the newest checkpoint; empty if there is none."""
    saved = saved_images(folder)
    path = folder / f"{checkpoint_name(saved[-1] if saved else 0)}.json"
    metadata: dict[str, Any] = read_json(path) or {}
    return metadata


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


def save(
    state: "TrainState",
    writer: "CheckpointWriter",
    trunk: Path | None = None,
    preempted: bool = False,
) -> None:
    """Begin to write a checkpoint: every worker gives its shards, the first one writes.

    Tensors are gathered one at a time, so no device ever holds a second whole state.

    Args:
        state: Training state; all workers must call this with theirs.
        writer: Writer of the run's folder.
        trunk: Folder to write to instead, for the branches of a trunk.
        preempted: Whether the process saves because it has to leave.
    """
    from tarflow import distributed

    gathered = ((name, distributed.full_tensor(tensor)) for name, tensor in state.tensors())
    if distributed.rank():
        for _ in gathered:
            pass
        return
    metadata = {
        "seconds": state.seconds,
        "curve": list(state.curve),
        "steps": state.loss_steps,
        "micro_batch": state.micro_batch,
        "inherited": state.inherited,
        "inherited_seconds": state.inherited_seconds,
        "resumed": state.resumed,
        "resumed_seconds": state.resumed_seconds,
        "preempted": preempted,
    }
    writer.save(state.images, gathered, metadata, trunk)


def restore(
    state: "TrainState", folder: Path, config: RunConfig, trunk: Trunk | None = None
) -> None:
    """Fill a fresh state from the newest sound checkpoint of a run, or else from its trunk's.

    The first worker reads it and sends the others their shards, tensor by tensor.
    """
    import torch

    from tarflow import distributed
    from tarflow.train import optim

    device = state.flow.var.device
    loaded = _newest(folder, config, trunk) if distributed.rank() == 0 else None
    tensors, metadata = loaded or ({}, {})
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    metadata, shapes = distributed.broadcast([metadata, shapes], device)
    if not metadata:
        return
    kinds = sorted({name.split(".")[1] for name in shapes if name.startswith("optimizer.")})
    parameters = dict(state.flow.named_parameters())
    for name, moments in optim.optimizer_state(state.flow, state.optimizers):
        for kind in kinds:  # an optimizer only makes its state in its first step
            if (shape := shapes.get(f"optimizer.{kind}.{name}")) is not None:
                like = parameters[name].detach()
                moments[kind] = torch.empty_like(like) if shape else torch.zeros((), device=device)
    for name, tensor in state.tensors():
        distributed.scatter(tensor, tensors[name] if distributed.rank() == 0 else None)
    state.images, state.seconds = metadata["images"], metadata["seconds"]
    state.curve, state.loss_steps = metadata["curve"], metadata["steps"]
    state.micro_batch = metadata["micro_batch"]
    state.inherited = metadata.get("inherited", 0)  # not in checkpoints of the first releases
    state.inherited_seconds = metadata.get("inherited_seconds", 0.0)
    state.resumed, state.resumed_seconds = state.images, state.seconds


def _newest(
    folder: Path, config: RunConfig, trunk: Trunk | None
) -> "tuple[dict[str, Tensor], dict[str, Any]] | None":
    """Return a run's own newest checkpoint, or else the one that it branches off its trunk at."""
    if loaded := load_checkpoint(folder, config.images):
        return loaded
    if trunk and (loaded := load_checkpoint(trunk.folder, shared_images(config))):
        metadata = loaded[1]
        metadata |= {"inherited": metadata["images"], "inherited_seconds": metadata["seconds"]}
    return loaded


class CheckpointWriter:
    """Saves checkpoints in the background, one at a time, while training continues.

    A write that failed raises its error at the next `save` or at the end of the block.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._host: dict[str, Tensor] = {}
        self._copying = self._writing = 0.0  # seconds that the last checkpoint slowed training
        self._on_accelerator = False  # then writing on the host does not slow training

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._thread.shutdown()
        if error is None:  # an error of the write must not hide that of the block
            self.wait()

    def wait(self) -> None:
        """Wait until the checkpoint being written is on disk."""
        pending, self._pending = self._pending, None
        if pending:
            pending.result()

    def interval(self, seconds: float) -> float:
        """Return the seconds between checkpoints: more than asked if saving is slow; 0 stays 0."""
        return max(seconds, (self._copying + self._writing) / SHARE) if seconds else 0.0

    def save(
        self,
        images: int,
        tensors: "Iterable[tuple[str, Tensor]]",
        metadata: Mapping[str, Any],
        trunk: Path | None = None,
    ) -> None:
        """Copy the tensors to host memory, one by one, and begin to write.

        Args:
            images: Training images seen.
            tensors: Names and tensors.
            metadata: Plain values for the JSON file.
            trunk: Folder to write to instead, where no older checkpoint is removed.
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
            self._on_accelerator = tensor.is_cuda
        self._copying = time.perf_counter() - start
        try:
            self._pending = self._thread.submit(self._write, images, metadata, trunk)
        except RuntimeError:  # the interpreter is shutting down and starts no more threads
            self._write(images, metadata, trunk)

    def _write(self, images: int, metadata: Mapping[str, Any], trunk: Path | None) -> None:
        start = time.perf_counter()
        save_checkpoint(trunk or self.folder, images, self._host, metadata, 0 if trunk else KEPT)
        self._writing = 0.0 if self._on_accelerator else time.perf_counter() - start


def save_checkpoint(
    folder: Path,
    images: int,
    tensors: "Mapping[str, Tensor]",
    metadata: Mapping[str, Any],
    newest: int = KEPT,
) -> None:
    """Write a checkpoint and remove older ones.

    Args:
        folder: Folder of the checkpoints.
        images: Training images seen.
        tensors: Tensors on the CPU, by name.
        metadata: Plain values for the JSON file.
        newest: Number of checkpoints to keep; 0 keeps all.

    Raises:
        UserError: If it cannot be written; earlier checkpoints are then whole.
    """
    from tarflow.model.weights import write_tensors

    stem = folder / checkpoint_name(images)
    checksum = write_tensors(stem.with_suffix(".safetensors"), tensors)
    write_json(stem.with_suffix(".json"), {"crc32": checksum, "images": images, **metadata})
    for old in sorted(folder.glob("*.json"))[:-newest]:
        remove_checkpoint(folder, int(old.stem))


def load_checkpoint(
    folder: Path, images: int | None = None
) -> "tuple[dict[str, Tensor], dict[str, Any]] | None":
    """Return tensors and metadata of the newest sound checkpoint, or None.

    A checkpoint that is truncated or whose checksum is wrong is skipped for the one before it.
    Tensors are read when they are used.

    Args:
        folder: Folder of the checkpoints.
        images: Most images that the checkpoint may have seen; by default any number.

    Raises:
        UserError: If the object store that holds them cannot be reached.
    """
    from safetensors.torch import load_file

    for path in sorted(folder.glob("*.json"), reverse=True):
        if images is not None and path.stem > checkpoint_name(images):
            continue
        try:
            metadata: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            with local_copy(path.with_suffix(".safetensors")) as local:
                with (
                    local.open("rb") as file,
                    mmap(file.fileno(), 0, access=ACCESS_READ) as content,
                ):
                    sound = zlib.crc32(content) == metadata["crc32"]
                if sound:
                    return load_file(local), metadata
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            continue
    return None
