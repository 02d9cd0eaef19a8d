"""Every pure target by its name."""

from __future__ import annotations

from tests.fuzz import bodies, files, internal, records, stores

TARGETS = {
    target.name: target
    for target in (*records.TARGETS, *internal.TARGETS, *stores.TARGETS, *files.TARGETS, *bodies.TARGETS)
}
