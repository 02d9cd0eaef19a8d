"""How often keys that have no row yet were sighted: a counting sketch in two generations.

G. Cormode, S. Muthukrishnan, "An Improved Data Stream Summary: The Count-Min Sketch and its Applications", Journal of
Algorithms 2005, with conservative update (Estan and Varghese 2002) and four cells a key in one array of 8-bit counters
that saturate.

A generation takes ``rotate_after`` sightings; then the older of the two is forgotten and starts empty. So any number of
ids can pass in fixed memory. Within a generation no sighting is ever lost; what is older than two is never known.

**False admission.** A cell holds other keys' sightings, at most 2 · rotate_after · 4 / cells = 1/2 of one on
average, Poisson. A key is admitted at its first sighting only when all four of its cells hold admit_after − 1 of them:
with probability ≤ 2.4 % for admit_after = 2, 7e-5 for 3, and less under conservative update (measured in the tests).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MOST_SIGHTINGS = 255
"""Where a counter saturates, and so the largest ``admit_after``."""
_CELLS_PER_SIGHTING = 16


def cells(sketch_bytes: int, admit_after: int) -> NDArray[np.uint8]:
    """The empty cells of a sketch, (2 generations, a power of two of cells); none where the first sighting admits."""
    return np.zeros((2, sketch_bytes // 2 if admit_after > 1 else 0), np.uint8)


def rotate_after(sketch_bytes: int) -> int:
    """Sightings that one generation takes."""
    return sketch_bytes // 2 // _CELLS_PER_SIGHTING
