"""Make image tables from other layouts: class folders, ImageNet64, CIFAR, Hugging Face sets.

Every import writes a folder of shards, `train-00000.parquet` and so on, that `tarflow.data.tables`
reads. Images are resized as in Zhai et al. (2025): the shorter side to `size`, bilinear, then the
centre is cut out.
"""

import io
import pickle
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tarflow.data.shards import Row, write_shards
from tarflow.data.splits import Split, split_of
from tarflow.errors import UserError

SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".webp"}  # of image files


def import_folder(source: Path, target: Path, size: int, grey: bool = False) -> dict[str, int]:
    """Import class folders: `source/CLASS/*.jpg`, or `source/train/CLASS/*.jpg` and so on.

    Images that lie in no class folder get no label. Without split folders all is `train`.

    Returns:
        The number of images in each split.

    Raises:
        UserError: if the target exists, a file is no image, or the layout is another.
    """
    files = sorted(path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise UserError(f"{source} holds no images ({', '.join(sorted(SUFFIXES))})")
    places: list[tuple[Split, str]] = []  # split and class of every file
    for path in files:
        parts = path.relative_to(source).parts[:-1]
        split = split_of(parts[0]) if parts else None
        places.append((split or "train", "/".join(parts[1:] if split else parts)))
    names = sorted({name for _, name in places})
    if "" in names and len(names) > 1:
        raise UserError(f"{source}: some images lie in class folders and some do not")

    def encode(path: Path) -> bytes:
        try:
            with Image.open(path) as image:
                return _png(fit(image.convert("L" if grey else "RGB"), size))
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(f"{path} cannot be decoded: {error}") from None

    def rows() -> Iterator[Row]:
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(files), 512):  # a bound on what is in memory
                several = slice(start, start + 512)
                encoded = pool.map(encode, files[several])
                for (split, name), png in zip(places[several], encoded, strict=True):
                    yield split, png, names.index(name) if name else None

    return write_shards(target, rows(), names if names != [""] else [])


def import_npz(source: Path, target: Path) -> dict[str, int]:
    """Import the official ImageNet64 batches (`train_data_batch_1.npz`, ..., `val_data.npz`).

    The official validation images become `test`: they are what the literature reports, so no
    choice may be made on them. `data` is (N, 3 S S) uint8, `labels` are 1 to 1000.

    Raises:
        UserError: if the target exists or a file is not such a batch.
    """
    files = sorted(source.glob("*.npz"), key=_number) if source.is_dir() else [source]
    if not files:
        raise UserError(f"{source} holds no .npz file")

    def rows() -> Iterator[Row]:
        for path in files:
            try:
                with np.load(path, allow_pickle=False) as arrays:
                    data, labels = arrays["data"], arrays["labels"].reshape(-1)
            except (OSError, KeyError, ValueError) as error:
                raise UserError(f"{path} is not an ImageNet64 batch: {error}") from None
            split: Split = "test" if path.name.startswith("val") else "train"
            for image, label in zip(_planes(data, path), labels, strict=True):
                yield split, _png(image), int(label) - 1

    return write_shards(target, rows(), [])


def import_cifar(source: Path, target: Path) -> dict[str, int]:
    """Import the Python version of CIFAR-10 or CIFAR-100 from its unpacked folder.

    The batches are pickles; they are read by an unpickler that can build nothing but plain
    containers and uint8 arrays, so that a forged file cannot run code.

    Raises:
        UserError: if the target exists, a file is missing, or holds anything else.
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
        names = [name.decode() for name in _unpickle(source / meta)[names_key]]
    except KeyError:
        raise UserError(f"{source / meta} has no {names_key.decode()}") from None

    def rows() -> Iterator[Row]:
        for name in (*train, test):
            batch = _unpickle(source / name)
            if label_key not in batch or b"data" not in batch:
                raise UserError(f"{source / name} is not a CIFAR batch")
            split: Split = "test" if name == test else "train"
            images = _planes(batch[b"data"], source / name)
            for image, label in zip(images, batch[label_key], strict=True):
                yield split, _png(image), int(label)

    return write_shards(target, rows(), names)


def import_hub(name: str, target: Path, size: int, grey: bool = False) -> dict[str, int]:
    """Import a Hugging Face data set by its name, or a local folder that `datasets` can read.

    Raises:
        UserError: if the package `datasets` is missing, the set cannot be reached or has no
            image column, or the target exists.
    """
    try:
        datasets = import_module("datasets")
    except ImportError:
        raise UserError("this import needs one more package: pip install datasets") from None
    try:
        loaded = datasets.load_dataset(name, streaming=True)
    except Exception as error:  # offline, unknown, private: many libraries' own types
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"cannot load {name} from the Hugging Face hub: {reason}") from None
    features = next(iter(loaded.values())).features or {}
    images = [key for key, kind in features.items() if isinstance(kind, datasets.Image)]
    labels = [key for key, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    if not images:
        raise UserError(f"{name} has no image column, only {', '.join(features)}")

    def rows() -> Iterator[Row]:
        for split_name, examples in loaded.items():
            split = split_of(split_name)
            if split is None:
                raise UserError(f"{name}: '{split_name}' is no train, validation or test split")
            for example in examples:
                image = example[images[0]].convert("L" if grey else "RGB")
                yield split, _png(fit(image, size)), example[labels[0]] if labels else None

    return write_shards(target, rows(), features[labels[0]].names if labels else [])


def fit(image: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side to `size` pixels, bilinear, and cut out the centre.

    >>> fit(Image.new("L", (40, 20)), 10).size
    (10, 10)
    """
    shorter = min(image.size)
    width, height = (int(size * side / shorter) for side in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _planes(data: NDArray[np.uint8], path: Path) -> Iterator[Image.Image]:
    """Yield the images of rows that hold their red, green and blue planes."""
    side = int((data.shape[-1] / 3) ** 0.5)
    if data.ndim != 2 or data.dtype != np.uint8 or 3 * side**2 != data.shape[1]:
        raise UserError(f"{path}: data is {data.dtype} {data.shape}, not uint8 (N, 3 S S)")
    for row in data:
        yield Image.fromarray(np.ascontiguousarray(row.reshape(3, side, side).transpose(1, 2, 0)))


def _number(path: Path) -> tuple[int, str]:
    """Sort batch 2 before batch 10."""
    digits = re.findall(r"\d+", path.stem)
    return int(digits[-1]) if digits else 0, path.name


def _unpickle(path: Path) -> dict[bytes, Any]:
    """Read a dictionary of plain values and uint8 arrays from a pickle of Python 2."""
    try:
        with path.open("rb") as handle:
            loaded = _PlainUnpickler(handle, encoding="bytes").load()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(f"{path} is not a CIFAR batch: {error}") from None
    if not isinstance(loaded, dict):
        raise UserError(f"{path} is not a CIFAR batch")
    return loaded


class _PlainUnpickler(pickle.Unpickler):
    """Refuses every global but the three that rebuild a uint8 array."""

    def find_class(self, module: str, name: str) -> Any:
        """Return a harmless stand-in for the global, or refuse."""
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _ALLOWED[module, name]


def _empty_array(*_: object) -> NDArray[np.uint8]:
    """Stand in for numpy's own: the state that follows gives shape, type and bytes."""
    return np.empty(0, np.uint8)


def _byte_type(code: bytes, *_: object) -> np.dtype[np.uint8]:
    if code != b"u1":
        raise pickle.UnpicklingError(f"it holds an array of type {code!r}")
    return np.dtype(np.uint8, copy=True)


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy", "ndarray"): None,  # only ever named as an argument of the first
    ("numpy", "dtype"): _byte_type,
}
