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
    skip_broken: bool = False,
) -> int:
    """Import images into the one format that training reads: Parquet, as Hugging Face writes it.

    Example: python -m tarflow data photos data/photos --size 64

    Args:
        source: Folder with a subfolder per class; file or folder of NumPy archives, such as
            ImageNet64's; CIFAR's unpacked folder; or, for hub, the name of a Hugging Face
            data set.
        target: Folder to create; its path is then the name of the data in a config.
        kind: Kind of the source.
        size: Pixels along one side after resizing and cropping (folder and hub only).
        grey: Convert the images to grey (folder and hub only).
        skip_broken: Leave out images that cannot be read instead of refusing (folder only).
    """
    from tarflow.data import importing

    if kind == "folder":
        imported = importing.import_folder(Path(source), target, size, grey, skip_broken)
    elif kind == "npz":
        imported = importing.import_npz(Path(source), target)
    elif kind == "cifar":
        imported = importing.import_cifar(Path(source), target)
    else:
        imported = importing.import_hub(source, target, size, grey)
    counts = ", ".join(f"{count:,} {split}" for split, count in imported.counts.items())
    print(f"{target}: {counts}")
    for note in imported.notes:
        print(note)
    return 0
