"""TarFlow: a Transformer autoregressive normalizing flow for images, and one run of it.

Importing this package imports neither torch nor Ray, so that plans, help and configuration stay
instant; the names below are loaded when they are first used.

>>> import tarflow
>>> model = tarflow.load("runs/5cd1e4c810")  # or tarflow.train("best.yaml")  # doctest: +SKIP
>>> model.sample(16, guidance=1)  # doctest: +SKIP
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "config": (
        "DataConfig",
        "EvaluationConfig",
        "ExecutionConfig",
        "NoiseConfig",
        "OptimConfig",
        "RunConfig",
        "SamplerConfig",
    ),
    "model_config": ("ModelConfig",),
    "errors": ("ConfigError", "UserError"),
    "loaded": ("Model", "load", "train_model"),
    "publish": ("release",),
    "model.flow": ("TarFlow",),
    "model.weights": ("load_model", "save_model"),
}
_MODULES = {name: f"tarflow.{module}" for module, names in _HOMES.items() for name in names}
__all__ = sorted([*_MODULES, "train"])


def __getattr__(name: str) -> Any:
    if name == "train":
        return import_module("tarflow.train")  # a package that can be called
    if name not in _MODULES:
        raise AttributeError(f"module 'tarflow' has no attribute '{name}'")
    return getattr(import_module(_MODULES[name]), name)
