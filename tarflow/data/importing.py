"""Make image tables from other layouts: class folders, ImageNet64, CIFAR, Hugging Face sets.

Every import writes a new folder of shards, `train-00000.parquet` and so on, that
`tarflow.data.tables` reads, and returns what it wrote. `size` is the side of the images in pixels.
"""

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from tarflow.config import FEWEST_IMAGES
from tarflow.data import codec
from tarflow.data.archives import first_label, read_archive, split_in
from tarflow.data.folders import find_images
from tarflow.data.plain_pickle import read_plain_pickle
from tarflow.data.tables import SPLITS, Split, find_table, split_named, split_of
from tarflow.errors import UserError

Row: TypeAlias = tuple[Split, bytes, int | None]  # split, PNG file, label

_SHARD_ROWS = 16384
_LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "category", "target")  # on the hub
_NAMES = 20  # printed in one line
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@dataclass(frozen=True)
class Imported:
    """What an import wrote and what it passed over."""

    counts: dict[str, int]  # images written to each split
    notes: list[str] = field(default_factory=list)  # lines for the user


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

    broken: list[str] = []
    colours, sizes = Counter[str](), Counter[tuple[int, int]]()

    def read(path: Path) -> tuple[bytes, str, tuple[int, int]] | UserError:
        try:
            image = codec.decode(path, str(path))
        except UserError as error:
            return error
        return _png(image, size, grey), "grey" if codec.is_grey(image) else "colour", image.size

    def rows() -> Iterator[Row]:
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(files), 512):  # bounds the images in memory
                chunk = slice(start, start + 512)
                images = pool.map(read, files[chunk])
                for (split, name), image in zip(groups[chunk], images, strict=True):
                    if isinstance(image, UserError):
                        broken.append(str(image))
                        continue
                    png, colour, pixels = image
                    colours[colour] += 1
                    sizes[pixels] += 1
                    yield split, png, names.index(name) if name else None
        if broken and not (skip_broken and sizes):
            raise UserError(
                f"cannot use {len(broken):,} of {len(files):,} images: "
                f"{_enumerate(broken, '; ')}; repair or remove them, "
                "or leave them out with --skip-broken"
            )

    imported = _write(target, rows(), names)
    imported.notes.extend(_class_notes(groups, names))
    imported.notes.append(_describe_images(colours, sizes))
    imported.notes.extend(notes)
    if broken:
        imported.notes.append(f"left out ({len(broken):,}): {_enumerate(broken, '; ')}")
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

    imported = _write(target, rows(), [])
    imported.notes.extend(f"{split}: {_enumerate(names)}" for split, names in sources.items())
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

    return _write(target, rows(), names)


def import_hub(name: str, target: Path, size: int, grey: bool = False) -> Imported:
    """Import a Hugging Face data set by its name, or a local folder that `datasets` can read.

    Labels are the first column of classes, else a column of integers or words that is named after
    labels. Rows without a label are left out, as training needs all or none.

    Raises:
        UserError: If the package `datasets` is missing, the set cannot be loaded or has no
            image column, a row has no image, or the target exists.
    """
    try:
        datasets = import_module("datasets")
    except ImportError:
        raise UserError("this import needs one more package: pip install datasets") from None
    try:
        loaded = datasets.load_dataset(name, streaming=True)
    except Exception as error:  # offline, unknown or private: each library has its own types
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"cannot load {name} from the Hugging Face hub: {reason}") from None
    features = next(iter(loaded.values())).features or {}
    images = [key for key, kind in features.items() if isinstance(kind, datasets.Image)]
    classes = [key for key, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    if not images:
        raise UserError(f"{name} has no image column, only {', '.join(features)}")
    label = next(iter(classes + [key for key in _LABEL_COLUMNS if key in features]), None)
    names: list[str] = []
    words = False  # whether labels are words, whose numbers are their places in `names`
    if label in classes:
        names = features[label].names
    elif label is not None:
        kind = str(getattr(features[label], "dtype", "nested"))
        words = kind == "string"
        if not words and "int" not in kind:
            raise UserError(
                f"{name}: labels in column '{label}' are {kind}, not integers or words"
            )
    if words:
        columns = (examples.select_columns([label]) for examples in loaded.values())
        names = sorted({row[label] for rows in columns for row in rows} - {None, ""})
    numbers: dict[Any, int] = {word: number for number, word in enumerate(names)}
    unlabelled = Counter[str]()

    def rows() -> Iterator[Row]:
        for split_name, examples in loaded.items():
            split = split_of(split_name)
            if split is None:
                raise UserError(f"{name}: '{split_name}' is not a train, validation or test split")
            for place, example in _examples(examples, f"{name}: {split_name}"):
                number = example[label] if label else None
                if words:
                    number = numbers.get(number)
                if label and (number is None or number < 0):
                    unlabelled[split_name] += 1
                    continue
                if example[images[0]] is None:
                    raise UserError(f"{place} has no image")
                yield split, _png(codec.standardize(example[images[0]], place), size, grey), number

    imported = _write(target, rows(), names)
    imported.notes.append(f"labels: column '{label}'" if label else "no column of labels")
    imported.notes.extend(
        f"left out of {split}, as they have no label: {count:,}"
        for split, count in unlabelled.items()
    )
    return imported


def write_shards(target: Path, rows: Iterable[Row], names: Sequence[str]) -> dict[str, int]:
    """Write rows as Parquet shards of their split into a new folder, whole or not at all.

    A row without label (None) leaves the label column out; `names` are those of the classes.

    Raises:
        UserError: If the folder exists, or there are no rows.
    """
    if target.exists():
        raise UserError(f"{target} exists; remove it or name another folder")
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    waiting: dict[Split, list[Row]] = {split: [] for split in SPLITS}
    counts = Counter[str]()

    def flush(split: Split) -> None:
        path = temporary / f"{split}-{(counts[split] - 1) // _SHARD_ROWS:05d}.parquet"
        pq.write_table(_table(waiting[split], names), path, row_group_size=1024)
        waiting[split].clear()

    try:
        for row in rows:
            split = row[0]
            waiting[split].append(row)
            counts[split] += 1
            if len(waiting[split]) == _SHARD_ROWS:
                flush(split)
        if not counts:
            raise UserError("no images to write: all were left out")
        for split in SPLITS:
            if waiting[split]:
                flush(split)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return {split: counts[split] for split in SPLITS if counts[split]}


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


def _class_notes(groups: Sequence[tuple[Split, str]], names: Sequence[str]) -> Iterator[str]:
    """Yield the classes found, and those that training would never see."""
    if not names:
        yield "no classes: the images are not in class folders"
        return
    yield f"classes ({len(names):,}): {_enumerate(names)}"
    trained = {name for split, name in groups if split == "train"}
    if unseen := [name for name in names if name not in trained]:
        yield f"no train images in: {_enumerate(unseen)}"


def _examples(examples: Iterable[Any], split: str) -> Iterator[tuple[str, Any]]:
    """Yield the rows of a split, which are decoded here, each with its name for errors."""
    rows = iter(examples)
    for number in count():
        place = f"{split} row {number}"
        try:
            yield place, next(rows)
        except StopIteration:
            return
        except Exception as error:  # a damaged image, or a lost connection
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"cannot read {place}: {reason}") from None


