"""`python -m tarflow data`: import images; `data encode` makes latents of them."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from tarflow.commands.progress import progress
from tarflow.errors import UserError

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

    `python -m tarflow data encode` then makes latents of the images, if a model is to be trained
    on these; a source that is called encode is written ./encode.

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


def data_encode(
    table: Annotated[str, tyro.conf.Positional],
    target: Annotated[Path, tyro.conf.Positional],
    /,
    autoencoder: Path,
    dtype: Literal["float16", "float32"] = "float16",
) -> int:
    """Encode images by an autoencoder, for a model of latents instead of pixels (STARFlow).

    The splits of the images stay; labels and conditions are copied. To resume after an
    interruption, run the same command again.

    Example: python -m tarflow data encode data/photos data/photos-latents --autoencoder sd-vae

    Args:
        table: Images, as data.name of a config: a folder that `python -m tarflow data` wrote, or
            the name of an embedded set.
        target: Folder to create; its path is then the name of the data in a config.
        autoencoder: Folder of an AutoencoderKL that diffusers saved. Its scaling_factor and
            shift_factor scale the latents.
        dtype: Type of the stored values.
    """
    from tarflow.config import ExecutionConfig
    from tarflow.device import choose_device
    from tarflow.latent.autoencoder import load_autoencoder
    from tarflow.latent.encoding import describe_encoding, encode_table

    device = choose_device(ExecutionConfig())
    space = encode_table(
        table, target, load_autoencoder(autoencoder, device), dtype, progress("encoded")
    )
    for line in describe_encoding(target, space):
        print(line)
    return 0


def data_text(
    table: Annotated[str, tyro.conf.Positional],
    target: Annotated[Path, tyro.conf.Positional],
    /,
    encoder: Path,
    column: str = "",
    tokens: int = 128,
) -> int:
    """Encode captions, for a model that is conditioned on text.

    The images and their other columns are copied, with the encoded captions as the column
    `condition` beside them. The encoding of the empty text stands for a dropped condition.

    Example: python -m tarflow data text captioned captioned-t5 --encoder flan-t5-xl

    Args:
        table: Folder or file of images with a column of text.
        target: Folder to create; its path is then the name of the data in a config.
        encoder: Folder of a text encoder that transformers saved, such as T5.
        column: Name of the column of text, if there are several.
        tokens: Tokens of every text: `model.condition_tokens`. Longer texts are cut.
    """
    from tarflow.config import ExecutionConfig
    from tarflow.data.tables import find_table
    from tarflow.data.text import encode_captions, load_encoder
    from tarflow.device import choose_device

    if tokens < 1:
        raise UserError(f"--tokens is {tokens}: it must be at least 1")
    find_table(table)  # a mistake there is said before minutes of loading
    device = choose_device(ExecutionConfig()).type
    encode, report, start = load_encoder(encoder, tokens, device), progress("encoded"), time.time()
    encoded = encode_captions(
        table, target, encode, column, lambda done, total: report(done, total, time.time() - start)
    )
    count, width = encoded.condition_shape
    print(
        f"{target}: {len(encoded.codes):,} captions; in the config of a run set "
        f"model.condition_tokens to {count} and model.condition_dim to {width}"
    )
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
