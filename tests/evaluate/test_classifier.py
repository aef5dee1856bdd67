"""Features that are learned from the labels of the data."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tarflow import data
from tarflow.config import DataConfig, EvaluationConfig, RunConfig
from tarflow.data.codec import encode_png, to_image
from tarflow.errors import ConfigError, UserError
from tarflow.evaluate.extractors import classifier
from tarflow.evaluate.extractors.classifier import trained_classifier
from tarflow.evaluate.features import features, find_extractor
from tarflow.evaluate.metrics import kid
from tarflow.model_config import ModelConfig


@pytest.fixture
def stripes(tmp_path, monkeypatch):
    """Colour images of 40 pixels with upright or level stripes; the label says which."""
    monkeypatch.setenv("TARFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(classifier, "_STEPS", 20)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    waves = 127 + 90 * np.sin(np.arange(40) * rng.uniform(0.5, 0.7, (200, 1)))
    waves = np.broadcast_to(waves[:, None], (200, 40, 40)).copy()
    waves[labels == 1] = waves[labels == 1].swapaxes(1, 2)
    pixels = waves[:, None] + rng.normal(0, 20, (200, 3, 40, 40))
    pixels = pixels.clip(0, 255).astype(np.uint8)
    images = [{"bytes": encode_png(to_image(image)), "path": None} for image in pixels]
    split = ["train"] * 100 + ["validation"] * 100
    rows = pa.table({"image": images, "label": labels, "split": split})
    pq.write_table(rows, tmp_path / "stripes.parquet")
    return DataConfig(name=str(tmp_path / "stripes.parquet"))


def test_the_classifier_learns_any_labelled_images_once(stripes, monkeypatch):
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    network, digest = trained_classifier(stripes)
    assert torch.equal(torch.get_rng_state(), state)  # a run that follows draws the same numbers
    assert torch.get_num_threads() == threads
    held_out = data.open_split(stripes, "validation")
    logits = network.head(network.pooled(torch.from_numpy(held_out.pixels.copy())))
    assert (logits.argmax(1).numpy() == held_out.labels).mean() > 0.9

    (file,) = (classifier.cache_folder() / "classifier").iterdir()
    content = file.read_bytes()
    file.write_bytes(content[:-9])  # damaged: trained again, to the same weights
    assert trained_classifier(stripes)[1] == digest
    assert file.read_bytes() == content
    monkeypatch.setattr(classifier, "_train", None)
    again, same = trained_classifier(stripes)
    assert same == digest
    assert torch.equal(again.head.weight, network.head.weight)


def test_features_are_named_and_scaled_by_their_training(stripes):
    extractor = find_extractor("classifier", data=stripes)
    assert extractor.name == f"classifier:{extractor.digest[:8]}"
    assert not extractor.is_inception
    real = features(data.open_split(stripes, "train").pixels, extractor)
    assert abs(real.mean()) < 0.05
    assert real.var(axis=0).mean() == pytest.approx(1, rel=0.05)
    with pytest.raises(UserError, match="leave out --weights"):
        find_extractor("classifier", Path("weights.pt"), data=stripes)


def test_images_without_labels_are_refused_before_training():
    unlabelled = DataConfig(name="markov-8")
    with pytest.raises(UserError, match="learned from labels, and markov-8 has none"):
        find_extractor("classifier", data=unlabelled)
    config = RunConfig(
        model=ModelConfig(image_size=8, patch=2, channels=16, head_dim=8),
        data=unlabelled,
        images=256,
        evaluation=EvaluationConfig(features="classifier"),
    )
    with pytest.raises(ConfigError, match=r"evaluation.features is classifier.*markov-8 has none"):
        data.match_data(config)


@pytest.mark.slow
def test_the_classifier_tells_damaged_digits_from_real_ones():
    digits = DataConfig(name="digits")
    extractor = find_extractor("classifier", data=digits)
    real = features(data.open_split(digits, "validation").pixels, extractor)
    train = data.open_split(digits, "train").pixels[:500]
    speckled = np.where(np.random.default_rng(0).random(train.shape) < 0.03, 255, train)
    distances = [kid(features(images, extractor), real) for images in (train, speckled)]
    (clean, error), (damaged, _) = distances
    assert abs(clean) < 4 * error
    assert damaged > clean + 10 * error
