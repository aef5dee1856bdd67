"""Triton's interpreter runs the decode step on the CPU: it is the plain block, token by token."""

from dataclasses import replace

import pytest
import torch

from sweeps.hardware import has_gpu
from tarflow.config import SamplerConfig
from tarflow.sample.incremental import IncrementalBlock
from tarflow.sample.inverse import sequential
from tarflow.sample.kv_cache import KVCache

pytest.importorskip("triton", reason="there is no Triton for this system")
if has_gpu():
    pytest.skip("a GPU compiles the kernels", allow_module_level=True)
from tarflow.cuda import decode, products

GUIDED = [
    SamplerConfig(guidance=1.5, rule=rule, part=part)
    for rule, part in [
        ("log-scale", "both"),
        ("log-scale", "shift"),
        ("sigma-linear", "both"),
        ("gaussian-score", "both"),
        ("gaussian-score", "scale"),
    ]
]


@pytest.mark.parametrize("sampler", [None, SamplerConfig(guidance=1.0, temperature=0.7), *GUIDED])
@torch.inference_mode()
def test_decoded_tokens_are_those_of_the_plain_block(random_flow, sampler, monkeypatch):
    monkeypatch.setattr(decode, "KEYS", 4)  # several programs' worth of keys in 16 tokens
    small = products.Tile(16, 32, 32)  # and several parts of every sum
    monkeypatch.setattr(products, "tiles", lambda *_: small)
    monkeypatch.setattr(products, "ENDS", replace(small, inner=16))
    layers = 1 if sampler else 2
    flow = random_flow(torch.float32, layers=layers, channels=24, head_dim=8, classes=3)
    block, batch = flow.blocks[1], 2
    labels = torch.tensor([0, 2, -1, -1]) if sampler else torch.tensor([0, 2])
    latents = torch.randn(batch, flow.config.tokens, flow.config.token_dim)

    def incremental():
        cache = KVCache(flow, len(labels), torch.float32)
        return IncrementalBlock(block, cache, batch, labels, sampler)

    plain = incremental()
    decoded = incremental()
    caches = decoded.cache.layers(len(labels), len(block.attn_blocks))
    guidance = decoded.sampler, decoded.weights, decoded.query_scale
    step = decode.DecodeStep(block, caches, decoded.embedding, *guidance)
    expected, tokens = sequential(plain, latents), latents.clone()
    step.begin(tokens[:, 0], 0)
    for place in range(flow.config.tokens - 1):
        step(latents, tokens, torch.tensor([place]))
    torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-5)
