"""Which versions a store holds, and which of them need not stay."""

from __future__ import annotations

from learners.snapshots.manifest import Manifest, SnapshotError, folder_of, read_manifest, version_of
from learners.snapshots.store import Store

_DAY_MS = 86_400_000


def stored_versions(store: Store) -> list[int]:
    """Newest first, whole or torn."""
    found = (version_of(name) for name in store.folders())
    return sorted((version for version in found if version is not None), reverse=True)


def superfluous(store: Store, watermark_ms: int, version: int, keep: int, keep_days: int) -> list[int]:
    """The versions to drop: neither among the newest, nor a day's newest or its base. Torn ones are no day's.

    Days count back from that of the snapshot just written, which these two are of: no other one, whatever time it
    claims, has any dropped.
    """
    stored = stored_versions(store)
    manifests = {v: manifest for v in stored if (manifest := manifest_or_none(store, v)) is not None}
    days = {v: manifest.watermark_ms // _DAY_MS for v, manifest in manifests.items()}
    newest_of_day = {day: v for v, day in sorted(days.items())}
    first_day = watermark_ms // _DAY_MS - keep_days + 1
    stays = {v for day, v in newest_of_day.items() if day >= first_day}
    stays |= {v for v, one in manifests.items() if one.created_from == "base" and days[v] >= first_day}
    stays.add(version)
    return [v for v in stored[keep:] if v not in stays]


def manifest_or_none(store: Store, version: int) -> Manifest | None:
    """The manifest of a stored version; None where it is torn, unsound or of another format."""
    try:
        return read_manifest(store.url(folder_of(version)))
    except SnapshotError:
        return None
