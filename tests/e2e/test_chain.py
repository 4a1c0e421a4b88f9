"""The chain from rows to an evaluated PPO policy in pods, as a user with the role `edit` sees it from outside.

Every stage is a Job in a namespace that enforces Pod Security `restricted`; data and results lie on a claim. The user
applies a file, follows it with `camel-ray status -w` and `camel-ray logs -f`, and looks with kubectl now and then.
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from rig.control_plane import ControlPlane
from rig.pipelines import Object, Pipelines, pipeline
from rig.release import NAMESPACE, Release
from rig.training import CONFIG, ENVIRONMENT

WORDS = {
    "data": "210 rows to train on, 30 held out",
    "tokenizer": "tokens in the vocabulary",
    "pretrain": "perplexity 3",
    "sft": "perplexity 3",
    "reward": "right on 100 % of held-out pairs",
    "ppo": "KL",
    "evaluate": "perplexity",
}
"""The stages' kinds, and what `status` says of them in the end."""
KINDS = list(WORDS)
# Enough steps for some seconds: while they last, figures have to come to the status.
TRAINING = {"zero": 2, "batchSize": 8, "microBatchSize": 8, "maxLength": 32, "steps": 400, "logEverySteps": 1}
QUESTIONS, PAIRS = {"source": "/data/questions.jsonl"}, {"source": "/data/pairs.jsonl", "validation": 0.1}
PPO_STEPS = 16
STAGES: list[Object] = [
    {"name": "text", "data": {"source": "/data/text.jsonl", "validation": 0.1}},
    {"name": "words", "tokenizer": {"data": "text", "vocabSize": 320}},
    {"name": "base", "pretrain": {**TRAINING, "data": "text", "model": {"config": CONFIG}}},
    {"name": "chat", "sft": {**TRAINING, "data": QUESTIONS}},
    {"name": "judge", "reward": {**TRAINING, "data": PAIRS}},
    {
        "name": "tuned",
        "ppo": {
            "model": "chat",
            "prompts": PAIRS,
            "reward": {"model": "judge"},
            "steps": PPO_STEPS,
            "promptsPerStep": 16,
            "sampling": {"maxPromptLength": 32, "maxResponseLength": 24},
        },
    },
    {
        "name": "report",
        "evaluate": {
            "model": "tuned",
            "baseline": "chat",
            "data": PAIRS,
            "text": "text",
            "rewardModel": "judge",
            "maxLength": 64,
            "maxResponseLength": 24,
        },
    },
]


@pytest.fixture
def user(plane: ControlPlane, cluster: Release, namespace: str) -> Path:
    """The kubeconfig of somebody with the role `edit` in the namespace, and no other."""
    config = plane.service_account(namespace, "somebody")
    grant = ("create", "rolebinding", "somebody", "--clusterrole=edit", f"--serviceaccount={namespace}:somebody")
    plane.kubectl("-n", namespace, *grant)
    return config


class CommandLine:
    """`camel-ray` in processes of its own, as that user."""

    def __init__(self, kubeconfig: Path, namespace: str, directory: Path) -> None:
        self._options = ("--kubeconfig", str(kubeconfig), "-n", namespace)
        self._directory = directory
        self._running: dict[str, tuple[subprocess.Popen[bytes], Path]] = {}

    def start(self, *arguments: str) -> Callable[[], str]:
        """Start a command; what is returned waits for its end, which has to be a good one, and gives its output."""
        out, err = (self._directory / f"{len(self._running)}.{kind}" for kind in ("out", "err"))
        command = [sys.executable, "-m", "camel_ray", *arguments, *self._options]
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = subprocess.Popen(command, stdout=stdout, stderr=stderr)
        self._running[" ".join(arguments)] = (process, err)

        def result() -> str:
            code = process.wait(180)
            assert code == 0, f"{arguments} ended with {code}: {err.read_text()}\n{out.read_text()[-3000:]}"
            return out.read_text()

        return result

    def kill(self) -> None:
        """End what still runs."""
        for process, _ in self._running.values():
            if process.poll() is None:
                process.kill()
                process.wait()


@pytest.fixture
def camel_ray(user: Path, namespace: str, tmp_path: Path) -> Iterator[CommandLine]:
    directory = tmp_path / "commands"
    directory.mkdir()
    commands = CommandLine(user, namespace, directory)
    yield commands
    commands.kill()


