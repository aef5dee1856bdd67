"""`python -m tarflow check`: whether a model is the invertible flow that it claims to be."""

from rich.text import Text

from tarflow.commands.checkpoint import Checkpoint, load
from tarflow.commands.table import print_table
from tarflow.errors import UserError, check_counts


def check(checkpoint: Checkpoint, /, count: int = 4, seed: int = 0) -> int:
    """Verify the causality, log-determinants, arithmetic and inverse of a model.

    Everything is measured at held-out images of the run, or at samples of the model if those
    images are missing. The exit code is 1 if a check fails.

    Args:
        checkpoint: Folder of a run or of a release, or its file model.safetensors.
        count: Number of images for the round trip.
        seed: Seed of the samples' noise.
    """
    import numpy as np
    import torch

    from tarflow import data
    from tarflow.evaluate.held_out import noise_names, noised_batches
    from tarflow.evaluate.verify import verify
    from tarflow.model.noise import normal_per_image
    from tarflow.sample.drawing import default_condition
    from tarflow.sample.inverse import invert

    check_counts(count=count)
    flow, config = load(checkpoint)
    device, model = flow.var.device, config.model
    try:
        held_out = data.open_split(data.match_data(config).data, "validation")
        indices = np.arange(min(count, len(held_out)))
        batches = noised_batches(held_out, indices, config, flow, noise_names(1), count)
        _, _, condition, images = next(batches)
        source = f"{len(images)} validation images of {config.data.name}"
    except UserError:
        condition = default_condition(flow, config, count)
        condition = None if condition is None else condition.to(device)
        shape = (model.tokens, model.token_dim)
        latents = normal_per_image(torch.arange(count), shape, seed, "check", flow.var.dtype)
        images = invert(flow, latents.to(device) * flow.var.sqrt(), condition)
        source = f"{count} samples of the model"
    checks = list(verify(flow, images, condition, config.noise))
    print_table(
        f"{checkpoint}, at {source}",
        ("check", "result", "measured", "tolerance", "what"),
        (
            (
                check.name,
                Text("pass", "green") if check.passed else Text("FAIL", "red"),
                f"{check.measured:.2g}",
                f"{check.tolerance:.2g}",
                check.quantity,
            )
            for check in checks
        ),
    )
    return 0 if all(check.passed for check in checks) else 1
