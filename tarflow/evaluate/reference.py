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

_VERSION = 2  # of what `features` computes; raised when cached features would be wrong


def cached_features(images: Pixels, extractor: Extractor, batch: int = 50) -> NDArray[np.float32]:
    """Compute features as `features` does, or read them from the cache folder.

    The file's name holds the extractor with its resizing, the number of images, and a hash of the
    weights and of the pixels themselves, so another data set, split, count, extractor, resize or
    weights is another file. Any number of processes may ask at once: each that finds nothing
    computes, and whole files replace one another.

    Raises:
        UserError: if the cache folder cannot be written.
    """
    path = cache_folder() / "features" / f"{key(images, extractor)}.npy"
    if (found := _read(path, len(images))) is not None:
        return found
    made = features(images, extractor, batch)
    try:
        with replacing(path) as temporary, temporary.open("wb") as handle:
            np.save(handle, made)
    except UserError as error:
        raise UserError(f"{error}; or set TARFLOW_CACHE to another folder") from None
    return made


def key(images: Pixels, extractor: Extractor) -> str:
    """Name the features of these very images in this extractor.

    The pixels are hashed, not the name of their data set: names can be given twice.
    """
    pixels = np.ascontiguousarray(images.cpu().numpy() if isinstance(images, Tensor) else images)
    digest = hashlib.sha256(pixels.data)
    digest.update(f"{pixels.shape}|{extractor.name}|{extractor.digest}|{_VERSION}".encode())
    readable = re.sub(r"[^a-z0-9@]+", "-", extractor.name)
    return f"{readable}-{len(images)}-{digest.hexdigest()[:32]}"


def _read(path: Path, count: int) -> NDArray[np.float32] | None:
    """Return what a file holds; None if it is absent or was damaged, so that it is made anew."""
    try:
        found: NDArray[np.float32] = np.load(path)
    except (OSError, ValueError, EOFError):
        return None
    return found if len(found) == count else None
