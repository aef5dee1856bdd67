"""Files of extractor weights: which are safe to read, and how features of them are named."""

import hashlib
from pathlib import Path
from pickle import UnpicklingError

import torch

from tarflow.errors import UserError


def check_safe(path: Path, program: str | None) -> str:
    """Return the SHA-256 of a file; refuse the file if it can do more than hold tensors.

    Args:
        path: File that will be unpickled.
        program: SHA-256 of the one file that may be a TorchScript program, as CLIP's are.
    """
    try:
        with path.open("rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
        if program is None:
            torch.load(path, weights_only=True, map_location="meta")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (UnpicklingError, RuntimeError, EOFError):
        raise UserError(f"{path} is not a plain file of weights saved by torch.save") from None
    if program and digest != program:
        raise UserError(
            f"{path} is not the published file: its SHA-256 is {digest[:8]}..., not "
            f"{program[:8]}...; such files are programs, so no other is read"
        )
    return digest


def label(network: str, digest: str, published: str) -> str:
    """Return the name of features: other weights than the published give other numbers.

    Args:
        network: Name of the network.
        digest: SHA-256 of the file that was read.
        published: SHA-256 of the published file or its first digits; empty if unknown.
    """
    return network if published and digest.startswith(published) else f"{network}:{digest[:8]}"
