"""Features of reference images, computed once and kept in the cache folder.

Legend: `N` images, `F` features.
"""

import hashlib
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tarflow.errors import UserError
from tarflow.evaluate.features import Extractor, Pixels, features
from tarflow.record import replacing
from tarflow.storage import cache_folder

_VERSION = 2  # of the values that `features` computes; raise it when they change


def cached_features(images: Pixels, extractor: Extractor, batch: int = 50) -> NDArray[np.float32]:
    """Return what `features` computes, read from the cache folder if it is there.

    Any number of processes may ask at once: each that finds no file computes, and whole files
    replace one another.

    Raises:
        UserError: If the cache folder cannot be written.
    """
    path = cache_folder() / "features" / f"{key(images, extractor)}.npy"
    if (cached := _read(path, len(images))) is not None:
        return cached
    computed = features(images, extractor, batch)
    try:
        with replacing(path) as temporary, temporary.open("wb") as handle:
            np.save(handle, computed)
    except UserError as error:
        raise UserError(f"{error}; or set TARFLOW_CACHE to another folder") from None
    return computed


def key(images: Pixels, extractor: Extractor) -> str:
    """Name the features of exactly these images under this extractor.

    The name holds the extractor with its resizing, the number of images, and a hash of weights
    and pixels. The pixels are hashed because two data sets can have the same name.
    """
    pixels = np.ascontiguousarray(images.cpu().numpy() if isinstance(images, Tensor) else images)
    digest = hashlib.sha256(pixels.data)
    digest.update(f"{pixels.shape}|{extractor.name}|{extractor.digest}|{_VERSION}".encode())
    readable = re.sub(r"[^a-z0-9@]+", "-", extractor.name)
    return f"{readable}-{len(images)}-{digest.hexdigest()[:32]}"


def _read(path: Path, count: int) -> NDArray[np.float32] | None:
    """Return the features in a file; None if it is absent or damaged, so that it is rewritten."""
    try:
        cached: NDArray[np.float32] = np.load(path)
    except (OSError, ValueError, EOFError):
        return None
    return cached if len(cached) == count else None
