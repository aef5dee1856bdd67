"""The command line of one run: `python -m tarflow train / sample / evaluate / cost / data`."""

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from tarflow import cost as costs
from tarflow.config import ConfigError, RunConfig, SamplerConfig, read_yaml, run_id


def train(config: Annotated[Path, tyro.conf.Positional], /, out: Path | None = None) -> int:
    """Train the run that a YAML file describes, then score and sample the result.

    Run it again after an interruption and it goes on where it stopped. Several workers: start it
    with torchrun. Example: python -m tarflow train studies/digits/best.yaml

    Args:
        config: a config file, such as best.yaml of a study.
        out: folder of the run; by default runs/RUN_ID.
    """
    from rich.console import Console

    from tarflow import distributed
    from tarflow.run import resolve, run

    console = Console(stderr=True, highlight=False)
    chosen = resolve(read_yaml(RunConfig, config))
    folder = out or Path("runs") / run_id(chosen)

    def report(progress: dict[str, Any]) -> None:
        share = progress["images"] / chosen.images
        left = progress["seconds"] * (1 / share - 1)
        console.print(
            f"{share:4.0%}  {progress['images']:,} images  loss {progress['loss']:.4f}  "
            f"{left:.0f} s of training left"
        )

    with distributed.process_group():
        row = run(chosen, folder, role="final", report=report)
    if row.get("status") == "failed":
        console.print(f"failed: {row['error']} (all of it in {folder}/error.txt)")
        return 1
    if row:
        print(
            f"{folder}: {row['bpd']:.4f} ± {row['bpd_se']:.4f} bits per dimension "
            f"({row['bpd_kind']}, {row['split']} images)"
        )
    return 0


def sample(
    checkpoint: Annotated[Path, tyro.conf.Positional],
    /,
    count: int = 64,
    grid: Path = Path("samples.png"),
    columns: int = 8,
    seed: int = 0,
    guidance: float | None = None,
    part: Literal["both", "scale", "shift"] | None = None,
    temperature: float | None = None,
    denoise: float | None = None,
) -> int:
    """Draw images from a trained model and lay them out in one picture.

    What is not given is taken from the run's config.

    Args:
        checkpoint: model.safetensors of a run.
        count: images to draw.
        grid: the picture to write.
        columns: of the picture.
        seed: of the noise; image i depends on (seed, i) only.
        guidance: weight of the guided extrapolation; 0 is off.
        part: what guidance acts on.
        temperature: attention temperature of the unguided branch.
        denoise: multiplier of the denoising step; 0 is off.
    """
    from tarflow.checkpoint import load_model
    from tarflow.sampling import image_grid
    from tarflow.sampling import sample as draw

    flow, config = load_model(checkpoint)
    sampler = _sampler(config.sampler, guidance, part, temperature, denoise)
    start = time.perf_counter()
    drawn = draw(flow, count, sampler, config.noise, seed=seed)
    seconds = time.perf_counter() - start
    grid.parent.mkdir(parents=True, exist_ok=True)
    image_grid(drawn.images, columns).save(grid)
    print(f"{grid}: {len(drawn.images)} images, {seconds / count:.3f} s each")
    if drawn.redrawn or drawn.lost:
        print(f"{drawn.redrawn} draws were not finite and repeated, {drawn.lost} given up")
    return 0


def evaluate(
    checkpoint: Annotated[Path, tyro.conf.Positional],
    /,
    split: Literal["validation", "test"] = "validation",
    count: int = 500,
    features: str = "efficientnet-lite0",
    weights: Path | None = None,
    seed: int = 0,
    guidance: float | None = None,
    part: Literal["both", "scale", "shift"] | None = None,
    temperature: float | None = None,
    denoise: float | None = None,
) -> int:
    """Score held-out images (bits per dimension) and samples (KID, FID, precision and recall).

    FID means Inception features; with any other extractor the distance is called FD.

    Args:
        checkpoint: model.safetensors of a run.
        split: of the data that the run names.
        count: images to draw; 0 scores likelihood only.
        features: efficientnet-lite0 (offline) or inception.
        weights: file of Inception weights, if they are not to be downloaded.
        seed: of the samples' noise.
        guidance: weight of the guided extrapolation; 0 is off.
        part: what guidance acts on.
        temperature: attention temperature of the unguided branch.
        denoise: multiplier of the denoising step; 0 is off.
    """
    from rich.table import Table

    from tarflow import likelihood
    from tarflow.checkpoint import load_model
    from tarflow.features import find_extractor
    from tarflow.run import evaluate_samples

    flow, config = load_model(checkpoint)
    sampler = _sampler(config.sampler, guidance, part, temperature, denoise)
    wanted = replace(config.evaluation, split=split, samples=count, features=features)
    config = replace(config, sampler=sampler, evaluation=wanted)
    extractor = find_extractor(features, weights) if count else None
    scores = likelihood.evaluate(flow, config).columns()
    if extractor:
        (drawn,) = evaluate_samples(flow, config, extractor, None, seed)
        scores |= {key: value for key, value in drawn.items() if value is not None}
    table = Table("measure", "value", title=f"{checkpoint} on {config.data.name}/{split}")
    for name, value in scores.items():
        table.add_row(name, f"{value:.5g}" if isinstance(value, float) else str(value))
    _print(table)
    return 0


