"""The callback that Hugging Face's trainers bring along reports to our progress server without code of ours."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import KubeflowCallback

from camel_ray.operator import progress_server
from camel_ray.operator.names import attempt_labels
from camel_ray.operator.progress_server import Identity, ProgressServer


def test_a_plain_trainers_progress_reaches_the_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_server, "_REPORT_SECONDS", 0.0)
    patches: list[list[dict[str, Any]]] = []
    written = threading.Event()

    def write(namespace: str, pipeline: str, patch: list[dict[str, Any]]) -> None:
        patches.append(patch)
        if len(patches) == 1:
            written.set()

    current = {"number": 1, "name": "llm-base-1", "executor": "Job", "created": "2026-11-23T07:00:00Z"}
    status = {"stages": [{"name": "base", "kind": "sft", "phase": "Running", "current": current}]}
    server = ProgressServer(
        0,
        review=lambda token: Identity("team", "pod") if token == "secret" else None,
        find=lambda namespace, name: {"status": status},
        pods=lambda namespace, name: {"metadata": {"labels": attempt_labels("llm", "base", 1)}},
        write=write,
        host="127.0.0.1",
    )
    (tmp_path / "token").write_text("secret")
    url = f"http://127.0.0.1:{server.port}/v1/namespaces/team/pipelines/llm/stages/base/attempts/1"
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_URL", url)
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_TOKEN", str(tmp_path / "token"))
    callback = KubeflowCallback()
    callback._MIN_UPDATE_INTERVAL = 0.0
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    state, control = TrainerState(max_steps=10, is_world_process_zero=True), TrainerControl()
    callback._initialized = True
    state.global_step = 4
    callback.on_log(arguments, state, control, logs={"loss": 2.5, "learning_rate": 1e-4})
    callback.on_step_end(arguments, state, control)
    assert written.wait(60)
    server.close()
    values = {step["path"]: step["value"] for step in patches[0]}
    progress = values["/status/stages/0/progress"]
    assert progress["percentage"] == 40
    assert progress["metrics"].items() >= {"loss": 2.5, "learning_rate": 1e-4, "current_step": 4.0}.items()
    assert values["/status/metrics"] == "loss 2.5"