def write_rows(directory: Path) -> None:
    """Sums: short texts, questions with answers, and pairs of a right and a wrong answer."""
    sums = [(a, b) for a in range(20) for b in range(12)]
    rows: dict[str, list[Object]] = {
        "text": [{"text": f"{a} camels and {b} rays are {a + b} animals"} for a, b in sums],
        "questions": [{"prompt": f"What is {a} + {b}?", "completion": f"It is {a + b}."} for a, b in sums],
        "pairs": [
            {"prompt": f"What is {a} + {b}?", "chosen": f"It is {a + b}.", "rejected": f"{a} rays, no camels"}
            for a, b in sums
        ],
    }
    for name, lines in rows.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (directory / f"{name}.jsonl").write_text(text, encoding="utf-8")


def chain() -> Object:
    resources = {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"memory": "3Gi"}}
    manifest = pipeline(
        "chain",
        *STAGES,
        storage="/data/storage",
        cluster={
            "head": {"resources": resources},
            "env": [{"name": name, "value": value} for name, value in ENVIRONMENT.items()],
            "volumes": [{"mountPath": "/data", "claim": "data"}],
        },
    )
    del manifest["spec"]["cluster"]["image"]  # the one the operator is told to use
    return manifest


def operator_counts(plane: ControlPlane) -> dict[tuple[str, ...], float]:
    """What the operator's pods have counted so far: attempts by kind and outcome, and reports by HTTP status."""
    counted: dict[tuple[str, ...], float] = {}
    for pod in plane.request("GET", f"/api/v1/namespaces/{NAMESPACE}/pods")["items"]:
        with urllib.request.urlopen(f"http://{pod['status']['podIP']}:8080/metrics", timeout=10) as answer:
            families = text_string_to_metric_families(answer.read().decode())
        for sample in (sample for family in families for sample in family.samples):
            labels = sample.labels
            if sample.name == "camel_ray_attempts_total":
                key: tuple[str, ...] = ("attempt", labels["kind"], labels["outcome"])
            elif sample.name == "camel_ray_progress_reports_total":
                key = ("report", labels["code"])
            else:
                continue
            counted[key] = counted.get(key, 0) + sample.value
    return counted


def test_a_user_sees_a_chain_from_rows_to_an_evaluated_policy_through(
    pipelines: Pipelines,
    plane: ControlPlane,
    user: Path,
    camel_ray: CommandLine,
    volume: Callable[[str], Path],
) -> None:
    directory = volume("data")
    write_rows(directory)
    before = operator_counts(plane)
    # aggregation into the role `edit` is done by a controller, a moment after the chart made its roles
    as_user = ("-n", pipelines.namespace)
    plane.wait_for(lambda: plane.kubectl(*as_user, "get", "camel", "-o", "name", kubeconfig=user) == "", "the role")
    plane.kubectl(*as_user, "apply", "-f", "-", input=json.dumps(chain()), kubeconfig=user)
    followed = [
        camel_ray.start("status", "chain", "-w"),
        camel_ray.start("status", "chain", "-w", "--json"),
        camel_ray.start("logs", "chain", "-f"),
    ]

    pipelines.wait_stage("chain", "base", "Running", seconds=1200)
    while_it_runs = plane.kubectl(*as_user, "get", "camel", kubeconfig=user).splitlines()
    status = pipelines.wait_phase("chain", "Succeeded", seconds=1800)
    told, states, log = (result() for result in followed)

    assert [stage["kind"] for stage in status["stages"]] == KINDS
    assert [(stage["attempts"], stage["result"]["code"]) for stage in status["stages"]] == [(1, 0)] * len(KINDS)
    check_columns(while_it_runs, ["chain", "Running", "base"])
    check_columns(plane.kubectl(*as_user, "get", "camel", kubeconfig=user).splitlines(), ["chain", "Succeeded"])
    check_lines(told.splitlines())
    check_figures([json.loads(line) for line in states.splitlines()], directory / "storage/chain/stages")
    check_log(log)
    check_pods(pipelines)
    check_storage(directory / "storage/chain", status)
    grown = {key: count - before.get(key, 0) for key, count in operator_counts(plane).items()}
    assert {kind: grown[("attempt", kind, "Succeeded")] for kind in KINDS} == dict.fromkeys(KINDS, 1)
    assert grown[("report", "200")] >= 2 * len(KINDS), "each pod tells something, and its end"


