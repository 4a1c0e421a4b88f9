"""The images that tests/e2e runs, built from the project's own Dockerfile on a machine without any registry.

    archive = build("operator")     # a docker-archive for Node.import_image; built again only after a change

The base, `python:3.11-slim`, is a Debian of this machine's release with its own Python, made by mmdebstrap; it is made
once. buildah needs root but no daemon. The trainer's image is the Dockerfile's with the heavy dependencies left out:
its PATH leads to the environment of this machine, which rig/node.py mounts into containers.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from camel_ray.version import __version__
from rig.node import PAUSE_IMAGE, python_environment
from rig.process import CACHE, RigError, find_tools

ROOT = Path(__file__).parents[2]
OPERATOR = f"registry.local/camel-ray/operator:{__version__}"
TRAINER = f"registry.local/camel-ray/trainer:{__version__}"
_STORE = CACHE / "images"
_BASE = "localhost/python:3.11-slim"
_LABEL = "rig.recipe"
_MOST_LAYERS = 200
"""Images and cached layers kept; each change of code adds a few."""
_CERTIFICATES = Path("/etc/ssl/certs")
_PACKAGES = (
    *("python3", "python3-venv", "ca-certificates"),
    # what a Python that was built elsewhere is linked against: that of this machine's environment
    *(
        "libssl3",
        "libffi8",
        "libbz2-1.0",
        "liblzma5",
        "libsqlite3-0",
        "libreadline8",
        "libncursesw6",
        "zlib1g",
        "libuuid1",
    ),
)
_WITHOUT = ("doc", "locale", "man", "info")
_HOOKS = (
    'rm -rf "$1"/usr/lib/python3.*/EXTERNALLY-MANAGED "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*.bin',
    'ln -sf python3 "$1/usr/bin/python"',
    'chmod 755 "$1/root"',  # below it may lie the Python that is mounted, and pods do not run as root
)
_BASE_RECIPE = (
    *("mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(_PACKAGES)}"),
    *(f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in _WITHOUT),
    *(f"--customize-hook={hook}" for hook in _HOOKS),
)
_SOURCES = ("Dockerfile", ".dockerignore", "LICENSE", "README.md", "constraints.txt", "pyproject.toml")


def build(image: str) -> Path:
    """The archive of `operator`, `trainer` or `pause`. Raises RigError with what the tool said if that fails."""
    makers: dict[str, tuple[str, Callable[[str], None]]] = {
        "operator": (OPERATOR, lambda tag: _build_target("operator", tag)),
        "trainer": (TRAINER, _build_trainer),
        "pause": (PAUSE_IMAGE, _build_pause),
    }
    tag, make = makers[image]
    archive = _STORE / f"{image}-{_key(image)}.tar"
    if not archive.exists():
        _STORE.mkdir(parents=True, exist_ok=True)
        make(tag)
        partial = archive.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        _buildah("push", "--quiet", tag, f"docker-archive:{partial}:{tag}")
        for old in _STORE.glob(f"{image}-*.tar"):
            old.unlink()
        partial.rename(archive)
        if len(_buildah("images", "--all", "--quiet").splitlines()) > _MOST_LAYERS:
            _buildah("rmi", "--prune", "--force")
    return archive


def inspect(tag: str) -> dict[str, Any]:
    """The configuration of an image that was built, as Docker names it."""
    configuration: dict[str, Any] = json.loads(_buildah("inspect", "--type=image", tag))["Docker"]["config"]
    return configuration


@functools.cache
def _key(image: str) -> str:
    """Hash of everything that decides the content of an image."""
    digest = hashlib.sha256(_base_key().encode() + __version__.encode() + Path(__file__).read_bytes())
    if image == "pause":
        digest.update(find_tools("pause")["pause"].read_bytes())
    else:
        code = sorted((ROOT / "camel_ray").rglob("*"))
        for file in (*(ROOT / name for name in _SOURCES), *code):
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(f"{file.relative_to(ROOT)}\0".encode() + file.read_bytes())
    if image == "trainer":
        digest.update("\0".join(map(str, python_environment())).encode())
    return digest.hexdigest()[:16]


def _base_key() -> str:
    return hashlib.sha256("\0".join((_release(), *_BASE_RECIPE)).encode()).hexdigest()[:16]


def _release() -> str:
    return platform.freedesktop_os_release()["VERSION_CODENAME"]


def _build_base() -> None:
    found = _buildah("images", "--quiet", "--filter", f"label={_LABEL}={_base_key()}", _BASE, check=False)
    if found.strip():
        return
    archive = _STORE / "base.tar"
    archive.unlink(missing_ok=True)
    _run([*_BASE_RECIPE, _release(), str(archive)])
    with _Container("scratch") as container:
        _buildah("add", "--quiet", container, str(archive), "/")
        _buildah("config", "--cmd", "python3", "--label", f"{_LABEL}={_base_key()}", container)
        _buildah("commit", "--quiet", container, _BASE)
    archive.unlink()


def _build_target(target: str, tag: str, *arguments: str) -> None:
    _build_base()
    index = os.environ.get("PIP_INDEX_URL", "")
    _buildah(
        *("build", "--layers", "--pull-never", "--network=host", "--format=docker"),  # docker: with the health check
        *(f"--volume={_CERTIFICATES}:{_CERTIFICATES}:ro", f"--build-arg=PIP_INDEX_URL={index}"),
        *(f"--build-arg=VERSION={__version__}", f"--target={target}", f"--tag={tag}"),
        *arguments,
        str(ROOT),
    )


def _build_trainer(tag: str) -> None:
    _build_target("trainer", tag, "--build-arg=BASE=python:3.11-slim", "--build-arg=DEPENDENCIES=none")
    environment, _ = python_environment()
    with _Container(tag) as container:
        own = _buildah("run", container, "--", "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
        path = f"{environment}/bin:/opt/camel-ray/bin:/usr/local/bin:/usr/bin:/bin"
        _buildah("config", f"--env=PATH={path}", f"--env=PYTHONPATH={own.strip()}", container)
        _buildah("commit", "--quiet", "--format=docker", container, tag)


def _build_pause(tag: str) -> None:
    with _Container("scratch") as container:
        _buildah("copy", "--quiet", container, str(find_tools("pause")["pause"]), "/pause")
        _buildah("config", "--entrypoint", '["/pause"]', container)
        _buildah("commit", "--quiet", container, tag)


class _Container:
    """A working container of buildah for the length of a `with`."""

    def __init__(self, image: str) -> None:
        self._image = image

    def __enter__(self) -> str:
        self._name = _buildah("from", "--pull-never", self._image).strip()
        return self._name

    def __exit__(self, *_: object) -> None:
        _buildah("rm", self._name)


def _buildah(*arguments: str, check: bool = True) -> str:
    store = ("--root", f"{_STORE}/buildah", "--runroot", f"{_STORE}/buildah-run", "--storage-driver", "overlay")
    return _run(["buildah", *store, *arguments], check=check)


def _run(command: Sequence[str], *, check: bool = True) -> str:
    environment = {**os.environ, "BUILDAH_ISOLATION": "chroot"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode and check:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-30:])
        raise RigError(f"{' '.join(command)} failed:\n{tail}")
    return done.stdout
