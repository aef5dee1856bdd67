"""The full state of an unfinished run on disk: atomic, checksummed, the two newest kept."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor

from tarflow.record import replacing, write_json

KEPT = 2


def save_state(
    folder: Path, images: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
) -> None:
    """Save a state reached at `images` seen; facts are JSON. Older states but one are removed."""
    content = dump_tensors({name: tensor.contiguous() for name, tensor in tensors.items()})
    stem = folder / f"{images:015d}"
    with replacing(stem.with_suffix(".safetensors")) as temporary:
        temporary.write_bytes(content)
    checksum = hashlib.sha256(content).hexdigest()
    write_json(stem.with_suffix(".json"), {"sha256": checksum, "images": images, **facts})
    for old in sorted(folder.glob("*.json"))[:-KEPT]:
        old.unlink(missing_ok=True)
        old.with_suffix(".safetensors").unlink(missing_ok=True)


def load_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return tensors and facts of the newest sound state, or None.

    A state that is truncated or whose checksum is wrong is passed over for the one before.
    """
    for path in sorted(folder.glob("*.json"), reverse=True):
        try:
            facts: dict[str, Any] = json.loads(path.read_text())
            content = path.with_suffix(".safetensors").read_bytes()
            if hashlib.sha256(content).hexdigest() == facts["sha256"]:
                return load_tensors(content), facts
        except (OSError, ValueError, KeyError, SafetensorError):
            continue
    return None
