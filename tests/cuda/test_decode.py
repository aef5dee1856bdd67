"""Triton's interpreter runs the decode step on the CPU: it is the layers, token by token."""

import pytest
import torch

from sweeps.hardware import has_gpu
from tarflow.sample.incremental import IncrementalBlock
from tarflow.sample.kv_cache import DeviceWindow, KVCache, Window

pytest.importorskip("triton", reason="there is no Triton for this system")
if has_gpu():
    pytest.skip("a GPU compiles the kernels", allow_module_level=True)
from tarflow.cuda import decode


@pytest.mark.parametrize("scaled", [False, True])
@torch.inference_mode()
def test_decode_steps_are_those_of_plain_layers(random_flow, scaled, monkeypatch):
    monkeypatch.setattr(decode, "KEYS", 4)  # several programs' worth of keys in 16 tokens
    flow = random_flow(torch.float32, layers=2, channels=24, head_dim=8)
    block, batch = flow.blocks[0], 2
    scale = torch.tensor([[1.0], [0.7]]) if scaled else None
    tokens = torch.randn(batch, flow.config.tokens, flow.config.token_dim)

    def outputs(decoded):
        cache = KVCache(flow, batch, torch.float32)
        incremental = IncrementalBlock(block, cache, batch, None)
        incremental.query_scale = scale
        if decoded:
            incremental.decoder = decode.DecodeStep(
                block.attn_blocks, cache.layers(batch, len(block.attn_blocks))
            )
        windows = [Window(index, 1) for index in range(flow.config.tokens)]
        if decoded:
            windows = [DeviceWindow(torch.tensor([w.start]), flow.config.tokens) for w in windows]
        pairs = [incremental(tokens[:, i : i + 1], window) for i, window in enumerate(windows)]
        return torch.cat([torch.cat(pair, 2) for pair in pairs], 1)

    torch.testing.assert_close(outputs(True), outputs(False), rtol=1e-4, atol=1e-5)
