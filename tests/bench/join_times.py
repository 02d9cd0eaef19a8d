"""Times of the join's log, apart from what makes it: the peers' environment lacks most of what the project needs."""

HORIZON_MS = 60_000
"""A click comes by then after its display."""

LEAD_MS = 5_000
"""By which a display may teach ahead of the slowest topic."""

LINGER_MS = 1_000
"""After which a record is sent although it is not full."""
