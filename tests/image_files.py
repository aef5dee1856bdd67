"""Images and image tables that tests write."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tarflow.config import DataConfig


def noise_images(count, size=8, channels=3, seed=0):
    shape = (count, size, size, channels) if channels == 3 else (count, size, size)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()


def write(path, blobs, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [None if blob is None else {"bytes": blob, "path": None} for blob in blobs]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array(images, kind), **columns}), path)
    return DataConfig(name=str(path))


# Tables
