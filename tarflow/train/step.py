"""One optimizer step on a global batch: the same numbers however it is executed.

Legend: `B` batch, `T` tokens per image, `D` values per token.
"""

import torch
from torch import Tensor, nn

from tarflow import distributed
from tarflow.config import RunConfig
from tarflow.cpu.kernels import kernels
from tarflow.cpu.update import OnePassUpdate
from tarflow.device import DTYPES, autocast
from tarflow.execution import Execution
from tarflow.model import noise
from tarflow.model.likelihood import negative_log_likelihood
from tarflow.train import optim
from tarflow.train.schedule import step_rate
from tarflow.train.state import TrainState


class Diverged(RuntimeError):
    """Training met a value that is not finite; the text names the block."""


class TrainStep:
    """Trains a state batch by batch (Zhai et al. 2025, section 3)."""

    def __init__(self, state: TrainState, config: RunConfig, execution: Execution) -> None:
        """Prepare for one run.

        Args:
            state: Changed by each step.
            config: Run to train.
            execution: Resolved for this machine.
        """
        self.state, self.config, self.execution = state, config, execution
        self.loss = torch.zeros((), device=execution.device, dtype=execution.dtype)
        self.square = torch.zeros_like(state.flow.var)
        # one buffer for all gradients, or `None` where each pass may write new tensors
        self.gradients = distributed.flatten_gradients(state.flow) if self.needs_buffer() else None
        self.update = self.make_update()
        self.squares: list[Tensor] = []  # mean squares between the blocks, of one pass
        if config.optim.output_penalty:
            for block in state.flow.blocks[:-1]:
                block.register_forward_hook(self._measure_output)
        self.ema_exponent = optim.ema_exponent(config.optim.ema) if config.optim.ema else None

    def __call__(self, pixels: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Take one step.

        Args:
            pixels: (B, C, H, H) uint8, the global batch, on the device.
            condition: Labels (B,) int64 or vectors (B, P, E), or None for an unconditional model.

        Returns:
            Mean loss of the global batch (nats per dimension) and the gradient norm before
            clipping.

        Raises:
            Diverged: If either is not finite; the weights are then those before the step.
        """
        state, config = self.state, self.config
        images, condition = self.draw_noise(pixels, condition)

        self.loss.zero_()
        self.square.zero_()
        for start in range(0, len(images), self.execution.micro_batch):
            part = slice(start, start + self.execution.micro_batch)
            self.forward_backward(images[part], None if condition is None else condition[part])

        if self.gradients is not None:
            distributed.average_gradients(self.gradients)
        loss, norm = distributed.mean(self.loss), self.update.gradient_norm()

        if not torch.isfinite(loss + norm):
            raise Diverged(describe_divergence(state, images, condition))
        if config.model.volume_preserving:
            state.flow.update_prior_variance(distributed.mean(self.square))

        rate = step_rate(config, state.images)
        state.images += config.batch
        self.update(rate, self.ema_decay())  # clip, step and EMA
        self.clear_gradients()
        return loss.clone(), norm.clone()

    def needs_buffer(self) -> bool:
        """Tell whether passes must add their gradients to a buffer: workers average it."""
        return self.execution.workers > 1 and not self.execution.sharded

    def draw_noise(self, pixels: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Draw flips, noise and dropped conditions, and return this worker's part of the batch.

        They are drawn for the whole batch, so that the numbers do not depend on how many workers
        there are.
        """
        config, device = self.config, pixels.device
        rng = noise.generator(config.seed, "step", self.state.images, str(device))
        if config.data.flip:
            flipped = torch.rand(len(pixels), generator=rng, device=device) < 0.5
            pixels = torch.where(flipped[:, None, None, None], pixels.flip(-1), pixels)
        images = noise.noisy(pixels, config.noise, rng, self.execution.dtype)
        if condition is not None:
            dropped = torch.rand(len(condition), generator=rng, device=device)
            condition = self.state.flow.drop(condition, dropped < config.optim.label_drop)
        part = distributed.batch_slice(len(images))
        return images[part], None if condition is None else condition[part]

    def forward_backward(self, images: Tensor, condition: Tensor | None) -> None:
        """Add the gradients and the loss of a micro-batch to those of the step.

        The penalty on outputs (Gu et al. 2025) adds to the gradients; the loss is reported without
        it, so that it stays a likelihood.
        """
        share = self.config.batch // self.execution.workers
        self.squares.clear()
        with autocast(self.execution.precision, images.device):
            latents, logdet = self.state.flow(images, condition)
        loss = negative_log_likelihood(latents, logdet).mean() * (len(images) / share)
        penalty = self.config.optim.output_penalty * (len(images) / share) * sum(self.squares)
        (loss + penalty).backward()
        self.loss += loss.detach()
        if self.config.model.volume_preserving:
            self.square += latents.detach().square().sum(0) / share

    def _measure_output(
        self, _block: nn.Module, _inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]
    ) -> None:
        """Keep the mean square of the tokens that a block passes on."""
        self.squares.append(output[0].float().square().mean())

    def make_update(self) -> optim.Update | OnePassUpdate:
        """Return what clips, steps and averages: in one pass where compiled kernels can."""
        state, config = self.state, self.config
        named = dict(state.flow.named_parameters())
        parameters, ema = list(named.values()), [state.ema[name] for name in named]
        on_cpu = self.execution.device.type == "cpu"
        if on_cpu and self.execution.kernels == "fused" and config.optim.optimizer == "adamw":
            library = kernels(DTYPES[self.execution.precision])
            assert library
            (optimizer,) = state.optimizers
            return OnePassUpdate(optimizer, parameters, ema, config.optim.clip, library)
        return optim.Update(state.optimizers, parameters, ema, config.optim.clip)

    def ema_decay(self) -> float:
        """Return the share of the EMA that this step keeps; 0 if there is no averaging."""
        if self.ema_exponent is None:
            return 0.0
        return optim.ema_decay(self.ema_exponent, self.state.images, self.config.batch)

    def clear_gradients(self) -> None:
        """Make ready for the next step."""
        if self.gradients is not None:
            self.gradients.zero_()
        else:
            for parameter in self.update.parameters:
                parameter.grad = None


@torch.no_grad()
def describe_divergence(state: TrainState, images: Tensor, condition: Tensor | None) -> str:
    """Say after how many images and in which block the numbers stopped being finite."""
    values = [
        bool(latents.isfinite().all() and logdet.isfinite().all())
        for latents, logdet in state.flow.trace(images, condition)
    ]
    gradients = [
        all(
            distributed.local_shard(p.grad).isfinite().all()
            for p in block.parameters()
            if p.grad is not None
        )
        for block in state.flow.blocks
    ]
    broken = distributed.any_worker([not finite for finite in values + gradients], images.device)
    if True not in broken:
        return f"the loss is not finite after {state.images} images"
    index, count = broken.index(True), len(values)
    if index < count:
        return f"block {index} gave values that are not finite after {state.images} images"
    return f"the gradient of block {index - count} is not finite after {state.images} images"
