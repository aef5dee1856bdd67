"""The folder of an autoencoder as diffusers' `save_pretrained` wrote it, without its network.

A plan checks it before any training, in milliseconds and without torch.
"""

import hashlib
import importlib.util
import json
from collections.abc import Iterable
from pathlib import Path

from tarflow import data
from tarflow.config import RunConfig
from tarflow.errors import UserError
from tarflow.identity import UNKNOWN
from tarflow.latent_space import LatentSpace
from tarflow.storage import expand

OTHER = "name {} with --autoencoder, or evaluation.autoencoder in a config"


def check_folder(folder: Path) -> None:
    """Check that a folder holds an autoencoder, and that diffusers can read it.

    Raises:
        UserError: If diffusers is not installed, or the folder is missing or holds another model.
    """
    kind = _kind(folder)
    if importlib.util.find_spec("diffusers") is None:
        raise UserError("latents need the package diffusers: pip install 'tarflow[latents]'")
    if kind != "AutoencoderKL":
        raise UserError(
            f"{folder} holds {kind or 'no model of diffusers'}: name the folder of an "
            "AutoencoderKL, which in a pipeline is its folder vae"
        )


def check_autoencoder(space: LatentSpace, folder: str = "") -> tuple[Path, str]:
    """Find the autoencoder of a latent space, or another one.

    Args:
        space: Latent space of a table or model.
        folder: Folder of another autoencoder; empty for the one that encoded the latents.

    Returns:
        Its folder, and the hash of its content.

    Raises:
        UserError: As `check_folder`; if it has changed since it encoded the latents.
    """
    if not (folder or space.autoencoder):
        raise UserError(
            f"nothing says where the autoencoder of these latents is: {OTHER.format('its folder')}"
        )
    path = expand(Path(folder or space.autoencoder))
    try:
        check_folder(path)
    except UserError as error:
        if folder:
            raise
        raise UserError(
            f"{error} (the autoencoder of these latents); if it has moved, "
            f"{OTHER.format('its folder')}"
        ) from None
    digest = digest_of(path)
    if not folder and digest != space.autoencoder_hash:
        raise UserError(
            f"the autoencoder in {path} has changed since it encoded the latents: its hash is "
            f"{digest}, not {space.autoencoder_hash}; {OTHER.format('one that decodes them')}"
        )
    return path, digest


def check_decodes(configs: Iterable[RunConfig]) -> None:
    """Check that the samples of runs can be decoded, where they are latents.

    Runs whose data are not here, as in the plan of a dry run, are not checked.

    Raises:
        UserError: As `check_autoencoder`.
    """
    drawn = [config for config in configs if config.evaluation.samples]
    for images, folder in dict.fromkeys((c.data, c.evaluation.autoencoder) for c in drawn):
        space = None if images.hash == UNKNOWN else data.latent_space(images)
        if space:
            check_autoencoder(space, folder)


def digest_of(folder: Path) -> str:
    """Hash the config and the weights of a folder."""
    hashed = hashlib.sha256()
    for path in (folder / "config.json", *sorted(folder.glob("*.safetensors"))):
        with path.open("rb") as file:
            hashed.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return hashed.hexdigest()[:16]


def _kind(folder: Path) -> str:
    """Return the class that the config of a folder names; empty if it names none."""
    try:
        return str(json.loads((folder / "config.json").read_text()).get("_class_name", ""))
    except FileNotFoundError:
        raise UserError(f"no autoencoder in {folder}: it has no config.json") from None
    except (OSError, ValueError, AttributeError):
        return ""
