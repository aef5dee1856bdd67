"""One optimizer step on a global batch, the same numbers however it is carried out.

Legend: `B` batch, `T` tokens per image, `D` values per token.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from tarflow import distributed
from tarflow.config import RunConfig
from tarflow.cuda_graph import CudaGraph, graph_pool
from tarflow.device import autocast, master_dtype
from tarflow.model import noise
from tarflow.model.likelihood import negative_log_likelihood
from tarflow.train import optim
from tarflow.train.schedule import step_rate
from tarflow.train.state import TrainState
from tarflow.train.update import make_update


class Diverged(RuntimeError):
    """Training met a value that is not finite; the text names the block."""


class TrainStep:
    """Updates a state, its weight average included, batch by batch.

    The gradients of several workers share one piece of memory, averaged after the last pass.

    On an accelerator the passes and the update are recorded once and replayed, for launching the
    operations of a model one by one can take the host longer than the device needs for them.
    """

    def __init__(self, state: TrainState, config: RunConfig) -> None:
        """Serve one run.

        Args:
            state: is changed by each step.
            config: of the run.
        """
        self.state, self.config = state, config
        device = state.flow.var.device
        self.total = torch.zeros((), device=device, dtype=master_dtype(config))
        self.square = torch.zeros_like(state.flow.var)
        self.run_pass: Callable[[Tensor, Tensor | None], None] = self._pass
        pool = graph_pool(device)
        if distributed.replayed(state.flow):
            self.run_pass = CudaGraph(self._pass, device, pool)
        self.update = make_update(state, config, pool)
        self.exponent = optim.ema_exponent(config.optim.ema) if config.optim.ema else None

    def __call__(self, pixels: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Update once.

        Noise, flips and dropped labels are drawn for the whole batch and each worker takes its
        share, so the numbers do not depend on how many workers there are.

        Args:
            pixels: (B, C, H, H) uint8, the global batch, on the device.
            labels: (B,) int64, or None for an unconditional model.

        Returns:
            Mean loss of the global batch (nats per dimension) and the gradient norm before
            clipping.

        Raises:
            Diverged: if either is not finite; the weights are then still those before the step.
        """
        state, config = self.state, self.config
        noised, labels = self.share_of(pixels, labels)
        micro = config.execution.micro_batch or state.micro_batch or len(noised)
        self.total.zero_()
        self.square.zero_()
        for start in range(0, len(noised), micro):
            part = noised[start : start + micro]
            part_labels = None if labels is None else labels[start : start + micro]
            self.run_pass(part, part_labels)
        self.update.measure()
        total, norm = distributed.mean(self.total), self.update.norm
        if not torch.isfinite(total + norm):
            raise Diverged(describe_divergence(state, noised, labels))
        if config.model.volume_preserving:
            state.flow.update_prior_variance(distributed.mean(self.square))
        rate = step_rate(config, state.images)
        state.images += config.batch
        self.update(rate, self.decay())
        return total.clone(), norm.clone()

    def decay(self) -> float:
        """Return how much of the weight average this step keeps."""
        if self.exponent is None:
            return 0.0
        return optim.ema_decay(self.exponent, self.state.images, self.config.batch)

    def share_of(self, pixels: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Draw what is random of the global batch, and return this worker's part of it."""
        config, device = self.config, pixels.device
        rng = noise.generator(config.seed, "step", self.state.images, str(device))
        if config.data.flip:
            flipped = torch.rand(len(pixels), generator=rng, device=device) < 0.5
            pixels = torch.where(flipped[:, None, None, None], pixels.flip(-1), pixels)
        noised = noise.noisy(pixels, config.noise, rng, master_dtype(config))
        if labels is not None:
            dropped = torch.rand(len(labels), generator=rng, device=device)
            labels = labels.masked_fill(dropped < config.optim.label_drop, -1)
        mine = distributed.batch_slice(len(noised))
        return noised[mine], None if labels is None else labels[mine]

    def _pass(self, images: Tensor, labels: Tensor | None) -> None:
        """Add the gradients and the loss of a micro-batch to those of the step."""
        mine = self.config.batch // distributed.world_size()
        with autocast(self.config.precision, images.device):
            latents, logdet = self.state.flow(images, labels)
        loss = negative_log_likelihood(latents, logdet).mean() * (len(images) / mine)
        loss.backward()
        self.total += loss.detach()
        if self.config.model.volume_preserving:
            self.square += latents.detach().square().sum(0) / mine


@torch.no_grad()
def describe_divergence(state: TrainState, images: Tensor, labels: Tensor | None) -> str:
    """Say at which images and in which block the numbers stopped being finite."""
    values = [
        bool(latents.isfinite().all() and logdet.isfinite().all())
        for latents, logdet in state.flow.trace(images, labels)
    ]
    gradients = [
        all(
            distributed.local_shard(p.grad).isfinite().all()
            for p in block.parameters()
            if p.grad is not None
        )
        for block in state.flow.blocks
    ]
    broken = distributed.any_worker([not fine for fine in values + gradients], images.device)
    if True not in broken:
        return f"the loss is not finite after {state.images} images"
    index, count = broken.index(True), len(values)
    if index < count:
        return f"block {index} gave values that are not finite after {state.images} images"
    return f"the gradient of block {index - count} is not finite after {state.images} images"
