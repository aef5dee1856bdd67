"""Images in, batches out: the embedded sets, image tables, and imports from other layouts."""

from tarflow.data.images import (
    Description,
    Images,
    batch,
    choose_images,
    describe,
    hash_data,
    images_behind,
    latent_space,
    match_data,
    open_split,
    order,
    rows,
    source_of,
)
from tarflow.data.splits import SPLITS, Split

__all__ = [
    "SPLITS",
    "Description",
    "Images",
    "Split",
    "batch",
    "choose_images",
    "describe",
    "hash_data",
    "images_behind",
    "latent_space",
    "match_data",
    "open_split",
    "order",
    "rows",
    "source_of",
]
