"""The operator's process: `python -m camel_ray.operator.main`.

    reads its options -> watches -> serves metrics, health and progress -> leads when it holds the lease -> reconciles

Every replica watches and serves progress; one leads. A replica that loses the lease ends its process, because another
may lead already.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import signal
import socket
import sys
import threading
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from urllib.parse import urlsplit

from camel_ray.errors import SpecError
from camel_ray.operator import logs
from camel_ray.operator.caches import Caches
from camel_ray.operator.certificates import hosts_of
from camel_ray.operator.controller import Controller
from camel_ray.operator.kinds import CAMEL_PIPELINE
from camel_ray.operator.kube.client import Client
from camel_ray.operator.kube.config import Config, ConfigError, from_kubeconfig, in_cluster
from camel_ray.operator.kube.events import EventRecorder
from camel_ray.operator.kube.lease import LeaderElection, LeaseLost
from camel_ray.operator.kube.queue import WorkQueue
from camel_ray.operator.metrics import Metrics, MetricsServer
from camel_ray.operator.model import Settings
from camel_ray.operator.names import MANAGER
from camel_ray.operator.progress_server import ProgressServer, reviewer
from camel_ray.operator.progress_tls import (
    CertificateError,
    CertificateSecret,
    ProgressTls,
    authority_file,
    certificate_files,
)
from camel_ray.operator.reload import ConfigFile
from camel_ray.version import __version__

log = logging.getLogger("camel_ray.operator")

LEASE = "camel-ray-operator"
"""The Lease, where `--lease-name` says nothing."""
SILENT_SECONDS = 400.0
"""A watch says something every minute, that of events every five; after a longer silence it is dead, and a new process
may do better."""
STUCK_SECONDS = 600.0


def arguments(given: Sequence[str]) -> argparse.Namespace:
    """The options of the process."""
    parser = argparse.ArgumentParser(prog="camel-ray-operator", description=__doc__.splitlines()[0])
    parser.add_argument("--kubeconfig", help="kubeconfig file; default: the pod's service account")
    parser.add_argument("--namespace", help="namespace of the operator itself, for its lease; default: the pod's")
    parser.add_argument("--config", type=Path, help="file: stage defaults, policy; read again when it changes")
    parser.add_argument("--watch-namespace", action="append", default=[], help="only this namespace; repeatable")
    parser.add_argument(
        "--lease-name",
        default=LEASE,
        help="Lease of all replicas that watch the same; default: %(default)s",
    )
    parser.add_argument("--identity", default="", help="name of this replica; default: host name and a random part")
    parser.add_argument("--workers", type=int, default=16, help="reconciles at once")
    parser.add_argument("--metrics-port", type=int, default=8080, help="/metrics, /healthz, /readyz; 0: any free port")
    parser.add_argument("--progress-port", type=int, default=8443, help="progress server; 0: any free port")
    parser.add_argument("--progress-url", default="", help="URL of the progress server as pods reach it; empty: none")
    parser.add_argument("--progress-certificate", type=Path, help="PEM file; with --progress-key: serve TLS")
    parser.add_argument("--progress-key", type=Path, help="PEM file of the certificate's key")
    parser.add_argument("--progress-ca", type=Path, help="PEM file with the authority that pods should trust")
    parser.add_argument(
        "--progress-tls-secret", default="", help="Secret of the operator's namespace; it keeps own certificates there"
    )
    parser.add_argument("--stop-seconds", type=float, default=Settings.stop_seconds, help="time for a last checkpoint")
    parser.add_argument("--silent-seconds", type=float, default=Settings.silent_seconds, help="wait for a submission")
    parser.add_argument("--log-format", choices=("text", "json"), default="json")
    parser.add_argument("--log-level", default="INFO")
    parser.add_argument("--version", action="version", version=__version__)
    options = parser.parse_args(given)
    if bool(options.progress_certificate) != bool(options.progress_key):
        parser.error("--progress-certificate and --progress-key belong together; give both or none")
    if options.progress_tls_secret and not options.progress_url.startswith("https://"):
        parser.error("--progress-tls-secret: the certificate is for the host of --progress-url; give https://... there")
    if options.progress_tls_secret and (options.progress_certificate or options.progress_ca):
        parser.error("--progress-tls-secret makes its own certificates; leave out --progress-certificate, -key and -ca")
    if options.progress_url and not options.progress_url.startswith(("http://", "https://")):
        parser.error(f"--progress-url: '{options.progress_url}' is no address of a web service; write http(s)://...")
    return options


def main(given: Sequence[str] | None = None) -> int:
    """Run until a signal ends it; returns the exit code."""
    options = arguments(sys.argv[1:] if given is None else given)
    logs.set_up(options.log_format, level=options.log_level)
    try:
        file = ConfigFile(options.config)
    except SpecError as error:
        for problem in error.problems:
            log.error("%s", problem)
        return 1
    try:
        config = from_kubeconfig(options.kubeconfig) if options.kubeconfig else in_cluster()
    except (OSError, ConfigError) as error:
        log.error("no cluster to talk to: %s", error)
        return 1
    try:
        operator = Operator(options, config, file)
    except (OSError, CertificateError) as error:  # a port that is taken, a certificate that is none
        log.error("cannot serve: %s", error)
        return 1
    return operator.run()


class Operator:
    """All parts of one replica."""

    def __init__(self, options: argparse.Namespace, config: Config, file: ConfigFile) -> None:
        self._identity = options.identity or f"{socket.gethostname()}-{uuid.uuid4().hex[:6]}"
        self._metrics = Metrics(workers=options.workers)
        observe = self._metrics.request_observer(urlsplit(config.server).netloc)
        self._client = Client(config, manager=MANAGER, observe=observe)
        self._queue = WorkQueue(metrics=self._metrics.queue)
        self._caches = Caches(self._client, options.watch_namespace or [None], self._queue.add)
        self._recorder = EventRecorder(self._client, controller="camel-ray", instance=self._identity)
        self._stop = threading.Event()
        namespace = options.namespace or config.namespace
        self._lease = options.lease_name
        self._election = LeaderElection(self._client, name=self._lease, namespace=namespace, identity=self._identity)
        self._tls = self._choose_tls(options, namespace)
        self._file = file
        settings = self._settings(options)
        self._controller = Controller(
            self._client,
            self._caches,
            self._queue,
            self._recorder,
            self._metrics,
            lambda: dataclasses.replace(settings, config=file.config, progress_ca=self._tls.bundle()),
            leads=lambda: self._election.is_leader,
            workers=options.workers,
        )
        self._metrics.queue.read_with(depth=self._queue.__len__, longest=self._queue.longest_work_seconds)
        self._metrics.count_pipelines_with(self._caches.phases)
        self._metrics.read_ages_with(self._ages)
        if self._tls.serving is not None:
            self._metrics.read_certificate_expiry_with(self._tls.seconds_left)
        self._metrics_server = MetricsServer(
            self._metrics, port=options.metrics_port, healthy=self._unhealthy, ready=self._unready
        )
        self._progress = ProgressServer(
            options.progress_port,
            review=reviewer(self._client),
            find=self._caches.pipeline,
            pods=self._caches.pods.store.get,
            write=self._write_progress,
            tls=self._tls.serving,
            count=self._metrics.progress_report,
            now=self._client.clock.now,
        )

    def run(self) -> int:
        """Watch, lead, reconcile; returns the exit code: 0 after a signal, 1 after the lease was lost."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._asked_to_end)
        self._tls.start()
        self._caches.start()
        self._file.follow(self._caches.look_at_all)
        ports = f"metrics on port {self._metrics_server.port}, progress on port {self._progress.port}"
        log.info("camel-ray %s, %s, as %s", __version__, ports, self._identity)
        led = threading.Event()
        election = threading.Thread(target=self._elect, args=(led,), name="election", daemon=True)
        election.start()
        while election.is_alive() and not self._stop.wait(0.2):
            pass
        lost = not self._stop.is_set()
        if lost:
            log.error("the lease was lost; this replica ends, so that it cannot write beside the new leader")
            os._exit(1)
        self._queue.shut_down()
        if led.is_set():
            self._controller.join()
        self._election.stop()
        election.join(timeout=15.0)  # gives the lease back, so that the next one leads at once
        self._file.close()
        self._progress.close()
        self._tls.close()
        self._caches.stop()
        self._recorder.close()
        self._metrics_server.close()
        self._client.close()
        log.info("ended")
        return 0

    def _elect(self, led: threading.Event) -> None:
        # Who leads without having seen everything decides on nothing, and starts no pods that cannot trust anybody.
        while not self._caches.synced or self._tls.missing():
            if self._stop.wait(0.05):
                return

        def lead(stop: threading.Event) -> None:
            log.info("leads")
            self._metrics.leads(self._lease, True)
            led.set()
            self._controller.start()
            stop.wait()

        try:
            self._election.run(lead)
        except LeaseLost as error:
            log.error("%s", error)  # `run` sees that this thread has ended

    def _asked_to_end(self, number: int, frame: FrameType | None) -> None:
        self._stop.set()

    def _choose_tls(self, options: argparse.Namespace, namespace: str) -> ProgressTls:
        if options.progress_tls_secret:
            hosts = hosts_of(options.progress_url)
            secret = CertificateSecret(self._client, name=options.progress_tls_secret, namespace=namespace, hosts=hosts)
            return ProgressTls(secret.serving, secret.bundle, secret)
        brought = bool(options.progress_certificate)
        return ProgressTls(
            certificate_files(options.progress_certificate, options.progress_key) if brought else None,
            authority_file(options.progress_ca) if options.progress_ca else str,
        )

    def _settings(self, options: argparse.Namespace) -> Settings:
        return Settings(
            progress_url=options.progress_url,
            stop_seconds=options.stop_seconds,
            silent_seconds=options.silent_seconds,
        )

    def _write_progress(self, namespace: str, pipeline: str, patch: list[dict[str, object]]) -> None:
        written = self._client.patch(CAMEL_PIPELINE, pipeline, namespace, patch, subresource="status")
        self._caches.put(written)

    def _ages(self) -> dict[str, float]:
        return {name: reflector.age_seconds() for name, reflector in self._caches.reflectors.items()}

    def _unhealthy(self) -> str:
        silent = {name: age for name, age in self._ages().items() if age > SILENT_SECONDS}
        if silent:
            return f"the watch of {min(silent)} has been silent for {max(silent.values()):.0f} s"
        longest = self._queue.longest_work_seconds()
        return f"a reconcile has been running for {longest:.0f} s" if longest > STUCK_SECONDS else ""

    def _unready(self) -> str:
        return self._caches.missing() or self._tls.missing()


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    sys.exit(code)
