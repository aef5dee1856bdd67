"""Encode captions: a column of text becomes the column `condition`, by a local text encoder.

The encoder is a folder that `transformers` reads, such as T5's. Nothing is downloaded.

Legend: `N` rows, `P` text tokens, `E` values per token.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tarflow.data.conditions import COLUMN, DROPPED, stored_dropped
from tarflow.data.tables import Table, find_table
from tarflow.errors import UserError

ROWS = 64  # encoded at a time
Encode = Callable[[Sequence[str]], NDArray[np.float32]]  # texts to (N, P, E)


def load_encoder(folder: Path, tokens: int, device: str) -> Encode:
    """Read a text encoder from a local folder.

    Texts are cut to `tokens` tokens and padded to them; what stands for padding is zero.

    Args:
        folder: Tokenizer and weights, as `save_pretrained` writes them. Of an encoder-decoder such
            as T5 only the encoder is used.
        tokens: Tokens P of every text.
        device: Device to encode on, such as cuda.

    Raises:
        UserError: If `transformers` is missing, or the folder holds no encoder.
    """
    try:
        import torch
        import transformers
    except ImportError:
        raise UserError(
            "encoding text needs the package transformers: pip install 'tarflow[text]'"
        ) from None
    if not folder.is_dir():
        raise UserError(f"--encoder {folder} is no folder: give one that save_pretrained wrote")
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        kind = transformers.T5EncoderModel if config.model_type == "t5" else transformers.AutoModel
        loaded: Any = kind.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--encoder {folder} holds no text encoder: {reason}") from None
    model = loaded.eval().to(device)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token

    @torch.inference_mode()
    def encode(texts: Sequence[str]) -> NDArray[np.float32]:
        given = tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=tokens,
            return_tensors="pt",
        ).to(device)
        mask = given["attention_mask"]
        states = model(input_ids=given["input_ids"], attention_mask=mask).last_hidden_state
        encoded: NDArray[np.float32] = (states * mask[:, :, None]).float().cpu().numpy()
        return encoded

    return encode


def encode_captions(
    source: str,
    target: Path,
    encode: Encode,
    column: str = "",
    report: Callable[[int, int], None] = lambda _done, _total: None,
) -> Table:
    """Write a copy of an image table whose column `condition` holds the encoded captions.

    The encoding of the empty text is kept as what stands for a dropped condition.

    Args:
        source: Image table with a column of text.
        target: Folder to create, whole or not at all.
        encode: Encoder, from `load_encoder`.
        column: Name of the column of text; by default the only one.
        report: Receives the number of rows encoded so far and of all rows.

    Raises:
        UserError: If the target exists, or the column is missing or no text.
    """
    if target.exists():
        raise UserError(f"{target} exists; remove it or name another folder")
    table = find_table(source)
    total, done = len(table.codes), 0
    dropped = encode([""])[0]
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        for shard in table.shards:
            file = pq.ParquetFile(shard.path, filesystem=table.filesystem)
            name = column or _only_text(file.schema_arrow, source)
            schema = _schema(file.schema_arrow, name, dropped, source)
            path = temporary / (
                shard.path.removeprefix(table.root).strip("/") or Path(source).name
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            with pq.ParquetWriter(path, schema) as writer:
                for batch in file.iter_batches(ROWS):
                    texts = batch.column(name).to_pylist()
                    if None in texts:
                        raise UserError(
                            f"row {done + texts.index(None)} of {source} has no {name}"
                        )
                    vectors = encode(texts)
                    values = pa.array(vectors.reshape(-1), pa.float32())
                    for size in (vectors.shape[2], vectors.shape[1]):
                        values = pa.FixedSizeListArray.from_arrays(values, size)
                    kept = [n for n in batch.schema.names if n != COLUMN]
                    arrays = [*(batch.column(n) for n in kept), values]
                    writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
                    done += len(texts)
                    report(done, total)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return find_table(str(target))


def _only_text(schema: pa.Schema, source: str) -> str:
    """Return the name of the only column of text."""
    names: list[str] = [f.name for f in schema if _is_text(f) and f.name != "split"]
    if len(names) != 1:
        found = ", ".join(names) or "none"
        raise UserError(f"{source} has these columns of text: {found}; name one with --column")
    return names[0]


def _is_text(field: pa.Field) -> bool:
    return bool(pa.types.is_string(field.type) or pa.types.is_large_string(field.type))


def _schema(
    schema: pa.Schema, column: str, dropped: NDArray[np.float32], source: str
) -> pa.Schema:
    """Return the schema of a table with conditions, and with what stands for a dropped one."""
    if column not in schema.names:
        raise UserError(f"{source} has no column '{column}': {', '.join(schema.names)}")
    field = schema.field(column)
    if not _is_text(field):
        raise UserError(f"the column '{column}' of {source} is {field.type}, not text")
    tokens, width = dropped.shape
    kind = pa.list_(pa.list_(pa.float32(), width), tokens)
    fields = [f for f in schema if f.name != COLUMN] + [pa.field(COLUMN, kind)]
    metadata = {**(schema.metadata or {}), DROPPED: stored_dropped(dropped)}
    return pa.schema(fields, metadata)
