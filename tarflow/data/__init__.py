"""Images in, batches out: the embedded sets, image tables, and imports from other layouts."""

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
from tarflow.data.tables import SPLITS, Split

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
