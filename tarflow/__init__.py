"""TarFlow: a Transformer autoregressive normalizing flow for images, and one run of it.

Importing this package imports neither torch nor Ray, so that plans, help and configuration stay
instant; the names below are loaded when they are first used.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "config": (
        "DataConfig",
        "EvaluationConfig",
        "ExecutionConfig",
        "ModelConfig",
        "NoiseConfig",
        "OptimConfig",
        "RunConfig",
        "SamplerConfig",
    ),
    "errors": ("ConfigError", "UserError"),
    "model.flow": ("TarFlow",),
    "model.weights": ("load_model", "save_model"),
}
_MODULES = {name: f"tarflow.{module}" for module, names in _HOMES.items() for name in names}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'tarflow' has no attribute '{name}'")
    return getattr(import_module(_MODULES[name]), name)
