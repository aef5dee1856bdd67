"""Compare sets of images by kernel distance (KID) in EfficientNet-Lite0 features.

Training digits stand for the samples of a perfect model: their distance from the validation
digits is zero within the standard error. Noise and blur increase it. Prints lines like

    efficientnet-lite0@64, 200 images against 200 validation images
    real       KID    0.060 +- 0.054
    noisy      KID    3.952 +- 0.467
    blurred    KID    0.803 +- 0.133
"""

import numpy as np
import torch
from torch.nn import functional

from tarflow.config import DataConfig
from tarflow.data.images import open_split
from tarflow.evaluate.features import features, find_extractor
from tarflow.evaluate.metrics import kid

COUNT = 200


def main() -> None:
    """Print the distance of three sets from the validation images."""
    data = DataConfig(name="digits")
    validation = open_split(data, "validation").pixels[:COUNT]
    real = open_split(data, "train").pixels[:COUNT]
    noise = np.random.default_rng(0).normal(0, 3, real.shape)
    smooth = functional.avg_pool2d(torch.tensor(real).float(), 3, stride=1, padding=1)
    sets = {
        "real": real,
        "noisy": (real + noise).clip(0, 255).round().astype(np.uint8),
        "blurred": smooth.round().to(torch.uint8),
    }
    extractor = find_extractor("efficientnet-lite0")
    reference = features(validation, extractor)
    print(f"{extractor.name}, {COUNT} images against {len(reference)} validation images")
    for name, images in sets.items():
        value, standard_error = kid(features(images, extractor), reference)
        print(f"{name:<10} KID {value:>8.3f} +- {standard_error:.3f}")


if __name__ == "__main__":
    main()
