"""Find the image files under a folder, and say which files were passed over."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tarflow.data import codec
from tarflow.errors import UserError

_ARCHIVER_FOLDER = "__MACOSX"  # resource forks that macOS adds to a zip file


@dataclass(frozen=True)
class ImageFiles:
    """The image files under a folder, in order, and the number of others by ending."""

    paths: list[Path] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)

    def describe_skipped(self) -> str:
        """Return what was passed over, such as "2 hidden, 3 .gif", or "" if nothing was."""
        return ", ".join(f"{count:,} {kind}" for kind, count in self.skipped.most_common())


def find_images(folder: Path) -> ImageFiles:
    """Find the image files under a folder, following links.

    Hidden files and folders, and files with other endings, are counted instead.

    Raises:
        UserError: If a folder cannot be read, or a link leads nowhere or to a folder around it.
    """
    images, dangling = ImageFiles(), []
    for path in _walk(folder, (folder.resolve(),), images.skipped):
        if path.suffix.lower() in codec.SUFFIXES:
            images.paths.append(path)
        elif path.is_symlink() and not path.exists():
            dangling.append(path)
        else:
            images.skipped[path.suffix.lower() or "without ending"] += 1
    if dangling:
        raise UserError(
            f"these links lead nowhere: {', '.join(map(str, dangling))}; repair or remove them"
        )
    images.paths.sort()
    return images


def _walk(folder: Path, around: tuple[Path, ...], skipped: Counter[str]) -> Iterator[Path]:
    """Yield the visible files under a folder; `around` are it and the folders that led to it."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror}") from None
    for entry in entries:
        if entry.name.startswith(".") or entry.name == _ARCHIVER_FOLDER:
            skipped["hidden"] += 1
        elif not entry.is_dir():
            yield entry
        elif (real := entry.resolve()) in around:
            raise UserError(f"{entry} is a link to a folder that contains it; remove it")
        else:
            yield from _walk(entry, (*around, real), skipped)
