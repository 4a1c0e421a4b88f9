"""`python -m kuberay_standin --kubeconfig F`: runs until SIGTERM, with `tests` on PYTHONPATH."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import traceback
from pathlib import Path

from kuberay_standin.machines import Play
from kuberay_standin.world import World


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="kuberay_standin", description=sys.modules["kuberay_standin"].__doc__)
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("--namespace", default="", help="the only namespace to look at; default: all")
    parser.add_argument("--script", type=Path, help="JSON file with rules (script.py); may appear and change later")
    parser.add_argument("--pace", type=float, default=1.0, help="factor on every wait of KubeRay, Ray and kubelet")
    machines = parser.add_mutually_exclusive_group()
    machines.add_argument("--run-entrypoints", action="store_true", help="run entry points and batch Jobs as processes")
    machines.add_argument("--real-pods", action="store_true", help="kubelets run the pods: play nothing but KubeRay")
    parser.add_argument(
        "--directory", type=Path, help="where processes keep volumes and logs; default: a temporary one"
    )
    parser.add_argument("--node", default="kuberay-standin", help="name of the Node it plays")
    options = parser.parse_args()
    stopping = False

    def stop(number: int, frame: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    with tempfile.TemporaryDirectory(prefix="kuberay-standin-") as temporary:
        directory = (options.directory or Path(temporary)).resolve()
        directory.mkdir(parents=True, exist_ok=True)
        play = None if options.real_pods else Play(directory, options.run_entrypoints, options.node)
        world = World(
            options.kubeconfig, namespace=options.namespace, script=options.script, scale=options.pace, play=play
        )
        world.start()
        print("ready", flush=True)
        try:
            while not stopping:
                try:
                    world.tick()
                except Exception:  # a pass that failed is logged and the next one tries again, as a controller does
                    traceback.print_exc()
        finally:
            world.stop()


main()
