"""Which validation images does a trained model find least likely, and which least typical?

    python examples/score_images.py MODEL.safetensors

The log-likelihood is exact, that of the image with its training noise. Typicality is its distance
from the mean of training images. Prints the five worst images by each measure.
"""

import sys
from pathlib import Path

from tarflow.data.images import open_split
from tarflow.evaluate.held_out import training_reference
from tarflow.evaluate.scoring import score
from tarflow.model.weights import load_model


def main(checkpoint: Path) -> None:
    """Print the most anomalous images by either measure."""
    flow, config = load_model(checkpoint)
    images = open_split(config.data, "validation")
    scores = score(flow, config, images, training_reference(flow, config))
    for by in ("likelihood", "typicality"):
        print(f"worst by {by}:")
        for index in scores.worst_first(by)[:5]:
            print(
                f"  image {index:>3} of class {scores.labels[index]}: "
                f"log-likelihood {scores.log_likelihood[index]:>9.1f} nats, "
                f"{scores.bpd[index]:.3f} bits per dimension"
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
