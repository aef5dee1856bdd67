"""Make a study folder from a planted law, to test the report on.

No run is trained: BPD follows `E + A / N^a + B / D^b`, with repeated images at their worth and a
little seed noise. Everything else (curves, per-image values, sample grids, sample quality) is
derived from it.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from PIL.PngImagePlugin import PngInfo
from written_forecasts import written

from analysis.laws.repetition import effective_tokens
from tarflow import config as c
from tarflow import cost, identity, record
from tarflow.config_files import to_dict, to_yaml
from tarflow.forecasts import write_forecast
from tarflow.model_config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Law:
    """The planted truth, in bits per dimension over parameters N and tokens D."""

    E: float = 1.42
    A: float = 30.0
    a: float = 0.40
    B: float = 46.0
    b: float = 0.40

    def __call__(self, params: float, tokens: float, unique: float = float("inf")) -> float:
        worth = float(effective_tokens(tokens, unique))
        return float(self.E + self.A * params**-self.a + self.B * worth**-self.b)


UNIQUE = 4000  # images of the training set
CHANNELS = (16, 32, 48, 64, 80, 96)
BUDGETS = (1.5e11, 5e11, 1.5e12)
LARGEST = (80, 6e12)  # channels and FLOPs of the run that is held out
EXTRACTOR = "efficientnet-lite0"
IMAGES_PER_SET = 200  # validation images with a stored BPD


def run_config(channels: int, flops: float, **changes: Any) -> c.RunConfig:
    """Return a resolved config that costs about `flops`."""
    model = ModelConfig(channels=channels, head_dim=16, layers=changes.pop("layers", 2))
    noise = c.NoiseConfig(std=changes.pop("noise_std", 0.2))
    optim = c.OptimConfig(lr=changes.pop("lr", 3e-3), warmup_images=256)
    images = c.round_images(flops / cost.training_flops(model), 32)
    config = c.RunConfig(
        model=model,
        noise=noise,
        optim=optim,
        images=images,
        batch=32,
        precision="float32",
        **changes,
    )
    return identity.with_hash(config, "5eed" * 4)


def plant(
    folder: Path,
    *,
    law: Law | None = None,
    seed: int = 0,
    search: int = 0,
    limit: int | None = None,
) -> Path:
    """Write a study: an IsoFLOP grid with three seeds at one size, a failed run, a larger run.

    Args:
        folder: Folder to write to.
        law: The planted truth.
        seed: Seed of everything random.
        search: Number of runs with role `search` to add, each sampled at several settings.
        limit: Number of runs of the grid to write, without anything else; all by default.
    """
    law, rng = law or Law(), np.random.default_rng(seed)
    grid = [run_config(channels, budget) for budget in BUDGETS for channels in CHANNELS]
    if limit is not None:
        grid = grid[:limit]
    else:
        grid += [run_config(48, BUDGETS[1], seed=number) for number in (1, 2)]
        grid.append(run_config(*LARGEST))
    for config in grid:
        _run(folder, config, "grid", law, rng)
    if limit is None:
        _failed(folder, run_config(96, 2e11, seed=9))
    for _ in range(search):
        config = run_config(
            int(rng.choice(CHANNELS)),
            2e11,
            layers=int(rng.integers(1, 4)),
            lr=float(10 ** rng.uniform(-3.3, -2)),
            noise_std=round(float(10 ** rng.uniform(-1, -0.3)), 3),
        )
        _run(folder, config, "search", law, rng)
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    record.gather(folder)
    reference = {"kid": 0.004, "kid_se": 0.003, "n": 500, "feature_extractor": EXTRACTOR}
    record.write_json(folder / "reference.json", reference)
    record.write_json(
        folder / "outcome.json",
        {"wall_seconds": 300.0, "device_seconds": 540.0, "devices": 2, "device": "core"},
    )
    if limit is None:
        final = run_config(80, 2.4e13)
        forecast = written(
            *(1.52, 1.5, 1.54),
            run_id=identity.run_id(final),
            config=json.dumps(to_dict(final)),
            flops=cost.run_flops(final),
            law="E + A / N^a + B / D^b",
            achieved=1.53,
            achieved_se=0.01,
            test_bpd=1.56,
            test_se=0.01,
            shift=0.03,
        )
        write_forecast(folder, forecast)
    (folder / "study.yaml").write_text(yaml.safe_dump({"name": "digits", "seed": seed}))
    return folder


def _run(folder: Path, config: c.RunConfig, role: str, law: Law, rng: np.random.Generator) -> None:
    row = run_row(config, role)
    home = folder / "runs" / row["run_id"]
    if home.exists():
        return
    tuned = 0.03 * np.log10(config.optim.lr / 3e-3) ** 2
    tuned += 0.5 * np.log10(config.noise.std / 0.25) ** 2
    bpd = (
        law(row["params"], row["tokens"], UNIQUE * config.model.tokens)
        + tuned
        + 0.003 * rng.standard_normal()
    )
    images = _images(bpd)
    seconds = row["flops"] / 2e10
    row |= {
        "status": "done",
        "wall_seconds": seconds + 3.1,
        "train_seconds": seconds,
        "evaluate_seconds": 3.1,
        "device_seconds": seconds + 3.1,
        "mfu": 0.62,
        "bpd": bpd,
        "bpd_se": float(np.std(images) / np.sqrt(len(images))),
        "bpd_median": float(np.median(images)),
        "bpd_p99": float(np.quantile(images, 0.99)),
        "bpd_max": float(np.max(images)),
        "bpd_leave_one_out": float(np.abs(images - np.mean(images)).max() / (len(images) - 1)),
        "loss": _loss(bpd),
        "train_loss": _loss(bpd - 0.01),
    }
    evaluations = _evaluations(row, role, rng)
    record.write_text(home / "config.yaml", to_yaml(config))
    record.write_table(home / "curve.parquet", _curve(config, law, row, rng), record.CURVE)
    record.write_table(
        home / "images.parquet",
        [
            {"index": index, "label": index % 10, "bpd": value, "loss": _loss(value)}
            for index, value in enumerate(images)
        ],
        record.IMAGES,
    )
    _samples(home / "samples.png", bpd, rng)
    record.write_json(home / "result.json", {"run": row, "evaluations": evaluations})


def _failed(folder: Path, config: c.RunConfig) -> None:
    row = run_row(config, "grid") | {"status": "failed", "error": "loss is not finite in block 3"}
    home = folder / "runs" / row["run_id"]
    record.write_text(home / "config.yaml", to_yaml(config))
    record.write_text(home / "error.txt", str(row["error"]))
    record.write_json(home / "result.json", {"run": row, "evaluations": []})


def run_row(config: c.RunConfig, role: str) -> dict[str, Any]:
    """Return the row of a run that has not been trained: everything its config tells."""
    model, tokens = config.model, config.images * config.model.tokens
    flops = cost.run_flops(config)
    return {
        "run_id": identity.run_id(config),
        "label": f"c{model.channels}-b{model.blocks}-l{model.layers} {flops:.1e} s{config.seed}",
        "role": role,
        "config": json.dumps(to_dict(config)),
        "data": config.data.name,
        "data_hash": config.data.hash,
        "classes": model.classes,
        "patch": model.patch,
        "channels": model.channels,
        "blocks": model.blocks,
        "layers": model.layers,
        "head_dim": model.head_dim,
        "lr": config.optim.lr,
        "batch": config.batch,
        "noise_type": config.noise.type,
        "noise_std": config.noise.std,
        "precision": config.precision,
        "schedule": config.optim.schedule,
        "seed": config.seed,
        "params": cost.params(model),
        "params_total": cost.params_total(model),
        "images": config.images,
        "unique_images": min(UNIQUE, config.images),
        "epochs": config.images / UNIQUE,
        "tokens": tokens,
        "flops": flops,
        "flops_marginal": flops,
        "bpd_kind": "bound",
        "split": "validation",
        "started": "2026-01-02T03:04:05Z",
        "numerics_version": config.numerics_version,
        "versions": json.dumps({"python": "3.11.9", "torch": "2.14.0", "tarflow": "0.1.0"}),
        "git": "0123456789ab",
        "host": "laptop",
    }


def _loss(bpd: float) -> float:
    """A raw loss that moves with BPD: nats per dimension without the Gaussian constant."""
    return float(bpd * np.log(2) - 2.1)


def _images(bpd: float) -> np.ndarray:
    """Per-image BPD with mean `bpd`; the hard images are the same ones in every run."""
    hardness = np.random.default_rng(7).gamma(9.0, 1 / 9.0, IMAGES_PER_SET)
    return np.asarray(bpd * hardness / hardness.mean())


def _curve(
    config: c.RunConfig, law: Law, row: dict[str, Any], rng: np.random.Generator
) -> list[dict[str, Any]]:
    images = np.unique(np.geomspace(256, config.images, 60).astype(int) // 32 * 32)
    per_image = cost.training_flops(config.model)
    rows = []
    for seen in images:
        stable = min(1.0, (config.images - seen) / (0.2 * config.images))
        tokens = config.model.tokens
        bpd = law(row["params"], seen * tokens, UNIQUE * tokens) + 0.03 * stable
        rows.append(
            {
                "images": int(seen),
                "flops": float(per_image * seen),
                "loss": _loss(bpd) + 0.004 * float(rng.standard_normal()),
                "lr": config.optim.lr * stable,
                "grad_norm": 0.5,
                "seconds": float(per_image * seen / 2e10),
            }
        )
    return rows


def _evaluations(row: dict[str, Any], role: str, rng: np.random.Generator) -> list[dict[str, Any]]:
    settings = [(0.0, 1.0, 1.0, "all")]
    if role == "search":
        settings += [
            (guidance, temperature, denoise, half)
            for guidance in (0.0, 1.0, 2.0, 3.0)
            for temperature in (0.9, 1.0, 1.1)
            for denoise in (0.8, 1.0)
            for half in ("chosen", "scored")
        ]
    rows = []
    for guidance, temperature, denoise, half in settings:
        kid = 0.05 + 0.4 * (row["bpd"] - 1.5) + 0.01 * (guidance - 1.5) ** 2
        kid += 0.8 * (temperature - 0.97) ** 2 + 0.02 * (denoise - 1) ** 2
        rows.append(
            {
                "run_id": row["run_id"],
                "guidance": guidance,
                "part": "both",
                "annealed": True,
                "rule": "log-scale",
                "guided_blocks": "all",
                "temperature": temperature,
                "denoise": denoise,
                "solver": "sequential",
                "seed": 0,
                "half": half,
                "n": 500,
                "n_reference": 500,
                "reference": "digits/validation",
                "feature_extractor": EXTRACTOR,
                "kid": kid + 0.004 * float(rng.standard_normal()),
                "kid_se": 0.004,
                "seconds_per_image": 0.01,
                "redrawn": 0,
                "lost": 0,
            }
        )
    return rows


def _samples(path: Path, bpd: float, rng: np.random.Generator) -> None:
    """Draw a grid of printed digits, noisier for a worse model."""
    side, cells, gap = 28, 8, 2
    sheet = Image.new("L", (cells * (side + gap) + gap, cells * (side + gap) + gap))
    font = ImageFont.load_default(24)
    for cell in range(cells * cells):
        tile = Image.new("L", (side, side))
        ImageDraw.Draw(tile).text((8, -1), str(cell % 10), fill=255, font=font)
        row, column = divmod(cell, cells)
        at = gap + column * (side + gap), gap + row * (side + gap)
        sheet.paste(tile.rotate(float(rng.normal(0, 12))), at)
    pixels = np.asarray(sheet.filter(ImageFilter.GaussianBlur(0.6)), dtype=float)
    pixels = pixels + rng.normal(0, 120 * max(0.0, bpd - 1.5), pixels.shape)
    written = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    text = PngInfo()
    text.add_text("scale", "3")
    written.resize((3 * written.width, 3 * written.height), Image.Resampling.NEAREST).save(
        path, pnginfo=text
    )
