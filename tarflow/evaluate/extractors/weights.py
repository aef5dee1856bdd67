"""Files of extractor weights: where the published ones lie, and which files are safe to read."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch_fidelity.feature_extractor_clip import MODEL_METADATA as CLIP
from torch_fidelity.feature_extractor_clip import MODEL_URLS as CLIP_URLS
from torch_fidelity.feature_extractor_dinov2 import MODEL_METADATA as DINOV2
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

from tarflow.errors import UserError
from tarflow.evaluate.extractors.lite0 import LITE0, installed_weights

_DINOV2_URL = "https://dl.fbaipublicfiles.com/dinov2"


@dataclass(frozen=True)
class Published:
    """The published weights of a network."""

    path: Path  # where the file lies on this machine, once it is downloaded
    url: str  # empty if the file is installed
    digest: str  # SHA-256 or the first digits of it; empty for DINOv2, which publishes none

    def download(self) -> Path:
        """Return the file, downloaded if it is absent."""
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                torch.hub.download_url_to_file(
                    self.url, str(self.path), self.digest or None, progress=False
                )
            except (OSError, RuntimeError) as error:
                raise UserError(
                    f"cannot download {self.url} ({error}): fetch it elsewhere and put it at "
                    f"{self.path}, or name the file with --weights"
                ) from None
        return self.path


def published(network: str) -> Published:
    """Return the published weights of a network that torch-fidelity knows by this name."""
    folder, url = Path(torch.hub.get_dir()) / "checkpoints", ""
    if network.startswith(LITE0):
        path = installed_weights()
    elif network in CLIP:
        path, url = folder / f"{network}-{CLIP[network]['hash']}.pt", CLIP_URLS[network]
    elif network in DINOV2:
        path = folder / f"{DINOV2[network]}_pretrain.pth"
        url = f"{_DINOV2_URL}/{DINOV2[network]}/{path.name}"
    else:
        path, url = folder / Path(URL_INCEPTION_V3).name, URL_INCEPTION_V3
    # Except for DINOv2, files are named by torch.hub's convention, name-HASH.
    return Published(path, url, "" if network in DINOV2 else path.stem.rpartition("-")[2])


def check_safe(path: Path, program: str | None) -> str:
    """Return the SHA-256 of a file; refuse the file if it can do more than hold tensors.

    Args:
        path: File that torch-fidelity will unpickle.
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