def cost(config: Annotated[Path, tyro.conf.Positional], /) -> int:
    """Say what a run costs before it is run: parameters, FLOPs, memory, hours and money.

    Args:
        config: a config file, such as best.yaml of a study.
    """
    from rich.table import Table

    chosen = read_yaml(RunConfig, config)
    memory, flops = costs.memory(chosen), costs.run_flops(chosen)
    rough = 6.0 * costs.params(chosen.model) * chosen.images * chosen.model.tokens
    print(
        f"{costs.params_total(chosen.model):,} parameters, of them {costs.params(chosen.model):,} "
        f"in matrix products\n{chosen.images:,} images, {flops:.3g} training FLOPs "
        f"(6 N tokens: {rough:.3g})"
        f"\n{memory.total / 1e9:.2f} GB a worker: {memory.state / 1e9:.2f} of state, "
        f"{memory.activations / 1e9:.2f} of activations"
    )
    precision = "float32" if chosen.precision in ("float32", "float64") else "bfloat16"
    table = Table("device", "fits", "device-hours", "US dollars")
    table.title = f"in {precision} at 40% of the data sheet's peak, list prices"
    for name, device in costs.ACCELERATORS.items():
        hours = flops / (0.4 * device.flops[precision]) / 3600
        fits = "yes" if memory.total < device.memory else "no"
        table.add_row(name, fits, f"{hours:.3g}", f"{hours * device.price:.3g}")
    _print(table)
    return 0


def data(
    source: Annotated[str, tyro.conf.Positional],
    target: Annotated[Path, tyro.conf.Positional],
    /,
    kind: Literal["folder", "npz", "cifar", "hub"] = "folder",
    size: int = 64,
    grey: bool = False,
) -> int:
    """Import images into the one format that training reads: Parquet, the Hugging Face way.

    Example: python -m tarflow data photos data/photos --size 64

    Args:
        source: class folders; ImageNet64's npz batches; CIFAR's unpacked folder; or, for hub, the
            name of a Hugging Face data set.
        target: folder to make; its path is then the name of the data in a config.
        kind: of the source.
        size: pixels along one side after resizing and cutting (folder and hub).
        grey: make grey images (folder and hub).
    """
    from tarflow import imports

    if kind == "folder":
        counts = imports.import_folder(Path(source), target, size, grey)
    elif kind == "npz":
        counts = imports.import_npz(Path(source), target)
    elif kind == "cifar":
        counts = imports.import_cifar(Path(source), target)
    else:
        counts = imports.import_hub(source, target, size, grey)
    print(f"{target}: " + ", ".join(f"{count:,} {split}" for split, count in counts.items()))
    return 0


def _sampler(
    sampler: SamplerConfig,
    guidance: float | None,
    part: Literal["both", "scale", "shift"] | None,
    temperature: float | None,
    denoise: float | None,
) -> SamplerConfig:
    """Return the run's sampler with what was asked for in its place."""
    return SamplerConfig(
        guidance=sampler.guidance if guidance is None else guidance,
        part=sampler.part if part is None else part,
        annealed=sampler.annealed,
        temperature=sampler.temperature if temperature is None else temperature,
        denoise=sampler.denoise if denoise is None else denoise,
    )


def _print(table: Any) -> None:
    from rich.console import Console

    Console().print(table)


COMMANDS: dict[str, Callable[..., int]] = {
    "train": train,
    "sample": sample,
    "evaluate": evaluate,
    "cost": cost,
    "data": data,
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; a user's mistake is one line and exit code 2."""
    try:
        code: int = tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="python -m tarflow",
            description="Train, sample and score one TarFlow; studies of many are in sweeps/.",
            args=arguments,
        )
        return code
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
