"""A thin virtual environment with TRL 1.12.0, the last release with PPO.

It holds TRL alone and sees the packages of the environment the benchmark runs in, so both sides use the same torch and
transformers. It is kept in the user's cache directory.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

RELEASE = "1.12.0"


class NoTrl(Exception):
    """TRL's release cannot be installed here."""


def trl_python() -> Path:
    """The interpreter of the environment, which is made on first use. Raises NoTrl if that fails, e.g. offline."""
    packages = sysconfig.get_paths()["purelib"]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    key = hashlib.sha256(f"{packages} {sys.version}".encode()).hexdigest()[:12]
    directory = cache / "camel-ray" / f"bench-trl-{RELEASE}-{key}"
    python = directory / "bin" / "python"
    if (directory / "complete").exists():
        return python
    shutil.rmtree(directory, ignore_errors=True)
    venv.create(directory, with_pip=False, symlinks=True)
    own = next((directory / "lib").glob("python*/site-packages"))
    # Its own site-packages come first, so this TRL hides the other one. `addsitedir` also follows the .pth files there.
    (own / "benchmark.pth").write_text(f"import site; site.addsitedir({packages!r})\n")
    _install(own)
    (directory / "complete").touch()
    return python


def _install(target: Path) -> None:
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    tool = [uv, "pip", "install", "--python", sys.executable] if uv else [sys.executable, "-m", "pip", "install"]
    command = [*tool, "--no-deps", "--target", str(target), f"trl=={RELEASE}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip() or "no output").splitlines()[-1]
        raise NoTrl(f"TRL {RELEASE} could not be installed ({last})")
