"""Choose the images that show what a table holds: some of each class, in order.

Legend: `N` images, `C` colour channels, `S` pixels along one side.
"""

import numpy as np
from numpy.typing import NDArray

from tarflow.data.tables import Table

ROWS, COLUMNS = 12, 10


def preview(table: Table) -> NDArray[np.uint8]:
    """Return the first images of the first classes, `COLUMNS` of each, (N, C, S, S).

    Training images come first. A class with fewer is filled up with white. Without labels, the
    first images of the table are returned.
    """
    ordered = np.argsort(table.codes, kind="stable")
    if table.classes:
        labels = table.labels[ordered]
        rows = [ordered[labels == label][:COLUMNS] for label in range(min(table.classes, ROWS))]
    else:
        shown = ordered[: ROWS * COLUMNS]
        rows = [shown[start : start + COLUMNS] for start in range(0, len(shown), COLUMNS)]
    wanted = np.zeros(len(ordered), bool)
    wanted[np.concatenate(rows)] = True
    images = dict(zip(np.flatnonzero(wanted), table.images(wanted), strict=True))
    white = np.full(table.shape, 255, np.uint8)
    filled = [[images[row] for row in line] + [white] * (COLUMNS - len(line)) for line in rows]
    return np.stack([image for line in filled for image in line])
