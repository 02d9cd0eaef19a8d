"""An upgrade under traffic: the programs of an older commit run first, then one after another those of this tree."""

from __future__ import annotations

import asyncio
import subprocess
import tarfile
from pathlib import Path

from tests.chaos.cluster import Cluster
from tests.chaos.program import ROOT, Program
from tests.chaos.progress import say

_BEFORE_S, _BETWEEN_S = 20.0, 8.0  # of traffic


class UpgradeError(RuntimeError):
    """There is nothing to upgrade from."""


def export(commit: str, folder: Path) -> str:
    """Put the tree of a commit of this repository into a folder; what the commit is called.

    Raises UpgradeError.
    """
    subject = _git("log", "-1", "--format=%h %s", commit, "--")
    archive = folder.with_suffix(".tar")
    archive.parent.mkdir(parents=True, exist_ok=True)
    _git("archive", "--format=tar", f"--output={archive}", commit)
    with tarfile.open(archive) as tree:
        tree.extractall(folder, filter=_no_links)  # noqa: S202 - our own commit, and the filter keeps it in the folder
    archive.unlink()
    return subject


def _no_links(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
    """Links that were committed by mistake lead out of the tree; no program needs one."""
    return None if member.issym() or member.islnk() else tarfile.data_filter(member, folder)


def _git(*arguments: str) -> str:
    try:
        run = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
    except FileNotFoundError as error:
        raise UpgradeError(
            "no git on the PATH: an older commit cannot be read, so nothing can be upgraded from. Install git."
        ) from error
    if run.returncode:
        raise UpgradeError(
            f"git {' '.join(arguments)} in {ROOT} failed: {run.stderr.strip()}. There is nothing to upgrade from. Give "
            "a commit of a clone that holds it."
        )
    return run.stdout.strip()


class Rolling:
    """Ends each program in good order and starts it from this tree, workers first, while traffic goes on."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def unleash(self) -> None:
        """Roll one after another; each is killed once among those that are old still, which then take over from it."""
        await asyncio.sleep(_BEFORE_S)
        for program in [*self._cluster.workers, self._cluster.serving]:
            program.roll(ROOT)
            await self._until_back(program, 1)
            say(f"{program.name} rolled")
            await asyncio.sleep(_BETWEEN_S)
            program.kill()
            await self._until_back(program, 2)
            say(f"{program.name} killed and back")
            await asyncio.sleep(_BETWEEN_S)

    async def _until_back(self, program: Program, ends: int) -> None:
        while program.ends.total() < ends:
            await asyncio.sleep(0.1)
        await self._cluster.until_ready()
