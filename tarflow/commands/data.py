"""`python -m tarflow data`: import images."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from tarflow.data.tables import Table


def data(
    source: Annotated[str, tyro.conf.Positional],
    target: Annotated[Path, tyro.conf.Positional],
    /,
    kind: Literal["auto", "folder", "npz", "cifar", "idx", "hub"] = "auto",
    size: int = 64,
    grey: bool = False,
    skip_broken: bool = False,
    preview: Path | None = None,
) -> int:
    """Import images into the one format that training reads: Parquet, as Hugging Face writes it.

    Example: python -m tarflow data photos data/photos --size 64 --preview photos.png

    Args:
        source: Folder with a subfolder per class; file or folder of NumPy archives, such as
            ImageNet64's; CIFAR's unpacked folder; folder of IDX files, such as MNIST's; or, for
            hub, the name of a Hugging Face data set.
        target: Folder to create; its path is then the name of the data in a config.
        kind: Kind of the source; auto tells all but hub by the names of the files.
        size: Pixels along one side after resizing and cropping (folder and hub only).
        grey: Convert the images to grey (folder and hub only).
        skip_broken: Leave out images that cannot be read (folder and hub only).
        preview: Picture to write: a row of images of each class, of the first 12.
    """
    from tarflow.data import importing
    from tarflow.data.hub import import_hub
    from tarflow.data.tables import find_table

    folder = Path(source)
    kind = importing.recognise(folder) if kind == "auto" else kind
    if kind == "folder":
        imported = importing.import_folder(folder, target, size, grey, skip_broken)
    elif kind == "npz":
        imported = importing.import_npz(folder, target)
    elif kind == "cifar":
        imported = importing.import_cifar(folder, target)
    elif kind == "idx":
        imported = importing.import_idx(folder, target)
    else:
        imported = import_hub(source, target, size, grey, skip_broken)
    table = find_table(str(target))
    counts = ", ".join(f"{count:,} {split}" for split, count in imported.counts.items())
    print(f"{target}: {counts}")
    print(_describe(table))
    for note in imported.notes:
        print(note)
    if preview:
        _write_preview(table, preview)
        print(f"preview: {preview}")
    return 0


def _describe(table: "Table") -> str:
    channels, side, _ = table.shape
    labels = f"labels 0 to {table.classes - 1:,}" if table.classes else "no labels"
    return f"stored as {side}x{side} pixels, {'grey' if channels == 1 else 'colour'}; {labels}"


def _write_preview(table: "Table", path: Path) -> None:
    import torch

    from tarflow.data.preview import COLUMNS, preview
    from tarflow.sample.grid import image_grid, save_grid

    images = torch.from_numpy(preview(table))
    save_grid(path, image_grid(images, columns=COLUMNS), {"data": Path(table.root).name})
