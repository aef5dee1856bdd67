"""Compare the irreducible term of fitted laws with the exact entropy of the data.

    python benchmarks/known_floor.py FOLDER [--studies 10]

The images of `markov` have a probability that is known exactly, so the entropy of the validation
images is too, and no model can need fewer bits on average. Each study trains flows of three widths
on four numbers of images, 12 runs of one seed, and fits their laws as a study does. A study
is right if the 90% interval of its floor holds the entropy; printed are what each study
gave, and the share of those that are right.

One study takes a minute of one core. FOLDER keeps finished runs, so the same command resumes.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.laws.intervals import Interval, interval_of
from analysis.study.findings import find
from analysis.study.folder import read_study
from tarflow.config import (
    DataConfig,
    EvaluationConfig,
    ExecutionConfig,
    NoiseConfig,
    OptimConfig,
    RunConfig,
)
from tarflow.data.procedural import markov, markov_bits
from tarflow.identity import run_id
from tarflow.model_config import ModelConfig
from tarflow.run import resolve_config, run

SIDE = 4  # pixels
CHANNELS = (4, 8, 16)
IMAGES = (8192, 16384, 32768, 65536)
BATCH = 16
RATE, POWER = 0.01, -0.6  # of learning at 16 channels, and how it changes with the width
HELD_OUT = 2000  # validation images of every procedural set
INFINITE = 1e60  # parameters and tokens, at which only the floor is left


@dataclass(frozen=True)
class Floor:
    """An estimate of the irreducible term of a law, in bits per dimension."""

    value: float
    interval: Interval  # 90%

    def holds(self, truth: float) -> bool:
        """Tell whether the interval holds a value."""
        return self.interval[0] <= truth <= self.interval[1]

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.3f} ({low:.3f} to {high:.3f})"


def main() -> None:
    """Train the missing runs, fit the law of every study, and print how often it is right."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--studies", type=int, default=10)
    options = parser.parse_args()
    exact = markov_bits(markov("validation", 0, HELD_OUT, SIDE))
    truth = float(exact.mean())
    error = float(exact.std(ddof=1) / np.sqrt(HELD_OUT))
    print(f"entropy {truth:.4f} bits per dimension, ± {error:.4f} over the validation images")
    print("study  lowest BPD  floor (90% interval)")
    floors = []
    for seed in range(options.studies):
        rows = study(seed, options.folder)
        floors.append(floor := floor_of(rows))
        mark = "" if floor.holds(truth) else "  misses"
        print(f"{seed:5}  {rows['bpd'].min():10.3f}  {floor}{mark}", flush=True)
    held = sum(floor.holds(truth) for floor in floors)
    miss = np.array([floor.value - truth for floor in floors])
    width = np.median([high - low for low, high in (floor.interval for floor in floors)])
    print(
        f"{held} of {len(floors)} intervals hold the entropy; floor minus entropy "
        f"{miss.mean():+.3f} on average, {miss.std(ddof=1):.3f} from study to study; "
        f"interval {width:.3f} wide (median)"
    )


def study(seed: int, folder: Path) -> pd.DataFrame:
    """Return the rows of the runs of one study, trained or read from the folder."""
    place = folder / f"s{seed}"
    for channels in CHANNELS:
        for images in IMAGES:
            config = resolve_config(config_of(channels, images, seed))
            run(config, place / "runs" / run_id(config))
    return read_study(place)[0]


def config_of(channels: int, images: int, seed: int) -> RunConfig:
    """Return a run whose pixels are tokens. Uniform noise makes its BPD a code length."""
    return RunConfig(
        model=ModelConfig(
            image_size=SIDE, patch=1, channels=channels, blocks=2, layers=1, head_dim=4
        ),
        data=DataConfig(name=f"markov-{SIDE}-{max(IMAGES)}"),  # no image is seen twice
        noise=NoiseConfig(type="uniform"),
        optim=OptimConfig(lr=RATE * (channels / 16) ** POWER, warmup_images=32 * BATCH),
        images=images,
        batch=BATCH,
        seed=seed,
        precision="float32",
        evaluation=EvaluationConfig(samples=0, draws=4),
        execution=ExecutionConfig(device="cpu", threads=1),
    )


def floor_of(rows: pd.DataFrame) -> Floor:
    """Return the floor of the law of a study, the average of its forms.

    Raises:
        RuntimeError: If the runs follow no law.
    """
    law = find(rows, None).surface
    if law is None:
        raise RuntimeError("these runs follow no law")
    drawn = law.predict_draws(params=INFINITE, tokens=INFINITE).ravel()
    return Floor(float(drawn[0]), interval_of(drawn[1:]))


if __name__ == "__main__":
    main()
