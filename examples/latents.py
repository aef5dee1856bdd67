"""Train a small STARFlow on the latents of an autoencoder, and decode what it draws.

Takes the folder of an AutoencoderKL that diffusers saved, and a folder to write to. Prints the
likelihood in bits per latent dimension and writes samples.png there.

    python examples/latents.py sd-vae results
"""

import sys
from pathlib import Path

from tarflow import DataConfig, EvaluationConfig, ModelConfig, NoiseConfig, OptimConfig, RunConfig
from tarflow.latent.autoencoder import load_autoencoder
from tarflow.latent.encoding import encode_table
from tarflow.model_config import STARFLOW
from tarflow.run import resolve_config, run


def main(autoencoder: Path, out: Path, images: str = "leaves-32-4000", seen: int = 8192) -> None:
    """Encode images, train on the latents and sample."""
    space = encode_table(images, out / "latents", load_autoencoder(autoencoder))
    channels, side, _ = space.shape
    sizes = {"image_size": side, "image_channels": channels, "patch": 1, "channels": 64}
    config = RunConfig(
        model=ModelConfig(**STARFLOW, **sizes, classes=10, blocks=3, layers=(1, 1, 4)),
        data=DataConfig(name=str(out / "latents")),
        noise=NoiseConfig(std=0.3),
        optim=OptimConfig(output_penalty=1e-4),
        images=seen,
        evaluation=EvaluationConfig(samples=64),
    )
    row = run(resolve_config(config), out)
    print(f"{row['bpd']:.3f} ± {row['bpd_se']:.3f} bits per latent dimension, {out}/samples.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
