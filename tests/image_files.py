"""Images and image tables that tests write."""

import gzip
import io
import json
import struct

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


def classes(target):
    """Return the names of the classes of a set and the labels of its training images."""
    table = pq.read_table(target / "train-00000.parquet")
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    return features["label"]["names"], table["label"].to_pylist()


def labels_of(target):
    """Return the labels that an import wrote to each split."""
    return {
        path.stem.split("-")[0]: pq.read_table(path)["label"].to_pylist()
        for path in sorted(target.glob("*.parquet"))
    }


def idx(array):
    """Return the content of an IDX file of bytes."""
    return struct.pack(f">{array.ndim + 1}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


def write_idx(folder, split, images, labels, ending=".gz"):
    folder.mkdir(exist_ok=True)
    pack = gzip.compress if ending == ".gz" else bytes
    (folder / f"{split}-images-idx3-ubyte{ending}").write_bytes(pack(idx(images)))
    labels = idx(np.array(labels, np.uint8))
    (folder / f"{split}-labels-idx1-ubyte{ending}").write_bytes(pack(labels))


def python2_pickle(value):
    """Pickle as Python 2 did, protocol 2: byte strings are STRING, arrays numpy.core's."""

    def put(value):
        if isinstance(value, bytes):
            return b"T" + len(value).to_bytes(4, "little") + value
        if isinstance(value, bool):
            return b"\x88" if value else b"\x89"
        if isinstance(value, int):
            return b"J" + value.to_bytes(4, "little", signed=True)
        if value is None:
            return b"N"
        if isinstance(value, tuple):
            return b"(" + b"".join(map(put, value)) + b"t"
        if isinstance(value, list):
            return b"](" + b"".join(map(put, value)) + b"e"
        if isinstance(value, dict):
            return b"}(" + b"".join(put(part) for pair in value.items() for part in pair) + b"u"
        make = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + put((0,)) + put(b"b")
        kind = b"cnumpy\ndtype\n" + put((b"u1", 0, 1)) + b"R"
        kind += put((3, b"|", None, None, None, -1, -1, 0)) + b"b"
        state = put(1) + put(value.shape) + kind + put(False) + put(value.tobytes())
        return make + b"tR(" + state + b"tb"

    return b"\x80\x02" + put(value) + b"."


def write_cifar10(folder, images):
    folder.mkdir()
    rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    for name, part in zip(names, np.split(rows, 6), strict=True):
        labels = [number % 10 for number in range(len(part))]
        batch = {b"batch_label": name.encode(), b"labels": labels, b"data": part}
        (folder / name).write_bytes(python2_pickle(batch))
    classes = [b"class %d" % number for number in range(10)]
    (folder / "batches.meta").write_bytes(python2_pickle({b"label_names": classes}))
