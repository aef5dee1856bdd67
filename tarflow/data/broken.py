"""Images that cannot be used: refused all at once, so that one run names them all, or left out."""

from dataclasses import dataclass, field

from tarflow import human
from tarflow.errors import UserError


@dataclass
class Broken:
    """Collects what is wrong with single images while the others are read."""

    skip: bool = False  # leave them out instead of refusing them
    reasons: list[str] = field(default_factory=list)  # one for each broken image, naming it

    def check(self, total: int) -> None:
        """Refuse the broken images of `total`, unless they may be left out and some are usable.

        Raises:
            UserError: If they are refused; names them.
        """
        count = len(self.reasons)
        if count and not (self.skip and count < total):
            raise UserError(
                f"cannot use {count:,} of {total:,} images: {human.names(self.reasons, '; ')}; "
                "repair or remove them, or leave them out with --skip-broken"
            )

    @property
    def notes(self) -> list[str]:
        """A line on the images that were left out, if any."""
        if not self.reasons:
            return []
        return [f"left out ({len(self.reasons):,}): {human.names(self.reasons, '; ')}"]
