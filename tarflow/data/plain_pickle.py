"""Read the pickles of CIFAR without running the code that a forged file may name."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tarflow.errors import UserError


def read_plain_pickle(path: Path) -> dict[bytes, Any]:
    """Read a dictionary of plain values and uint8 arrays from a pickle of Python 2.

    Raises:
        UserError: If the file cannot be read or holds anything else.
    """
    try:
        with path.open("rb") as handle:
            loaded = _PlainUnpickler(handle, encoding="bytes").load()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(f"{path} is not a CIFAR batch: {error}") from None
    if not isinstance(loaded, dict):
        raise UserError(f"{path} is not a CIFAR batch")
    return loaded


class _PlainUnpickler(pickle.Unpickler):
    """Refuses every global except the three that rebuild a uint8 array."""

    def find_class(self, module: str, name: str) -> Any:
        """Return a harmless stand-in for the global, or refuse."""
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _ALLOWED[module, name]


def _empty_array(*_: object) -> NDArray[np.uint8]:
    """Stand in for numpy's function: the state that follows sets shape, type and bytes."""
    return np.empty(0, np.uint8)


def _byte_type(code: bytes, *_: object) -> np.dtype[np.uint8]:
    if code != b"u1":
        raise pickle.UnpicklingError(f"it holds an array of type {code!r}")
    return np.dtype(np.uint8, copy=True)


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy", "ndarray"): None,  # named only as an argument of the first
    ("numpy", "dtype"): _byte_type,
}
