"""Hand a trained model on: write its folder and card, then use them as a stranger would.

python examples/release.py studies/digits/runs/RUN_ID digits-flow
"""

import json
import sys

import tarflow
from tarflow.data import open_split


def main(run: str, out: str) -> None:
    """Release a finished run, and print what the folder says and does."""
    folder = tarflow.release(run, out, license="apache-2.0")
    print(*sorted(path.name for path in folder.iterdir()))
    metrics = json.loads((folder / "metrics.json").read_text())
    for split, scores in metrics["bits_per_dimension"].items():
        print(f"{split}: {scores['bpd']:.3f} +- {scores['bpd_se']:.3f} bits per dimension")
    if metrics["forecast"]:
        print(metrics["forecast"]["verdict"])

    model = tarflow.load(folder)
    print(model.sample(4))
    print("bits of four digits:", model.bits(open_split(model.config.data, "test").pixels[:4]))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
