"""`python -m tarflow check`: whether a trained model is the flow it should be."""

from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from tarflow.config import ExecutionConfig
from tarflow.errors import UserError


def check(
    checkpoint: Annotated[Path, tyro.conf.Positional], /, count: int = 4, seed: int = 0
) -> int:
    """Verify causality, log-determinants, arithmetic and inverse of a model; exit 1 on a failure.

    Measured at held-out images of the run, or at the model's own samples where those are missing.

    Args:
        checkpoint: model.safetensors.
        count: images of the round trip.
        seed: of the samples' noise.
    """
    import numpy as np
    import torch

    from tarflow import data
    from tarflow.device import choose_device
    from tarflow.evaluate.held_out import noised_batches
    from tarflow.evaluate.verify import verify
    from tarflow.model.noise import normal_per_image
    from tarflow.model.weights import load_model
    from tarflow.run import resolve_config
    from tarflow.sample.inverse import invert

    if count < 1:
        raise UserError(f"cannot check at {count} images: give at least 1")
    flow, config = load_model(checkpoint)
    flow.to(choose_device(ExecutionConfig())).requires_grad_(False)
    device, model = flow.var.device, config.model
    try:
        held_out = data.open_split(resolve_config(config).data, "validation")
        chosen = np.arange(min(count, len(held_out)))
        parts = noised_batches(held_out, chosen, config, flow, "held-out 0", count)
        _, labels, images = next(parts)
        at = f"{len(images)} validation images of {config.data.name}"
    except UserError:
        labels = torch.arange(count, device=device) % model.classes if model.classes else None
        shape = (model.tokens, model.token_dim)
        drawn = normal_per_image(torch.arange(count), shape, seed, "check", flow.var.dtype)
        images = invert(flow, drawn.to(device) * flow.var.sqrt(), labels)
        at = f"{count} samples of the model"
    checks = list(verify(flow, images, labels, config.noise))
    table = Table(
        "check", "result", "measured", "tolerance", "what", title=f"{checkpoint}, at {at}"
    )
    for each in checks:
        result = "[green]pass[/]" if each.passed else "[red]FAIL[/]"
        table.add_row(each.name, result, f"{each.measured:.2g}", f"{each.tolerance:.2g}", each.how)
    Console().print(table)
    return 0 if all(each.passed for each in checks) else 1
