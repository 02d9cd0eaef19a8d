"""The images that docker/ builds on: each pinned by the digest of its index, which a registry can move no tag under."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Mapping

from tests.supply.locked import DOCKER

FILES = (DOCKER / "Dockerfile", DOCKER / "compose.yaml")
_IMAGE = re.compile(r"^(?P<before>FROM |\s+image: )(?P<image>[\w./-]+:[\w.-]+)(?P<digest>@sha256:[0-9a-f]{64})?", re.M)
_OWN = "millstream:"


class RegistryError(RuntimeError):
    """A registry could not be asked."""


def images(text: str) -> Mapping[str, str]:
    """Digest by image, "" for one that has none; our own, which is built, is left out."""
    found = ((match["image"], match["digest"] or "") for match in _IMAGE.finditer(text))
    return {image: digest.removeprefix("@") for image, digest in found if not image.startswith(_OWN)}


def pinned(text: str, digests: Mapping[str, str]) -> str:
    """The text with these digests behind their images."""

    def replaced(match: re.Match[str]) -> str:
        digest = digests.get(match["image"])
        return match[0] if digest is None else f"{match['before']}{match['image']}@{digest}"

    return _IMAGE.sub(replaced, text)


def pin_all() -> Mapping[str, str]:
    """Ask the registries for the digest behind each tag and write them. Raises RegistryError."""
    texts = {path: path.read_text() for path in FILES}
    digests = {image: digest_of(image) for text in texts.values() for image in images(text)}
    for path, text in texts.items():
        path.write_text(pinned(text, digests))
    return digests


def digest_of(image: str) -> str:
    """What a tag is now, by skopeo or docker buildx. Raises RegistryError."""
    if shutil.which("skopeo"):
        return _asked(["skopeo", "inspect", "--format", "{{.Digest}}", f"docker://{_full_name(image)}"])
    command = ["docker", "buildx", "imagetools", "inspect", image, "--format", "{{json .Manifest}}"]
    return str(json.loads(_asked(command))["digest"])


def _full_name(image: str) -> str:
    return image if "/" in image else f"docker.io/library/{image}"


def _asked(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        why = (getattr(error, "stderr", "") or str(error)).strip()
        raise RegistryError(
            f"{' '.join(command)} failed ({why[:300]}): no digest was changed. Run it where the registry answers."
        ) from error
    return done.stdout.strip()
