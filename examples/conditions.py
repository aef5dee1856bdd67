"""Condition on text: write a table of captioned digits, train on it, draw what captions say.

    python examples/conditions.py FOLDER

Every word is a fixed random vector here; `python -m tarflow data text` encodes captions with a
text encoder instead. FOLDER then holds the table, the run and samples.png.
"""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tarflow.__main__ import main as tarflow
from tarflow.config import DataConfig, OptimConfig, RunConfig
from tarflow.config_files import to_yaml
from tarflow.data.codec import encode_png, to_image
from tarflow.data.images import open_split
from tarflow.model_config import STARFLOW, ModelConfig

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
WORDS = [*DIGITS, "thin", "bold"]


def main(folder: Path, images: int) -> None:
    """Write the table, train a small STARFlow on `images` images, and draw samples."""
    digits = open_split(DataConfig(), "train")
    ink = digits.pixels.mean((1, 2, 3))
    captions = np.stack([digits.labels, 10 + (ink > np.median(ink))], 1)  # "seven bold"
    vectors = np.random.default_rng(0).normal(size=(len(WORDS), 16)).astype("float32")
    images_of = [{"bytes": encode_png(to_image(one)), "path": None} for one in digits.pixels]
    text = [f"{WORDS[digit]} {WORDS[weight]}" for digit, weight in captions]
    columns = {"image": images_of, "text": text, "condition": vectors[captions].tolist()}
    folder.mkdir(parents=True)
    pq.write_table(pa.table(columns), folder / "captioned.parquet")
    wanted = {"condition": vectors[[[digit, 11] for digit in range(10)]].tolist()}
    pq.write_table(pa.table(wanted), folder / "wanted.parquet")  # ten bold digits

    sizes = {"patch": 7, "channels": 32, "head_dim": 16, "blocks": 3, "layers": (1, 1, 4)}
    model = ModelConfig(**STARFLOW, **sizes, condition_tokens=2, condition_dim=16)
    data = DataConfig(name=str(folder / "captioned.parquet"))
    optim = OptimConfig(lr=3e-3, warmup_images=256)
    config = RunConfig(model=model, data=data, optim=optim, images=images, batch=32)
    (folder / "run.yaml").write_text(to_yaml(config))
    run, picture = str(folder / "run"), str(folder / "samples.png")
    tarflow(["train", str(folder / "run.yaml"), "--out", run])
    sample = ["sample", f"{run}/model.safetensors", "--condition", str(folder / "wanted.parquet")]
    tarflow([*sample, "--count", "40", "--columns", "10", "--guidance", "1", "--grid", picture])


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 64_000)
