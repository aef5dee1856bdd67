"""Kernels for training on CPUs: the C++ of `native`, compiled on the machine that runs it."""

import ctypes
import hashlib
import logging
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tarflow.device import processor
from tarflow.storage import cache_folder

LOG = logging.getLogger("tarflow")
SOURCES = sorted(Path(__file__).with_name("native").iterdir())
FLAGS = "-std=c++17 -O3 -march=native -fopenmp -fno-math-errno -fno-trapping-math -shared -fPIC"
DEFINES = {torch.float32: [], torch.bfloat16: ["-DBFLOAT16"]}
_POINTER, _COUNT, _THREADS = ctypes.c_void_p, ctypes.c_long, ctypes.c_int
SIGNATURES: dict[str, list[Any]] = {
    "add_norm": [_POINTER] * 9 + [_COUNT] * 2,
    "delta_backward": [_POINTER] * 3 + [_COUNT] * 2,
    "norm_backward": [_POINTER] * 13 + [_COUNT] * 2,
    "gelu": [_POINTER] * 3 + [_COUNT] * 2,
    "gelu_backward": [_POINTER] * 3 + [_COUNT] * 2,
    "attend": [_POINTER] * 4 + [_COUNT] * 4,
    "attend_backward": [_POINTER] * 7 + [_COUNT] * 4,
    "affine": [_POINTER] * 4 + [_COUNT] * 4,
    "affine_backward": [_POINTER] * 6 + [_COUNT] * 4,
    "gradient_norm": [_POINTER, _COUNT, _POINTER],
    "adamw": [_POINTER, _COUNT] + [ctypes.c_double] * 8,
}


class Parameter(ctypes.Structure):
    """Addresses of the float32 values of a parameter, and its factors."""

    _fields_ = [
        ("weight", _POINTER),
        ("gradient", _POINTER),
        ("mean", _POINTER),
        ("square", _POINTER),
        ("average", _POINTER),
        ("count", _COUNT),
        ("factor", ctypes.c_double),
        ("decay", ctypes.c_float),
    ]


class Kernels:
    """The functions of one library; they take contiguous tensors, arrays, `None` and numbers."""

    def __init__(self, library: Path) -> None:
        """Load a library.

        Raises:
            OSError: If it cannot be loaded, or the system denies it the matrix units.
        """
        share_threads()
        loaded = ctypes.CDLL(str(library))
        if not loaded.usable():
            raise OSError("the system does not let this process use the matrix units")
        for name, kinds in SIGNATURES.items():
            function = getattr(loaded, name)
            function.argtypes, function.restype = [*kinds, _THREADS], None
            setattr(self, name, self._by_pointers(function))

    def __getattr__(self, name: str) -> Callable[..., None]:
        raise AttributeError(f"there is no function {name}")

    @staticmethod
    def _by_pointers(function: Any) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            values = [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]
            function(*values, torch.get_num_threads())

        return call


@cache
def kernels(dtype: torch.dtype) -> Kernels | None:
    """Return the kernels for activations of a type, compiling them if necessary.

    Returns:
        None if there are none for this type, or this machine has no `g++`; the one of macOS is
        another compiler, without OpenMP.
    """
    compiler = shutil.which("g++") if sys.platform == "linux" else None
    if dtype not in DEFINES or not compiler:
        return None
    try:
        return Kernels(build(compiler, dtype))
    except (OSError, subprocess.CalledProcessError) as error:
        lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        LOG.warning("layers run without compiled kernels, which is slower: %s", lines[0])
        return None


def build(compiler: str, dtype: torch.dtype) -> Path:
    """Compile the source for a type and this machine's processor, unless the cache holds it.

    Returns:
        The library in the cache folder. Several processes may build at once.

    Raises:
        OSError: If the cache folder cannot be written.
        subprocess.CalledProcessError: If the compiler fails.
    """
    command = [compiler, *FLAGS.split(), *DEFINES[dtype]]
    instructions = processor("flags", "Features")  # a home folder may serve several processors
    if "avx512f" in instructions:
        command.append("-mprefer-vector-width=512")  # by default GCC uses half of a register
    ingredients = [*(source.read_text() for source in SOURCES), *command, instructions]
    name = hashlib.sha256("\0".join(ingredients).encode()).hexdigest()[:16]
    library = cache_folder() / "kernels" / f"{name}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            built = Path(folder) / library.name
            command += [str(source) for source in SOURCES if source.suffix == ".cpp"]
            command += ["-o", str(built)]
            subprocess.run(command, check=True, capture_output=True, text=True)
            built.replace(library)
    return library


@cache
def share_threads() -> None:
    """Let libraries that are loaded later use PyTorch's OpenMP runtime.

    The threads of a second one would compete for the same cores. PyTorch ships its own, often
    under another name.
    """
    loaded = Path("/proc/self/maps").read_text().split()
    runtimes = [path for path in loaded if re.match(r"lib(gomp|iomp5)\b", Path(path).name)]
    if runtimes:
        ctypes.CDLL(runtimes[0], mode=ctypes.RTLD_GLOBAL)
