"""Compare gathering whole batches with a torch DataLoader that fetches single images.

Both take turns reading the same memory-mapped array (leaves, 20,000 images of 32x32x3) in random
order in batches of 256. Prints the figures of this machine, then the ratio of the medians, which
is the number to compare between machines.
"""

import os
import statistics
import time
from collections.abc import Callable

import torch
from torch.utils.data import DataLoader, Dataset

from tarflow.config import DataConfig
from tarflow.data.images import Images, batch, open_split, order

BATCH = 256
ROUNDS = 7


class PerSample(Dataset[torch.Tensor]):
    """A data set that returns one image at a time, as in most training scripts."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.images.pixels[index].copy())


def gather(images: Images, epoch: int) -> int:
    """Read an epoch in batches; return the number of images."""
    count = len(images) // BATCH * BATCH
    for start in range(0, count, BATCH):
        seen = epoch * len(images) + start
        torch.from_numpy(batch(images, order(len(images), 0, seen, BATCH)))
    return count


def load(images: Images, epoch: int) -> int:
    """Read an epoch through a DataLoader; return the number of images."""
    del epoch  # the loader draws its own order
    loader = DataLoader(PerSample(images), BATCH, shuffle=True, drop_last=True)
    return sum(len(images) for images in loader)


def rate(read: Callable[[Images, int], int], images: Images, epoch: int) -> float:
    """Return images per second of one epoch."""
    start = time.perf_counter()
    return read(images, epoch) / (time.perf_counter() - start)


def main() -> None:
    """Time both in turns and print the medians and their ratio."""
    images = open_split(DataConfig(name="leaves"), "train")
    gather(images, 0)  # read the file into memory
    pairs = [(rate(gather, images, i), rate(load, images, i)) for i in range(1, ROUNDS + 1)]
    gathered, loaded = (statistics.median(rates) for rates in zip(*pairs, strict=True))
    print(f"{os.cpu_count()} CPUs, {ROUNDS} rounds, batches of {BATCH} images of 32x32x3")
    print(f"batched gather         {gathered:10,.0f} images/s")
    print(f"DataLoader per sample  {loaded:10,.0f} images/s")
    print(f"ratio                  {gathered / loaded:10.1f}")


if __name__ == "__main__":
    main()
