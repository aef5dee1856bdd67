"""Do features see what likelihood sees? Rank correlation of BPD and KID over the runs of a study.

Samples every finished run of a folder again, all from the same noise, and compares them with the
held-out images in the features of each extractor. Prints Spearman's correlation over runs of one
noise level, and how far apart the runs are in standard errors. Two minutes for `digits`.

    python benchmarks/sample_features.py studies/digits
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.stats import spearmanr

from tarflow import data
from tarflow.evaluate.feature_cache import cached_features
from tarflow.evaluate.features import features, find_extractor
from tarflow.evaluate.metrics import kid
from tarflow.model.noise import to_pixels
from tarflow.model.weights import load_model
from tarflow.record import read_result
from tarflow.sample.sampling import sample

EXTRACTORS = ("classifier", "efficientnet-lite0")


def main() -> None:
    """Print a line for each extractor."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path, help="folder of a study with checkpoints")
    parser.add_argument("--samples", type=int, default=500, help="images drawn from each run")
    options = parser.parse_args()
    rows = []
    for folder in sorted((options.study / "runs").iterdir()):
        result = read_result(folder)
        if result and result["run"]["status"] == "done":
            rows += scores(folder, result["run"], options.samples)
    table = pd.DataFrame(rows)
    table = table[table["noise_std"] == table["noise_std"].mode()[0]]
    for name, runs in table.groupby("extractor"):
        spread = (runs["kid"].max() - runs["kid"].min()) / runs["kid_se"].median()
        print(
            f"{name:<24} {len(runs)} runs, Spearman {spearmanr(runs['bpd'], runs['kid'])[0]:.2f}, "
            f"KID {runs['kid'].min():.3g} to {runs['kid'].max():.3g}, {spread:.0f} standard errors"
        )


def scores(folder: Path, run: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """Return the KID of a run's samples in each extractor's features."""
    flow, config = load_model(folder / "model.safetensors")
    drawn = sample(flow, count, config.sampler, config.noise, seed=0, batch=250)
    rows = []
    for name in EXTRACTORS:
        extractor = find_extractor(name, data=config.data)
        real = cached_features(data.open_split(config.data, "validation").pixels, extractor)
        value, error = kid(features(to_pixels(drawn.images), extractor), real)
        rows.append({"extractor": name, "kid": value, "kid_se": error, **run})
    return rows


if __name__ == "__main__":
    main()
