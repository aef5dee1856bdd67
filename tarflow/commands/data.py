"""`python -m tarflow data`: import images."""

from pathlib import Path
from typing import Annotated, Literal

import tyro


def data(
    source: Annotated[str, tyro.conf.Positional],
    target: Annotated[Path, tyro.conf.Positional],
    /,
    kind: Literal["folder", "npz", "cifar", "hub"] = "folder",
    size: int = 64,
    grey: bool = False,
) -> int:
    """Import images into the one format that training reads: Parquet, the Hugging Face way.

    Example: python -m tarflow data photos data/photos --size 64

    Args:
        source: class folders; ImageNet64's npz batches; CIFAR's unpacked folder; or, for hub, the
            name of a Hugging Face data set.
        target: folder to make; its path is then the name of the data in a config.
        kind: of the source.
        size: pixels along one side after resizing and cutting (folder and hub).
        grey: make grey images (folder and hub).
    """
    from tarflow.data import importing as imports

    if kind == "folder":
        counts = imports.import_folder(Path(source), target, size, grey)
    elif kind == "npz":
        counts = imports.import_npz(Path(source), target)
    elif kind == "cifar":
        counts = imports.import_cifar(Path(source), target)
    else:
        counts = imports.import_hub(source, target, size, grey)
    print(f"{target}: " + ", ".join(f"{count:,} {split}" for split, count in counts.items()))
    return 0
