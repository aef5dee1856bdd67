"""Image tables: Parquet files in the Hugging Face image convention, read shard by shard.

Columns: `image: struct<bytes: binary, path: string>`, and optionally `label: int64`, `condition`
(`tarflow.data.conditions`) and `split: string`. The table alone decides which split a row is in
(`tarflow.data.splits`).

A table of latents (`tarflow.latent`) has the column `latent`, bytes of floats, instead of `image`,
and its metadata say which autoencoder made them; the file `latents.json` beside the shards says
where that is, because a path is no part of the data.

Legend: `N` images, `C` colour channels, `S` pixels along one side.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import fs

from tarflow.data import codec, conditions, splits
from tarflow.data.splits import SPLITS, Split
from tarflow.errors import UserError
from tarflow.latent_space import FILE, KEY, LATENT, LatentSpace, read_latent_space
from tarflow.record import write_text
from tarflow.storage import cache_folder, expand

StoredImage: TypeAlias = dict[str, Any] | None  # with the keys bytes and path
_REMEMBER = 1 << 26  # bytes; a smaller file takes milliseconds to hash again
_ROWS = 1024  # decoded at a time
_REMAKE = "make all images alike with: python -m tarflow data"


@dataclass(frozen=True)
class Table:
    """The shards of one image table, in the order of their paths."""

    filesystem: fs.FileSystem
    root: str  # the folder, or the file itself
    shards: tuple[fs.FileInfo, ...]
    counts_by_index: tuple[int, int, int] | None = None  # fixed sizes of the splits, in row order

    @cached_property
    def digest(self) -> str:
        """Hash of every byte of every shard and of the rule that splits the rows."""
        parts = [f"table, splits 1 {self.counts_by_index}"]  # 1 is the version of the rule
        for shard in self.shards:
            parts += [shard.path.removeprefix(self.root), self._file_digest(shard)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one image or latent, (C, S, S)."""
        return self.latents.shape if self.latents else self._first.shape

    @cached_property
    def latents(self) -> LatentSpace | None:
        """Where the latents of this table come from; None for a table of images.

        Raises:
            UserError: If the shards hold latents of several autoencoders.
        """
        spaces = {
            path: read_latent_space(
                {key.decode(): value.decode() for key, value in (schema.metadata or {}).items()},
                path,
            )
            for path, schema in self._schemas.items()
        }
        first = next(iter(spaces.values()))
        if other := [path for path, found in spaces.items() if found != first]:
            raise UserError(
                f"{other[0]} was not encoded as the first shard of the table was; encode all "
                "images anew with: python -m tarflow data encode"
            )
        if first and not first.autoencoder:  # shards of earlier releases name the places
            return self._with_places(first)
        return first

    def _with_places(self, space: LatentSpace) -> LatentSpace:
        """Add where autoencoder and images are, if the file beside the shards says it."""
        try:
            with self.filesystem.open_input_stream(f"{self.root}/{FILE}") as stream:
                stated = json.loads(stream.read())
            autoencoder, source = str(stated["autoencoder"]), str(stated["source"])
        except (OSError, ValueError, KeyError, TypeError):  # latents can do without
            return space
        return replace(space, autoencoder=autoencoder, source=source)

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """Label of every row, (N,); zeros if the table has none."""
        if not self._has("label"):
            return np.zeros(len(self.codes), np.int64)
        column = self._column("label")
        if not pa.types.is_integer(column.type) or column.null_count:
            raise UserError(f"{self.root}: labels are {column.type}; write integers without gaps")
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

    @cached_property
    def unread_columns(self) -> list[str]:
        """Names of the columns that have no meaning here; one may hold labels."""
        read = ("image", LATENT, "label", conditions.COLUMN, "split")
        return [name for name in self._schema.names if name not in read]

    @cached_property
    def condition_shape(self) -> conditions.Shape:
        """Vectors of a condition and values of each, (P, E); zeros if the table has none."""
        if not self._has(conditions.COLUMN):
            return 0, 0
        return conditions.shape_of(self._files(), self.root)

    @property
    def dropped_condition(self) -> NDArray[np.float32]:
        """What stands for a dropped condition, (P, E)."""
        return conditions.dropped(self._schema, self.condition_shape)

    def fill_conditions(self, split: Split, target: NDArray[np.float32]) -> None:
        """Write the conditions of a split to `target` (N, P, E).

        Raises:
            UserError: If rows differ in shape, or hold values that are not finite.
        """
        self._fill_conditions(self.codes == SPLITS.index(split), target)

    def conditions_of(self, chosen: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Return the conditions of the rows that a mask (N,) chooses, in order, (n, P, E)."""
        target = np.empty((int(chosen.sum()), *self.condition_shape), np.float32)
        self._fill_conditions(chosen, target)
        return target

    def _fill_conditions(self, chosen: NDArray[np.bool_], target: NDArray[np.float32]) -> None:
        conditions.fill(self._files(), self.root, self.condition_shape, chosen, target)

    @property
    def counts(self) -> Mapping[str, int]:
        """Images in each split."""
        return {split: int((self.codes == code).sum()) for code, split in enumerate(SPLITS)}

    def fill(self, split: Split, pixels: NDArray[Any], labels: NDArray[np.int64]) -> None:
        """Decode a split into `pixels` (N, C, S, S), bytes or floats, and `labels` (N,).

        Raises:
            UserError: If a row is not an image, or not of the size of the first; names the row.
        """
        chosen = self.codes == SPLITS.index(split)
        labels[:] = self.labels[chosen]
        rows = self.floats(chosen) if self.latents else self.images(chosen)
        for position, row in enumerate(rows):
            pixels[position] = row

    def floats(self, chosen: NDArray[np.bool_]) -> Iterator[NDArray[np.floating[Any]]]:
        """Read the latents of the rows that a mask (N,) chooses, in order, each (C, S, S)."""
        assert self.latents
        dtype = np.dtype(self.latents.dtype).newbyteorder("<")
        for start, batch in self._batches(LATENT):
            for row in np.flatnonzero(chosen[start : start + len(batch)]).tolist():
                stored = batch[row].as_py() or b""
                if len(stored) != self.latents.row_bytes:
                    raise UserError(
                        f"row {start + row} of {self.root} has {len(stored)} bytes of latents, "
                        f"not {self.latents.row_bytes}: the table is damaged, encode it anew"
                    )
                yield np.frombuffer(stored, dtype).reshape(self.latents.shape)

    def rows(
        self, split: Split, start: int = 0
    ) -> Iterator[tuple[NDArray[np.uint8], pa.RecordBatch]]:
        """Yield the images of a split (B, C, S, S) and their other columns, from a row on.

        Args:
            split: Split to read, in the order of the table.
            start: Images of the split to skip; they are not decoded.

        Raises:
            UserError: As `fill`.
        """
        chosen = self.codes == SPLITS.index(split)
        chosen &= chosen.cumsum() > start
        first = 0
        for file in self._files():
            names = [name for name in file.schema_arrow.names if name != "split"]
            for batch in file.iter_batches(_ROWS, columns=names):
                picked = np.flatnonzero(chosen[first : first + len(batch)])
                if len(picked):
                    stored = batch.column("image").take(picked).to_pylist()
                    numbered = zip((first + picked).tolist(), stored, strict=True)
                    images = [self.decode(image, row, self.shape) for row, image in numbered]
                    yield np.stack(images), batch.drop_columns("image").take(picked)
                first += len(batch)

    def images(self, chosen: NDArray[np.bool_]) -> Iterator[NDArray[np.uint8]]:
        """Decode the rows that a mask (N,) chooses, in order, each to (C, S, S).

        Raises:
            UserError: As `fill`.
        """
        for row, image in self.stored(chosen):
            yield self.decode(image, row, self.shape)

    def stored(self, chosen: NDArray[np.bool_]) -> Iterator[tuple[int, StoredImage]]:
        """Read the number and the stored image of the rows that a mask (N,) chooses, in order."""
        for start, batch in self._batches():
            rows = np.flatnonzero(chosen[start : start + len(batch)])
            for row, image in zip(rows, batch.take(rows).to_pylist(), strict=True):
                yield int(start + row), image

    def decode(
        self, image: StoredImage, row: int, shape: tuple[int, ...] | None
    ) -> NDArray[np.uint8]:
        """Decode the stored image of a row to (C, S, S), checking it against a shape if given.

        Raises:
            UserError: If it is not such an image; names the row.
        """
        name = f"row {row} of {self.root}"
        data = (image or {}).get("bytes")
        if not data:
            path = (image or {}).get("path")
            stored = f": only paths are stored ({path}); {_REMAKE}" if path else ""
            raise UserError(f"{name} has no image bytes{stored}")
        decoded = codec.decode(data, name)
        channels = shape[0] if shape else (1 if codec.is_grey(decoded) else 3)
        if channels == 1 and not codec.is_grey(decoded):
            raise UserError(f"{name} is in colour, row 0 is grey; {_REMAKE}")
        width, height = decoded.size
        if shape is None and width != height:
            raise UserError(f"{name} is {width}x{height} pixels, not square; {_REMAKE}")
        if shape is not None and (height, width) != shape[1:]:
            raise UserError(
                f"{name} is {width}x{height} pixels, row 0 is {shape[2]}x{shape[1]}; {_REMAKE}"
            )
        return codec.to_pixels(codec.convert(decoded, channels))

    @cached_property
    def codes(self) -> NDArray[np.int8]:
        """Split of every row, as its position in `SPLITS`."""
        codes: NDArray[np.int8]
        if self.counts_by_index is not None:
            codes = np.repeat(np.arange(3, dtype=np.int8), self.counts_by_index)
            return codes
        if self._has("split"):
            codes = splits.codes_of_names(self._column("split").to_pylist(), self.root)
        else:
            sizes = [file.metadata.num_rows for file in self._files()]
            paths = [shard.path for shard in self.shards]
            codes = np.repeat(splits.codes_of_shards(paths, self.root), sizes)
        return splits.with_held_out(codes)

    def _files(self) -> Iterator[pq.ParquetFile]:
        for shard in self.shards:
            try:
                file = pq.ParquetFile(shard.path, filesystem=self.filesystem)
            except (OSError, pa.ArrowInvalid) as error:
                reason = str(error).splitlines()[0]
                raise UserError(f"{shard.path} is not a Parquet file: {reason}") from None
            names = file.schema_arrow.names
            image = file.schema_arrow.field("image").type if "image" in names else pa.null()
            encoded = LATENT in names and KEY.encode() in (file.schema_arrow.metadata or {})
            if encoded:
                yield file
                continue
            if not pa.types.is_struct(image) or image.get_field_index("bytes") < 0:
                raise UserError(
                    f"{shard.path} has the columns {', '.join(names)}: an image table "
                    "needs 'image' (struct of bytes and path); see: python -m tarflow data"
                )
            yield file

    @cached_property
    def _schemas(self) -> Mapping[str, pa.Schema]:
        """Schemas of the shards that have rows, or of all if none has, by path."""
        every, filled = {}, {}
        for shard, file in zip(self.shards, self._files(), strict=True):
            every[shard.path] = file.schema_arrow
            if file.metadata.num_rows:
                filled[shard.path] = file.schema_arrow
        return filled or every

    @property
    def _schema(self) -> pa.Schema:
        return next(iter(self._schemas.values()))

    def _has(self, column: str) -> bool:
        """Tell whether all shards with rows have a column; refuse a table where only some do."""
        lacking = [path for path, schema in self._schemas.items() if column not in schema.names]
        if lacking and len(lacking) < len(self._schemas):
            raise UserError(
                f"{lacking[0]} has no column '{column}', which other shards of the table have; "
                "write it to all shards or to none"
            )
        return not lacking

    def _column(self, name: str) -> pa.ChunkedArray:
        try:
            chunks = [
                chunk
                for file in self._files()
                if file.metadata.num_rows
                for chunk in file.read([name])[name].chunks
            ]
            if all(pa.types.is_integer(chunk.type) for chunk in chunks):
                chunks = [chunk.cast(pa.int64()) for chunk in chunks]
            return pa.chunked_array(chunks, None if chunks else pa.int64())
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            raise UserError(f"{self.root}: the shards differ in their column '{name}'") from None

    def _batches(self, column: str = "image") -> Iterator[tuple[int, pa.Array]]:
        """Yield the number of the first row and the images, or another column, of every batch."""
        start = 0
        for file in self._files():
            for batch in file.iter_batches(_ROWS, columns=[column]):
                yield start, batch.column(column)
                start += len(batch)

    @cached_property
    def _first(self) -> NDArray[np.uint8]:
        for _, batch in self._batches():
            if len(batch):
                return self.decode(batch[0].as_py(), 0, None)
        raise UserError(f"{self.root} has no rows")

    def _file_digest(self, shard: fs.FileInfo) -> str:
        """Hash a file, or look up the hash of a large one by its path, size and time."""
        identity = f"{self.filesystem.type_name}:{shard.path}:{shard.size}:{shard.mtime_ns}"
        memo = cache_folder() / "digests" / hashlib.sha256(identity.encode()).hexdigest()[:32]
        if shard.size >= _REMEMBER and memo.exists():
            return memo.read_text()
        hashed = hashlib.sha256()
        with self.filesystem.open_input_stream(shard.path) as stream:
            while chunk := stream.read(1 << 22):
                hashed.update(chunk)
        if shard.size >= _REMEMBER:
            with suppress(UserError):  # a lost hash only costs time
                write_text(memo, hashed.hexdigest())
        return hashed.hexdigest()


def find_table(name: str, counts_by_index: tuple[int, int, int] | None = None) -> Table:
    """Find the shards under a local path or a `pyarrow.fs` URI.

    Raises:
        UserError: If there is no such file, or the folder holds no Parquet file.
    """
    try:
        if "://" in name:
            filesystem, root = fs.FileSystem.from_uri(name)
        else:
            filesystem, root = fs.LocalFileSystem(), str(expand(Path(name)).resolve())
        root = root.rstrip("/")
        info = filesystem.get_file_info(root)
        files = [info]
        if info.type == fs.FileType.Directory:
            files = filesystem.get_file_info(fs.FileSelector(root, recursive=True))
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"cannot read {name}: {str(error).splitlines()[0]}") from None
    if info.type == fs.FileType.NotFound:
        raise UserError(
            f"no data set '{name}': write digits, leaves, markov, or the path of a Parquet file "
            "or folder"
        )
    if info.type == fs.FileType.Directory:
        files = [file for file in files if file.path.endswith(".parquet")]
        if not files:
            raise UserError(f"{name} holds no Parquet file; make one with: python -m tarflow data")
    shards = tuple(sorted(files, key=lambda file: file.path))
    return Table(filesystem, root, shards, counts_by_index)
