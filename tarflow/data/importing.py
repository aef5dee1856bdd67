"""Make image tables from other layouts: class folders, NumPy archives, CIFAR, MNIST's IDX files.

Every import writes a new folder of shards, `train-00000.parquet` and so on, that
`tarflow.data.tables` reads, and returns what it wrote. `size` is the side of the images in pixels.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeAlias

from numpy.typing import NDArray

from tarflow import human
from tarflow.data import codec
from tarflow.data.archives import first_label, read_archive, split_in
from tarflow.data.broken import Broken
from tarflow.data.folders import find_images
from tarflow.data.idx import class_names, holds_idx, read_idx
from tarflow.data.plain_pickle import read_plain_pickle
from tarflow.data.shards import Imported, Row, write
from tarflow.data.splits import Split, split_named
from tarflow.errors import UserError

Kind: TypeAlias = Literal["folder", "npz", "cifar", "idx"]


def import_folder(
    source: Path, target: Path, size: int, grey: bool = False, skip_broken: bool = False
) -> Imported:
    """Import class folders: `source/CLASS/*.jpg`, or `source/train/CLASS/*.jpg` and so on.

    Split folders may lie at any depth; the folders above them that all images share are no part of
    the class. Images outside class folders get no label. Without split folders, every image is
    `train`. With `skip_broken`, files that cannot be read are left out instead of refused.

    Raises:
        UserError: If the target exists, files are no images (names them all), or the layout is
            another.
    """
    found = find_images(source)
    notes = [f"skipped: {found.describe_skipped()}"] if found.skipped else []
    files = found.paths
    if not files:
        raise UserError(
            "; ".join([f"{source} holds no images ({', '.join(sorted(codec.SUFFIXES))})", *notes])
        )
    groups = _splits_and_classes(source, files)
    names = sorted({name for _, name in groups if name})

    broken = Broken(skip_broken)
    colours, sizes = Counter[str](), Counter[tuple[int, int]]()

    def read(path: Path) -> tuple[bytes, str, tuple[int, int]] | UserError:
        try:
            image = codec.decode(path, str(path))
        except UserError as error:
            return error
        colour = "grey" if codec.is_grey(image) else "colour"
        return codec.to_square_png(image, size, grey), colour, image.size

    def rows() -> Iterator[Row]:
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(files), 512):  # bounds the images in memory
                chunk = slice(start, start + 512)
                images = pool.map(read, files[chunk])
                for (split, name), image in zip(groups[chunk], images, strict=True):
                    if isinstance(image, UserError):
                        broken.reasons.append(str(image))
                        continue
                    png, colour, pixels = image
                    colours[colour] += 1
                    sizes[pixels] += 1
                    yield split, png, names.index(name) if name else None
        broken.check(len(files))

    imported = write(target, rows(), names)
    if not names:
        imported.notes.append("no classes: the images are not in class folders")
    imported.notes.extend(_unseen_classes(groups, names))
    imported.notes.append(_describe_images(colours, sizes))
    imported.notes.extend(notes + broken.notes)
    return imported


def import_npz(source: Path, target: Path) -> Imported:
    """Import NumPy archives, such as ImageNet64's; `tarflow.data.archives` has the layouts.

    Any word in the name of an array or, failing that, of its file decides the split. Files named
    after validation become `test` if none is named after test: the literature reports the official
    validation images of ImageNet64, so no choice may be made on them.

    Raises:
        UserError: If the target exists, or a file is not such an archive or differs from the rest.
    """
    files = [source]
    if source.is_dir():
        files = [path for path in source.glob("*.npz") if not path.name.startswith(".")]
    if not files:
        raise UserError(f"{source} holds no .npz file")
    files.sort(key=_number)
    splits = {path: split_in(path.stem) for path in files}
    if "test" not in splits.values():
        splits = {
            path: "test" if split == "validation" else split for path, split in splits.items()
        }
    counted_from = first_label(files)
    labelled: set[bool] = set()
    shapes: set[tuple[int, ...]] = set()
    sources: dict[Split, list[str]] = {}  # arrays of images

    def rows() -> Iterator[Row]:
        for path in files:
            for part in read_archive(path, counted_from):
                labelled.add(part.labels is not None)
                shapes.add(part.images.shape[1:])
                if len(labelled) > 1:
                    raise UserError(f"{part.name}: some arrays of images have labels and some not")
                if len(shapes) > 1 or part.images.shape[2] != part.images.shape[3]:
                    raise UserError(f"{part.name}: the images must be square and of one size")
                split = part.split or splits[path] or "train"
                sources.setdefault(split, []).append(Path(part.name).name)
                labels = [None] * len(part.images) if part.labels is None else part.labels.tolist()
                for image, label in zip(part.images, labels, strict=True):
                    yield split, codec.encode_png(codec.to_image(image)), label

    imported = write(target, rows(), [])
    imported.notes.extend(f"{split}: {human.names(names)}" for split, names in sources.items())
    return imported


def import_cifar(source: Path, target: Path) -> Imported:
    """Import the Python version of CIFAR-10 or CIFAR-100 from its unpacked folder.

    The batches are pickles. An unpickler that builds only plain containers and uint8 arrays reads
    them, so that a forged file cannot run code.

    Raises:
        UserError: If the target exists, or a file is missing or holds anything else.
    """
    ten = (source / "batches.meta").exists()
    meta, label_key, names_key = (
        ("batches.meta", b"labels", b"label_names")
        if ten
        else ("meta", b"fine_labels", b"fine_label_names")
    )
    train = [f"data_batch_{number}" for number in range(1, 6)] if ten else ["train"]
    test = "test_batch" if ten else "test"
    try:
        names = [name.decode() for name in read_plain_pickle(source / meta)[names_key]]
    except KeyError:
        raise UserError(f"{source / meta} has no {names_key.decode()}") from None

    def rows() -> Iterator[Row]:
        for name in (*train, test):
            batch = read_plain_pickle(source / name)
            if label_key not in batch or b"data" not in batch:
                raise UserError(f"{source / name} is not a CIFAR batch")
            split: Split = "test" if name == test else "train"
            for png, label in _labelled_pngs(batch[b"data"], batch[label_key], source / name):
                yield split, png, label

    return write(target, rows(), names)


def import_idx(source: Path, target: Path) -> Imported:
    """Import a folder of IDX files, as MNIST and Fashion-MNIST come; see `tarflow.data.idx`.

    Raises:
        UserError: If the target exists, or a file is missing or damaged.
    """
    parts = list(read_idx(source))
    names = next((names for part in parts if (names := class_names(part))), [])
    if len({side for part in parts for side in part.images.shape[1:]}) > 1:
        raise UserError(f"{source}: the images must be square and of one size")

    def rows() -> Iterator[Row]:
        for part in parts:
            labels = [None] * len(part.images) if part.labels is None else part.labels.tolist()
            for image, label in zip(part.images, labels, strict=True):
                yield part.split, codec.encode_png(codec.to_image(image[None])), label

    return write(target, rows(), names)


def recognise(source: Path) -> Kind:
    """Return the kind of a source by the names of its files; a folder of images if by none."""
    if source.suffix == ".npz":
        return "npz"
    if not source.is_dir():
        return "folder"
    visible = [path for path in source.iterdir() if not path.name.startswith(".")]
    if visible and all(path.suffix == ".npz" for path in visible):
        return "npz"
    if (source / "batches.meta").is_file() or (source / "train").is_file():  # CIFAR-10, CIFAR-100
        return "cifar"
    return "idx" if holds_idx(source) else "folder"


def _splits_and_classes(source: Path, files: Sequence[Path]) -> list[tuple[Split, str]]:
    """Return the split of every file and its class, "" without one, by the folders it is in."""
    placed: list[tuple[Split | None, tuple[str, ...], tuple[str, ...]]] = []
    for path in files:
        folders = path.relative_to(source).parts[:-1]
        splits = [split_named(folder) for folder in folders]
        at = next((depth for depth, split in enumerate(splits) if split), None)
        if at is None:
            placed.append((None, (), folders))
            continue
        if any(splits[at + 1 :]):
            raise UserError(
                f"{path.parent} is in two folders named after splits; rename the class folder, "
                "or import the folder that holds the splits"
            )
        placed.append((splits[at], folders[:at], folders[at + 1 :]))
    named = [split is not None for split, _, _ in placed]
    if any(named) and not all(named):
        raise UserError(
            f"{source}: {files[named.index(True)].parent} is named after a split and "
            f"{files[named.index(False)].parent} is not; put all images in folders named train, "
            "validation or test, or rename the class"
        )
    shared = len({above for _, above, _ in placed}) == 1
    groups: list[tuple[Split, str]] = [
        (split or "train", "/".join(below if shared else above + below))
        for split, above, below in placed
    ]
    if len({name == "" for _, name in groups}) > 1:
        raise UserError(f"{source}: some images are in class folders and some are not")
    return groups


def _unseen_classes(groups: Sequence[tuple[Split, str]], names: Sequence[str]) -> list[str]:
    """Return a line on the classes that training would never see, if there are any."""
    trained = {name for split, name in groups if split == "train"}
    unseen = [name for name in names if name not in trained]
    return [f"no train images in: {human.names(unseen)}"] if unseen else []


def _describe_images(colours: Mapping[str, int], sizes: Iterable[tuple[int, int]]) -> str:
    """Return the number of grey and of colour images, and their sizes before resizing."""
    ordered = sorted(sizes, key=lambda size: size[0] * size[1])
    extent = dict.fromkeys(f"{width}x{height}" for width, height in (ordered[0], ordered[-1]))
    counts = ", ".join(f"{count:,} {colour}" for colour, count in sorted(colours.items()))
    return f"images: {counts}; {' to '.join(extent)} pixels"


def _labelled_pngs(
    data: NDArray[Any], labels: Sequence[int], path: Path
) -> Iterator[tuple[bytes, int]]:
    """Yield images and labels of a CIFAR batch, whose rows hold red, green and blue planes."""
    images = codec.unflatten(data)
    if images is None or len(images) != len(labels):
        raise UserError(
            f"{path}: data is {data.dtype} {data.shape} with {len(labels)} labels, "
            "not uint8 (N, 3 S S) with N"
        )
    for image, label in zip(images, labels, strict=True):
        yield codec.encode_png(codec.to_image(image)), int(label)


def _number(path: Path) -> tuple[int, str]:
    """Return a sort key that puts batch 2 before batch 10."""
    digits = re.findall(r"\d+", path.stem)
    return int(digits[-1]) if digits else 0, path.name
