"""Import image sets from the Hugging Face hub, or local folders that `datasets` can read."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

from PIL import Image

from tarflow.data import codec
from tarflow.data.broken import Broken
from tarflow.data.shards import Imported, Row, write
from tarflow.data.splits import Split, split_of
from tarflow.errors import UserError

_LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "category", "target")


def import_hub(
    name: str, target: Path, size: int, grey: bool = False, skip_broken: bool = False
) -> Imported:
    """Import a Hugging Face data set by its name, or a local folder that `datasets` can read.

    Labels are the first column of classes, else a column of integers or words that is named after
    labels. Rows without a label are left out, as training needs all or none. With `skip_broken`,
    rows whose image is missing or cannot be read are left out too instead of refused.

    Raises:
        UserError: If the package `datasets` is missing, the set cannot be loaded or has no
            image column, images cannot be read (names their rows), or the target exists.
    """
    loaded = _load(name)
    features = next(iter(loaded.values())).features or {}
    column = _image_column(name, features)
    labels = _find_labels(name, loaded, features)
    unlabelled = Counter[str]()
    broken = Broken(skip_broken)

    def rows() -> Iterator[Row]:
        used = 0
        for split_name, examples in loaded.items():
            split = _split(name, split_name)
            # Stored files, as one that cannot be decoded would end the stream of a whole split.
            stored = examples.cast_column(column, type(features[column])(decode=False))
            for place, example in _examples(stored, f"{name}: {split_name}"):
                number = labels.number(example)
                if labels.column and (number is None or number < 0):
                    unlabelled[split_name] += 1
                    continue
                try:
                    image = _decode(features[column], example[column], place)
                except UserError as error:
                    broken.reasons.append(str(error))
                    continue
                used += 1
                yield split, codec.to_square_png(image, size, grey), number
        broken.check(used + len(broken.reasons))

    imported = write(target, rows(), labels.names)
    imported.notes.append(
        f"labels: column '{labels.column}'" if labels.column else "no column of labels"
    )
    imported.notes.extend(
        f"left out of {split}, as they have no label: {count:,}"
        for split, count in unlabelled.items()
    )
    imported.notes.extend(broken.notes)
    return imported


@dataclass(frozen=True)
class _Labels:
    column: str | None
    names: list[str]
    are_words: bool = False  # their numbers are their places in `names`

    def number(self, example: Mapping[str, Any]) -> int | None:
        """Return the label of a row, or None if it has none."""
        if self.column is None:
            return None
        value = example[self.column]
        return self._numbers.get(value) if self.are_words else value

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.names)}


def _load(name: str) -> Mapping[str, Any]:
    """Open the splits of a data set as streams."""
    try:
        datasets = import_module("datasets")
    except ImportError:
        raise UserError("this import needs one more package: pip install datasets") from None
    try:
        loaded: Mapping[str, Any] = datasets.load_dataset(name, streaming=True)
    except Exception as error:  # offline, unknown or private: each library has its own types
        raise UserError(
            f"cannot load {name} from the Hugging Face hub: {_first_line(error)}"
        ) from None
    return loaded


def _image_column(name: str, features: Mapping[str, Any]) -> str:
    kind = import_module("datasets").Image
    columns = [key for key, feature in features.items() if isinstance(feature, kind)]
    if not columns:
        raise UserError(f"{name} has no image column, only {', '.join(features)}")
    return columns[0]


def _find_labels(name: str, loaded: Mapping[str, Any], features: Mapping[str, Any]) -> _Labels:
    """Find the column of labels, and the names of its classes if it has any."""
    kind = import_module("datasets").ClassLabel
    classes = [key for key, feature in features.items() if isinstance(feature, kind)]
    if classes:
        return _Labels(classes[0], features[classes[0]].names)
    column = next((key for key in _LABEL_COLUMNS if key in features), None)
    if column is None:
        return _Labels(None, [])
    stored = str(getattr(features[column], "dtype", "nested"))
    if stored == "string":
        splits = (examples.select_columns([column]) for examples in loaded.values())
        words = {row[column] for rows in splits for row in rows} - {None, ""}
        return _Labels(column, sorted(words), are_words=True)
    if "int" not in stored:
        raise UserError(f"{name}: labels in column '{column}' are {stored}, not integers or words")
    return _Labels(column, [])


def _split(name: str, split_name: str) -> Split:
    split = split_of(split_name)
    if split is None:
        raise UserError(f"{name}: '{split_name}' is not a train, validation or test split")
    return split


def _examples(examples: Iterable[Any], split: str) -> Iterator[tuple[str, Any]]:
    """Yield the rows of a split, each with its name for errors."""
    rows = iter(examples)
    for number in count():
        place = f"{split} row {number}"
        try:
            yield place, next(rows)
        except StopIteration:
            return
        except Exception as error:  # a damaged shard, or a lost connection
            raise UserError(f"cannot read {place}: {_first_line(error)}") from None


def _decode(feature: Any, stored: Any, place: str) -> Image.Image:
    """Decode a stored image by its feature, which also knows how to fetch one by its path."""
    if stored is None:
        raise UserError(f"{place} has no image")
    try:
        image = feature.decode_example(stored)
    except Exception as error:  # each decoder raises its own types for a damaged file
        raise UserError(f"cannot decode {place}: {_first_line(error)}") from None
    return codec.standardize(image, place)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
