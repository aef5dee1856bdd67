"""Images in, batches out: the embedded sets, image tables, and the imports that make them."""

from tarflow.data.images import (
    Description,
    Images,
    batch,
    describe,
    hash_data,
    match_data,
    open_split,
    order,
)
from tarflow.data.splits import SPLITS, Split

__all__ = [
    "SPLITS",
    "Description",
    "Images",
    "Split",
    "batch",
    "describe",
    "hash_data",
    "match_data",
    "open_split",
    "order",
]