def check_columns(lines: Sequence[str], row: Sequence[str]) -> None:
    assert lines[0].split()[:5] == ["NAME", "PHASE", "STAGE", "PROGRESS", "ATTEMPTS"]
    assert len(lines) == 2 and lines[1].split()[: len(row)] == row


def check_lines(told: Sequence[str]) -> None:
    """`status -w`: each stage started and ended, in order, with figures at the ends."""
    ends = [line for line in told if " Succeeded: " in line and line.startswith("[")]
    wanted = [
        (f"[{number}/{len(STAGES)}] {stage['name']} ({kind}) Succeeded", words)
        for number, (stage, (kind, words)) in enumerate(zip(STAGES, WORDS.items(), strict=True), 1)
    ]
    for line, (start, words) in zip(ends, wanted, strict=True):
        assert line.startswith(f"{start}: ") and words in line
    assert told[-1] == f"chain Succeeded: all {len(STAGES)} stages are done"


def check_figures(states: Sequence[Object], stages: Path) -> None:
    """What was in the status while the stages ran: figures that they had told until then, and the newest of them."""
    running: dict[str, list[Object]] = {}
    for state in states:
        for stage in state["stages"]:
            now, told = stage.get("current"), stage.get("progress")
            if stage["phase"] == "Running" and now and told and told["attempt"] == now["number"]:
                running.setdefault(stage["name"], []).append(told)
    for name, task, figures in (
        ("base", "train", ["loss"]),
        ("chat", "train", ["loss"]),
        ("judge", "train", ["loss", "accuracy"]),
        ("tuned", "ppo", ["reward", "kl"]),
    ):
        events = [json.loads(line) for line in (stages / name / "progress.jsonl").read_text().splitlines()]
        steps = {e["done"]: e["metrics"] for e in events if e.get("task") == task and e.get("metrics")}
        seen = [told for told in running[name] if told["task"] == task]
        assert any(told["done"] for told in seen), (name, running[name])
        assert [told["done"] for told in seen] == sorted(told["done"] for told in seen), (name, running[name])
        for told in seen:
            if not told["done"]:
                continue  # before the first step there are no figures of it
            share = 100 * told["done"] // told["total"]
            assert {f: told["metrics"][f] for f in figures} == {f: steps[told["done"]][f] for f in figures}
            assert told["percentage"] == share


def check_log(log: str) -> None:
    """`logs -f`: every attempt from its first line to its result, one after the other, each once."""
    lines = [line.partition(" ")[2] for line in log.splitlines()]
    first = [f"attempt 1 of stage {stage['name']}, pipeline chain" for stage in STAGES]
    last = [f"stage '{stage['name']}' is done" for stage in STAGES]
    marks = [line for line in lines if line in {*first, *last}]
    assert marks == [mark for pair in zip(first, last, strict=True) for mark in pair]


def check_pods(pipelines: Pipelines) -> None:
    pods = pipelines.list("pods", "chain")
    assert [pod["status"]["phase"] for pod in pods] == ["Succeeded"] * len(STAGES)
    namespace = pipelines.plane.request("GET", f"/api/v1/namespaces/{pipelines.namespace}")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for pod in pods:
        (container,) = pod["spec"]["containers"]
        assert container["securityContext"]["readOnlyRootFilesystem"] and pod["spec"]["securityContext"]["runAsNonRoot"]


def check_storage(directory: Path, status: Object) -> None:
    """The artifacts of the status lie on the claim, and the run has taught something."""

    def metrics(artifact: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((directory / "stages" / artifact / "manifest.json").read_text())["metrics"]
        return found

    for stage in status["stages"]:
        for artifact in stage["result"]["artifacts"]:
            manifest = directory / "stages" / stage["name"] / artifact["kind"] / "manifest.json"
            assert json.loads(manifest.read_text())["digest"] == artifact["digest"]
    base = metrics("base/model")
    assert base["perplexity"] < base["perplexity_untrained"] / 5
    assert metrics("judge/reward-model")["accuracy"] == 1, "sums against camels without rays"
    report = metrics("report/report")
    assert 1 < report["perplexity"] < base["perplexity_untrained"] and 0 <= report["win_rate"] <= 1
    page = (directory / "report.html").read_text(encoding="utf-8")
    assert all(stage["name"] in page for stage in STAGES)
