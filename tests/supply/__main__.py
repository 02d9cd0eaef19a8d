"""`make audit`, `make lock`, `make sbom`, `make pin-images`: the supply chain of the image.

The tools are in an environment of their own (docker/supply-tools.txt), whose programs are found beside ``--tools``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from tests.supply.images import RegistryError, pin_all
from tests.supply.locked import CONSTRAINTS, DOCKER, LOCK, ROOT, TORCH_LOCK, image_packages

VULNERABLE, NO_DATABASE = 1, 3
_SBOM = ROOT / "build" / "sbom.json"
_SERVICES = ("pypi", "osv")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Tools = Annotated[Path, typer.Option(help="Folder of the tools' programs.")]


@app.command()
def audit(tools: Tools = Path(".venv-supply/bin")) -> None:
    """Look for known vulnerabilities in what is in the image. Exit 1: some; 3: no database could be reached."""
    wanted = set(image_packages())
    for service in _SERVICES:
        found = _audited(tools, service)
        if found is None or len(unknown := unaudited(found)) == len(wanted):
            typer.echo(f"{service}: the vulnerability database could not be reached", err=True)
            continue
        for one in vulnerabilities(found):
            typer.echo(one)
        for name in unknown:
            typer.echo(f"{name}: not in the database of {service}", err=True)
        typer.echo(f"{len(wanted) - len(unknown)} of {len(wanted)} packages audited by {service}")
        raise typer.Exit(VULNERABLE if vulnerabilities(found) else 0)
    typer.echo(
        f"nothing was audited: none of {', '.join(_SERVICES)} answers. Run it where one can be reached.", err=True
    )
    raise typer.Exit(NO_DATABASE)


def vulnerabilities(found: dict[str, Any]) -> list[str]:
    """A line for each, of pip-audit's JSON."""
    return [
        f"{one['name']} {one['version']}: {fault['id']}, mended in {', '.join(fault['fix_versions']) or 'no release'}"
        for one in found["dependencies"]
        for fault in one.get("vulns", ())
    ]


def unaudited(found: dict[str, Any]) -> list[str]:
    """Names of packages that the database did not know."""
    return [one["name"] for one in found["dependencies"] if "skip_reason" in one]


def _audited(tools: Path, service: str) -> dict[str, Any] | None:
    pins = "".join(f"{name}=={one.version.partition('+')[0]}\n" for name, one in image_packages().items())
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(pins)
        file.flush()
        command = [str(tools / "pip-audit"), "-r", file.name, "--no-deps", "--disable-pip", "-s", service]
        done = subprocess.run(
            [*command, "-f", "json", "--timeout", "15", "--progress-spinner", "off"], capture_output=True, check=False
        )
    try:
        return dict(json.loads(done.stdout))
    except ValueError:
        return None


@app.command()
def lock(tools: Tools = Path(".venv-supply/bin")) -> None:
    """Write docker/requirements.lock: the dependencies at the constraints' versions, with the hashes of all files."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as no_torch:
        no_torch.write('torch ; python_version < "3"\n')  # its CUDA build is never looked at
        no_torch.flush()
        _run(
            tools / "uv", "pip", "compile", ROOT / "pyproject.toml", DOCKER / "lock.in", "-c", CONSTRAINTS,
            "--override", no_torch.name, "--python-version", "3.12", "--python-platform", "x86_64-manylinux_2_28",
            "--generate-hashes", "--no-annotate", "--no-header", "--quiet", "--output-file", LOCK,
        )  # fmt: skip
    LOCK.write_text("# Written by make lock. The CPU build of torch is in torch.lock.\n" + LOCK.read_text())


@app.command()
def sbom(tools: Tools = Path(".venv-supply/bin")) -> None:
    """Write build/sbom.json: the image's packages with their hashes, as CycloneDX."""
    _SBOM.parent.mkdir(exist_ok=True)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as both:
        both.write(LOCK.read_text() + TORCH_LOCK.read_text())
        both.flush()
        _run(
            tools / "cyclonedx-py", "requirements", both.name, "--pyproject", ROOT / "pyproject.toml",
            "--output-reproducible", "--output-format", "JSON", "--validate", "--output-file", _SBOM,
        )  # fmt: skip
    listed = {one["name"].lower().replace("_", "-") for one in json.loads(_SBOM.read_bytes())["components"]}
    if missing := sorted(set(image_packages()) - listed):
        typer.echo(f"{_SBOM} lacks {', '.join(missing)}: it is not what the image holds.", err=True)
        raise typer.Exit(1)
    typer.echo(f"{_SBOM.relative_to(ROOT)}: {len(listed)} components")


@app.command(name="pin-images")
def pin_images() -> None:
    """Pin the images in docker/ to what their tags are now; needs skopeo or docker, and the registries."""
    try:
        for image, digest in pin_all().items():
            typer.echo(f"{image}@{digest}")
    except RegistryError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from error


def _run(*command: object) -> None:
    done = subprocess.run([*map(str, command)], check=False)
    if done.returncode:
        raise typer.Exit(done.returncode)


if __name__ == "__main__":
    sys.exit(app())