def _describe_images(colours: Mapping[str, int], sizes: Iterable[tuple[int, int]]) -> str:
    """Return the number of grey and of colour images, and their sizes before resizing."""
    ordered = sorted(sizes, key=lambda size: size[0] * size[1])
    extent = dict.fromkeys(f"{width}x{height}" for width, height in (ordered[0], ordered[-1]))
    counts = ", ".join(f"{count:,} {colour}" for colour, count in sorted(colours.items()))
    return f"images: {counts}; {' to '.join(extent)} pixels"


def _enumerate(names: Sequence[str], separator: str = ", ") -> str:
    """Return names in a line, only the first of many."""
    more = len(names) - _NAMES
    return separator.join(names[:_NAMES]) + (f" and {more:,} more" if more > 0 else "")


def _write(target: Path, rows: Iterable[Row], names: Sequence[str]) -> Imported:
    """Write shards, and say how training will split them."""
    counts = write_shards(target, rows, names)
    return Imported(counts, list(_split_notes(target, counts)))


def _split_notes(target: Path, counts: Mapping[str, int]) -> Iterator[str]:
    """Yield the splits that are taken out of `train`, and those with too few images for a run."""
    splits = find_table(str(target)).counts
    if missing := [split for split in SPLITS[1:] if split not in counts]:
        held_out = ", ".join(f"{count:,} {split}" for split, count in splits.items())
        found = f"no {' or '.join(missing)} images found"
        yield f"{found}; runs will take some out of train, which gives {held_out}"
    if empty := [split for split, count in splits.items() if not count]:
        yield f"runs will fail, as there are no images for {' and '.join(empty)}; import more"
    elif few := [split for split in SPLITS[1:] if splits[split] < FEWEST_IMAGES]:
        yield (
            f"runs need {FEWEST_IMAGES} held-out images: import more for {' and '.join(few)}, or "
            "set evaluation.samples to 0"
        )


def _png(image: Image.Image, size: int, grey: bool) -> bytes:
    converted = codec.convert(image, 1 if grey else 3)
    return codec.encode_png(codec.resize_and_crop(converted, size))


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


def _table(rows: list[Row], names: Sequence[str]) -> pa.Table:
    """Return rows as a table in the Hugging Face convention, described in its metadata."""
    columns = {"image": pa.array([{"bytes": png, "path": None} for _, png, _ in rows], _IMAGE)}
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    labels = [label for _, _, label in rows]
    if None not in labels:
        columns["label"] = pa.array(labels, pa.int64())
        features["label"] = (
            {"names": list(names), "_type": "ClassLabel"}
            if names
            else {"dtype": "int64", "_type": "Value"}
        )
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.table(columns).replace_schema_metadata(metadata)
