"""The training loop: one step, its state on disk, and what runs share.

Calling the package, `tarflow.train(config)`, trains a run: see `tarflow.train_model`.
"""

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    """A module that users call by the name that its files are imported by."""

    def __call__(self, *args: Any, **settings: Any) -> Any:
        import tarflow

        return tarflow.train_model(*args, **settings)


sys.modules[__name__].__class__ = _Callable
