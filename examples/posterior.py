"""Complete the missing half of digits by gradient descent through the inverse of a flow.

    python examples/posterior.py studies/digits/runs/RUN_ID completed.png

The latents of an image have a normal prior. With the visible half of the image as an observation,
their posterior is a function that gradient descent climbs: this finds a maximum. The picture has
three rows: what is known, what was found, and the digits.
"""

import sys

import torch

import tarflow
from tarflow.data import open_split
from tarflow.model.noise import unit
from tarflow.sample.grid import image_grid


def main(run: str, picture: str, count: int = 8, steps: int = 200) -> None:
    """Complete validation images, of which the upper half is known."""
    model = tarflow.load(run)
    flow, split = model.flow, open_split(model.config.data, "validation")
    digits, labels = unit(torch.tensor(split.pixels[:count])), torch.tensor(split.labels[:count])
    labels = labels if flow.config.classes else None
    known = torch.zeros_like(digits)
    known[:, :, : digits.shape[2] // 2] = 1
    latents = torch.zeros(count, *flow.var.shape, requires_grad=True)
    optimizer = torch.optim.Adam([latents], lr=0.1)
    for step in range(steps):
        images = model.inverse(latents, labels, differentiable=True)
        misfit = (known * (images - digits)).square().sum() / (2 * model.config.noise.std**2)
        loss = misfit + 0.5 * (latents.square() / flow.var).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0 or step == steps - 1:
            print(f"step {step:>3}: {loss.item() / count:.1f} nats per image")
    rows = torch.cat([known * (digits + 1) - 1, images.detach(), digits])
    image_grid(rows, columns=count).save(picture)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
