"""Saved states as files: their names, which are there, and their removal; without torch."""

import contextlib
from pathlib import Path


def name_of(images: int) -> str:
    """Return the name of the files of a state, which sorts by images."""
    return f"{images:015d}"


def saved_images(folder: Path) -> list[int]:
    """Return after how many images the states of a folder were saved, fewest first."""
    return sorted(int(path.stem) for path in folder.glob("*.json"))


def remove_state(folder: Path, images: int) -> None:
    """Remove a state, if it is there."""
    for suffix in (".json", ".safetensors"):
        (folder / name_of(images)).with_suffix(suffix).unlink(missing_ok=True)


def remove_states(folder: Path) -> None:
    """Remove a folder of states, if it is there."""
    with contextlib.suppress(OSError):
        for path in folder.glob("*"):
            path.unlink(missing_ok=True)
        folder.rmdir()
