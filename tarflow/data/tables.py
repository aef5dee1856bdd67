"""Image tables: Parquet files in the Hugging Face image convention, read shard by shard.

Columns: `image: struct<bytes: binary, path: string>`, `label: int64` (optional) and
`split: string` (optional). Which split a row belongs to is a fact of the table:

1. the `split` column, else the name of the file or its folder (`train-00000.parquet`,
   `validation/0.parquet`), else everything is `train`;
2. where that leaves `validation` or `test` empty, they are taken out of `train` by the hash of
   the row number: one row in ten each, in large tables about 10,000 rows each.

Legend: `N` images, `C` colour channels, `S` pixels along one side.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image
from pyarrow import fs

from tarflow.data.splits import ALIASES, SPLITS, Split, hash64, split_of
from tarflow.errors import UserError
from tarflow.record import write_text

_REMEMBER = 1 << 26  # bytes; smaller files are hashed anew each time, which takes milliseconds
_ROWS = 1024  # decoded at a time


@dataclass(frozen=True)
class Table:
    """The shards of one image table, in the order of their paths."""

    filesystem: fs.FileSystem
    root: str  # the folder, or the file itself
    shards: tuple[fs.FileInfo, ...]
    memory: Path  # where digests of large files are remembered
    counts_by_index: tuple[int, int, int] | None = None  # fixed split sizes, in row order

    @cached_property
    def digest(self) -> str:
        """Name the content: every byte of every shard, and how it is split."""
        parts = [f"table, splits 1 {self.counts_by_index}"]  # 1 is the version of the split rule
        for shard in self.shards:
            parts += [shard.path.removeprefix(self.root), self._file_digest(shard)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one image, (C, S, S)."""
        return self._first.shape

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """Label of every row; zeros if the table has none."""
        if not self._has("label"):
            return np.zeros(len(self.codes), np.int64)
        column = self._column("label")
        if not pa.types.is_integer(column.type) or column.null_count:
            raise UserError(f"{self.root}: labels are {column.type}; write integers, none missing")
        # Through DLPack, as to_numpy would import pandas.
        chunks = [np.from_dlpack(chunk) for chunk in column.chunks]
        labels: NDArray[np.int64] = np.concatenate(
            [np.empty(0, np.int64), *chunks], dtype=np.int64
        )
        if labels.min(initial=0) < 0:
            raise UserError(f"{self.root}: label {labels.min()} is negative; drop those rows")
        return labels

    @cached_property
    def classes(self) -> int:
        """Number of classes: the names stored in the table, else the largest label + 1."""
        if not self._has("label"):
            return 0
        stored = (self._schema.metadata or {}).get(b"huggingface", b"{}")
        label = json.loads(stored).get("info", {}).get("features", {}).get("label", {})
        return max(len(label.get("names", ())), int(self.labels.max(initial=0)) + 1)

    @property
    def counts(self) -> Mapping[str, int]:
        """Images in each split."""
        return {split: int((self.codes == code).sum()) for code, split in enumerate(SPLITS)}

    def fill(self, split: Split, pixels: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        """Decode a split into `pixels` (N, C, S, S) and `labels` (N,).

        Raises:
            UserError: naming the row that is no image, or not of the size of the first.
        """
        wanted = self.codes == SPLITS.index(split)
        labels[:] = self.labels[wanted]
        filled = 0
        for start, batch in self._batches():
            rows = np.flatnonzero(wanted[start : start + len(batch)])
            for row, image in zip(rows, batch.take(rows).to_pylist(), strict=True):
                pixels[filled] = self._decode(image, int(start + row), self.shape)
                filled += 1

    @cached_property
    def codes(self) -> NDArray[np.int8]:
        """Split of every row, as its position in `SPLITS`."""
        codes: NDArray[np.int8]
        if self.counts_by_index is not None:
            codes = np.repeat(np.arange(3, dtype=np.int8), self.counts_by_index)
            return codes
        if self._has("split"):
            codes = np.array(
                [self._code(name) for name in self._column("split").to_pylist()], np.int8
            )
        else:
            sizes = [file.metadata.num_rows for file in self._files()]
            codes = np.repeat(np.array(self._codes_of_shards(), np.int8), sizes)
        bucket = hash64(np.arange(len(codes), dtype=np.uint64)) % max(10, len(codes) // 10_000)
        missing = [code for code in (1, 2) if not (codes == code).any()]
        train = codes == 0
        for code in missing:
            codes[train & (bucket == code)] = code
        return codes

    def _codes_of_shards(self) -> list[int]:
        """Split of each shard by its file or folder name."""
        found = []
        for shard in self.shards:
            parts = Path(shard.path.removeprefix(self.root)).parts[::-1]  # the file's name first
            found.append(next((split for part in parts if (split := split_of(part))), None))
        named = [SPLITS.index(split) for split in found if split is not None]
        if not named:
            return [0] * len(found)
        if len(named) < len(found):
            odd = self.shards[found.index(None)].path
            raise UserError(
                f"{odd}: some shards are named after a split and this one is not; "
                "begin its name with train, validation or test"
            )
        return named

    def _code(self, name: str | None) -> int:
        if name is None or name not in ALIASES:
            raise UserError(f"{self.root}: split '{name}'; write train, validation or test")
        return SPLITS.index(ALIASES[name])

    def _files(self) -> Iterator[pq.ParquetFile]:
        for shard in self.shards:
            try:
                file = pq.ParquetFile(shard.path, filesystem=self.filesystem)
            except (OSError, pa.ArrowInvalid) as error:
                reason = str(error).splitlines()[0]
                raise UserError(f"{shard.path} is not a Parquet file: {reason}") from None
            names = file.schema_arrow.names
            image = file.schema_arrow.field("image").type if "image" in names else pa.null()
            if not pa.types.is_struct(image) or image.get_field_index("bytes") < 0:
                raise UserError(
                    f"{shard.path} has the columns {', '.join(names)}: an image table "
                    "needs 'image' (struct of bytes and path); see: python -m tarflow data"
                )
            yield file

    @cached_property
    def _schema(self) -> pa.Schema:
        return next(self._files()).schema_arrow

    def _has(self, column: str) -> bool:
        return column in self._schema.names

    def _column(self, name: str) -> pa.ChunkedArray:
        try:
            return pa.chunked_array(
                [chunk for file in self._files() for chunk in file.read([name])[name].chunks]
            )
        except (pa.ArrowInvalid, KeyError):
            raise UserError(f"{self.root}: the shards differ in their column '{name}'") from None

    def _batches(self) -> Iterator[tuple[int, pa.Array]]:
        """Yield the number of the first row and the images of every batch."""
        start = 0
        for file in self._files():
            for batch in file.iter_batches(_ROWS, columns=["image"]):
                yield start, batch.column("image")
                start += len(batch)

    @cached_property
    def _first(self) -> NDArray[np.uint8]:
        for _, batch in self._batches():
            if len(batch):
                return self._decode(batch[0].as_py(), 0, None)
        raise UserError(f"{self.root} has no rows")

    def _decode(
        self, image: dict[str, bytes | None] | None, row: int, shape: tuple[int, ...] | None
    ) -> NDArray[np.uint8]:
        """Decode one image to (C, S, S), checking it against the shape of the first."""
        where = f"row {row} of {self.root}"
        data = (image or {}).get("bytes")
        if not data:
            raise UserError(f"{where} has no image bytes")
        try:
            with Image.open(BytesIO(data)) as opened:
                grey = opened.mode in ("1", "L")
                if not grey and opened.mode not in ("P", "RGB", "RGBA", "CMYK", "YCbCr", "LA"):
                    raise UserError(f"{where} is not an 8-bit image (mode {opened.mode})")
                channels = shape[0] if shape else (1 if grey else 3)
                if channels == 1 and not grey:
                    raise UserError(f"{where} is in colour, row 0 is grey; {_REMAKE}")
                array = np.asarray(opened.convert("L" if channels == 1 else "RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{where} cannot be decoded: {error}") from None
        array = array[None] if channels == 1 else array.transpose(2, 0, 1)
        if shape is None and array.shape[1] != array.shape[2]:
            raise UserError(f"{where} is {_size(array)} pixels, not square; {_REMAKE}")
        if shape is not None and array.shape != shape:
            raise UserError(
                f"{where} is {_size(array)} pixels, row 0 is {shape[2]}x{shape[1]}; {_REMAKE}"
            )
        return array

    def _file_digest(self, shard: fs.FileInfo) -> str:
        """Hash a file; the hash of a large one is remembered by its path, size and time."""
        identity = f"{self.filesystem.type_name}:{shard.path}:{shard.size}:{shard.mtime_ns}"
        memo = self.memory / hashlib.sha256(identity.encode()).hexdigest()[:32]
        if shard.size >= _REMEMBER and memo.exists():
            return memo.read_text()
        hashed = hashlib.sha256()
        with self.filesystem.open_input_stream(shard.path) as stream:
            while chunk := stream.read(1 << 22):
                hashed.update(chunk)
        if shard.size >= _REMEMBER:
            with suppress(OSError):  # it is only saved time
                write_text(memo, hashed.hexdigest())
        return hashed.hexdigest()


_REMAKE = "bring all to one form with: python -m tarflow data"


def _size(array: NDArray[np.uint8]) -> str:
    return f"{array.shape[2]}x{array.shape[1]}"


def find_table(
    name: str, memory: Path, counts_by_index: tuple[int, int, int] | None = None
) -> Table:
    """Find the shards under a local path or a `pyarrow.fs` URI.

    Raises:
        UserError: if there is no such file, or the folder holds no Parquet file.
    """
    try:
        if "://" in name:
            filesystem, root = fs.FileSystem.from_uri(name)
        else:
            filesystem, root = fs.LocalFileSystem(), str(Path(name).expanduser().resolve())
        root = root.rstrip("/")
        info = filesystem.get_file_info(root)
        found = [info]
        if info.type == fs.FileType.Directory:
            found = filesystem.get_file_info(fs.FileSelector(root, recursive=True))
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"cannot read {name}: {str(error).splitlines()[0]}") from None
    if info.type == fs.FileType.NotFound:
        raise UserError(
            f"no data set '{name}': write digits, leaves, markov, or the path of a Parquet file "
            "or folder"
        )
    if info.type == fs.FileType.Directory:
        found = [each for each in found if each.path.endswith(".parquet")]
        if not found:
            raise UserError(f"{name} holds no Parquet file; make one with: python -m tarflow data")
    shards = tuple(sorted(found, key=lambda each: each.path))
    return Table(filesystem, root, shards, memory, counts_by_index)
