"""Where the rewards of `ppo` come from: models, functions, checks of answers, services and environments."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from camel_ray.api.base import Spec


class RewardFunctionSpec(Spec):
    """A Python function as reward."""

    path: str
    """Python file with the function. Relative paths start at the directory of the pipeline file."""
    name: str = "reward"
    """Function name. It is called as `reward(prompts: list[str], answers: list[str], rows: list[dict]) ->
    list[float]`."""
    timeout_seconds: float = Field(default=60.0, gt=0.0)
    """Time limit of one call. The function runs in processes of its own that are killed when the limit is over."""
    workers: int = Field(default=1, ge=1)
    """Processes among which the answers of a round are divided."""


class AnswerRewardSpec(Spec):
    """Compares the last number of an answer with the right one (GSM8K and other sums)."""

    field: str | None = None
    """Column of the prompts' rows with the right answer. Default: the column `answer`, else the data's own answer to
    the prompt. Of a GSM8K solution, what follows `####` counts."""
    correct: float = 1.0
    """Score of a right answer."""
    wrong: float = 0.0
    """Score of a wrong answer, and of one without a number."""


class HttpRewardSpec(Spec):
    """A web service as reward: POST `{"prompts": [...], "answers": [...], "rows": [...]}`, reply
    `{"scores": [...]}`.
    """

    url: str
    """Address of the service, http:// or https://."""
    timeout_seconds: float = Field(default=60.0, gt=0.0)
    """Time limit of one request."""
    retries: int = Field(default=3, ge=0)
    """Further tries after a time-out, a lost connection or a status of 429 or 5xx."""
    batch_size: int = Field(default=16, ge=1)
    """Answers per request; requests are sent side by side."""
    token_env: str | None = None
    """Environment variable with a bearer token. The token itself never stands in this file."""


class RewardSpec(Spec):
    """Where rewards come from. With several members set, the reward is their weighted sum."""

    model: str | None = None
    """Reward stage, directory or hub id of a sequence classifier with one output."""
    model_weight: float = 1.0
    """Weight of the model's score."""
    function: RewardFunctionSpec | None = None
    """A Python function as reward."""
    function_weight: float = 1.0
    """Weight of the function's score."""
    answer: AnswerRewardSpec | None = None
    """A check of the answer's last number."""
    answer_weight: float = 1.0
    """Weight of the check."""
    http: HttpRewardSpec | None = None
    """A web service as reward."""
    http_weight: float = 1.0
    """Weight of the service's score."""
    normalise: Literal["none", "demonstrations", "prompt"] = "none"
    """Subtract the mean score of the data's own answers from the score of every sample, over all prompts
    (`demonstrations`) or for the same prompt (`prompt`): f(x, y) - E[f]. Demonstrations then score 0."""
    on_failure: Literal["fail", "drop", "value"] = "fail"
    """What a failed reward (exception, time-out, NaN) does: end the stage, drop the sample, or use `failureValue`.
    Failures are counted in every case."""
    failure_value: float = 0.0
    """Score of a failed sample when `onFailure` is `value`."""
    clip: float | None = Field(default=10.0, gt=0.0)
    """Scores are limited to [-clip, clip]. Null: no limit."""
    missing_eos_penalty: float = Field(default=0.0, ge=0.0)
    """Subtracted from the score of an answer that was cut at `maxResponseLength` instead of ending by itself."""
    overlong_buffer: int = Field(default=0, ge=0)
    """Last tokens of `maxResponseLength` over which the penalty for long answers grows from 0 to `overlongPenalty`
    (DAPO's soft overlong punishment). 0: none."""
    overlong_penalty: float = Field(default=1.0, ge=0.0)
    """Subtracted from the score of an answer of full length, see `overlongBuffer`."""


class EnvironmentSpec(Spec):
    """A Python class the policy talks with over several turns."""

    path: str
    """Python file with the class. Relative paths start at the directory of the pipeline file."""
    name: str = "Environment"
    """Class name. One object per conversation: `reset(prompt: str, row: dict) -> str` gives the first user message,
    `step(answer: str) -> tuple[str | None, float, bool]` the next one, the reward of the turn, and whether it was the
    last."""
    max_turns: int = Field(default=4, ge=1)
    """Most answers in one conversation."""
    timeout_seconds: float = Field(default=60.0, gt=0.0)
    """Time limit of one `reset` or `step`. The class runs in a process of its own that is killed when it is over."""
