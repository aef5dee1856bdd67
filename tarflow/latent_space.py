"""What a table of latents says about itself: their shape, their autoencoder, their images.

Legend: `C` channels of a latent, `S` values along one side.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import ConfigDict

from tarflow.config_files import from_dict, to_dict

LATENT = "latent"  # of a table: the little-endian values of one latent, C, S, S
KEY = "latents"  # in the metadata of a table, and of the models trained on it
FILE = "latents.json"  # beside the shards of a table, what their metadata say and the places


@dataclass(frozen=True, kw_only=True)
class LatentSpace:
    """Where latents come from. A latent is `(mean of the posterior - shift) * scaling`."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    shape: tuple[int, int, int]  # of one latent, (C, S, S)
    dtype: Literal["float16", "float32"]
    scaling: float
    shift: float
    autoencoder: str = ""  # folder that diffusers saved; empty if nothing says it
    autoencoder_hash: str
    image_channels: int  # of the images that were encoded
    image_size: int  # pixels along one side of these images
    source: str = ""  # name of the data that were encoded; empty if nothing says it
    source_hash: str  # hash of their content

    @property
    def row_bytes(self) -> int:
        """Bytes of one latent in a table."""
        channels, height, width = self.shape
        return channels * height * width * {"float16": 2, "float32": 4}[self.dtype]

    @property
    def anywhere(self) -> "LatentSpace":
        """The same without places: what the shards of a table say, and its hash covers."""
        return replace(self, autoencoder="", source="")

    def to_json(self) -> str:
        """Return the text that metadata hold under `KEY`."""
        return json.dumps({key: value for key, value in to_dict(self).items() if value != ""})


def read_latent_space(metadata: Mapping[str, str], where: str) -> LatentSpace | None:
    """Return the latent space in the metadata of a file, or None if it holds none.

    Args:
        metadata: Metadata of a table or model.
        where: How an error names the file.

    Raises:
        ConfigError: If the metadata are those of another program or release.
    """
    if KEY not in metadata:
        return None
    return from_dict(LatentSpace, json.loads(metadata[KEY]), where=where)
