"""What a round of PPO knows about its answers, as flat tensors: nothing is padded until a model needs a rectangle.

Shapes: N tokens of all sequences (prompt and answer), A action tokens (those the policy wrote), B sequences. A field
is None until its phase has run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from camel_ray.errors import ModelError
from camel_ray.manifest import disk_errors
from camel_ray.ppo.ragged import gather_index, last_index, sequence_sum

Per = Literal["token", "action", "sequence"]


def _per(per: Per, **options: Any) -> Any:
    """A field with one entry per token, action token or sequence."""
    return field(metadata={"per": per}, **options)


@dataclass(frozen=True)
class Sequences:
    """Token sequences, and which of their tokens are predicted."""

    tokens_N: Tensor
    """Token ids."""
    lengths_B: Tensor
    """Tokens per sequence."""
    action_N: Tensor
    """True where the policy wrote the token. Never the first token of a sequence: nothing precedes it."""

    @property
    def action_lengths_B(self) -> Tensor:
        """Action tokens per sequence."""
        return sequence_sum(self.action_N.long(), self.lengths_B)

    def select(self, rows_R: Tensor) -> Sequences:
        """The sequences `rows_R`, in that order."""
        index = gather_index(self.lengths_B, rows_R)
        return Sequences(self.tokens_N[index], self.lengths_B[rows_R], self.action_N[index])

    def padded(self, rows: Sequence[int]) -> PaddedBatch:
        """The sequences `rows` as a right-padded rectangle."""
        chosen = self.select(torch.tensor(rows, dtype=torch.long))
        longest = int(chosen.lengths_B.max())
        start_N = torch.repeat_interleave(last_index(chosen.lengths_B) + 1 - chosen.lengths_B, chosen.lengths_B)
        row_N = torch.repeat_interleave(torch.arange(len(rows)), chosen.lengths_B)
        position_N = row_N * longest + torch.arange(chosen.tokens_N.shape[0]) - start_N
        input_BT = torch.zeros(len(rows) * longest, dtype=torch.long)
        input_BT[position_N] = chosen.tokens_N
        return PaddedBatch(
            input_BT=input_BT.view(len(rows), longest),
            index_A=position_N[chosen.action_N] - 1,
            target_A=chosen.tokens_N[chosen.action_N],
        )


@dataclass(frozen=True)
class Index:
    """What the driver knows of answers, one entry each: enough to divide them, nothing that grows with their length."""

    lengths: list[int]
    """Tokens of prompt and answer."""
    action_lengths: list[int]
    """Tokens the policy wrote."""
    finished: list[bool]
    groups: list[int]
    policy_versions: list[int]
    texts: list[str] | None = None
    """The answers as text, where a reward reads them."""
    turn_rewards: list[float] | None = None
    """What an environment gave for each conversation."""
    failures: list[tuple[str, str] | None] | None = None
    """Why the environment of a conversation failed: in few words, and with what else is known."""

    def __len__(self) -> int:
        return len(self.lengths)

    def select(self, rows: Sequence[int]) -> Index:
        """The answers `rows`, in that order."""
        columns: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        chosen: dict[str, Any] = {name: column and [column[row] for row in rows] for name, column in columns.items()}
        return Index(**chosen)


def join_indices(parts: Sequence[Index]) -> Index:
    """The answers of all parts, one after the other."""
    columns: dict[str, Any] = {f.name: [getattr(part, f.name) for part in parts] for f in fields(Index)}
    joined: dict[str, Any] = {n: None if None in lists else [*chain(*lists)] for n, lists in columns.items()}
    return Index(**joined)


@dataclass(frozen=True)
class PaddedBatch:
    """Input of one forward pass. Right padding needs no mask: a causal model never looks to the right."""

    input_BT: Tensor
    index_A: Tensor
    """Position in the flattened (B*T,) batch whose output predicts each action token: the one before it."""
    target_A: Tensor
    """The action tokens."""

    def to(self, device: torch.device) -> PaddedBatch:
        """A copy on `device`."""
        return PaddedBatch(self.input_BT.to(device), self.index_A.to(device), self.target_A.to(device))


@dataclass(frozen=True)
class Experience:
    """Answers of one round with all that is known about them."""

    tokens_N: Tensor = _per("token")
    lengths_B: Tensor = _per("sequence")
    action_N: Tensor = _per("token")
    """See `Sequences`."""
    rollout_logprobs_A: Tensor = _per("action")
    """Log-probabilities the rollout engine gave when it drew the tokens."""
    finished_B: Tensor = _per("sequence")
    """The answer ended by itself."""
    groups_B: Tensor = _per("sequence")
    """Number of the prompt within the round: answers to one prompt share it."""
    policy_version_B: Tensor = _per("sequence")
    """Version of the weights that wrote the answer."""
    scores_B: Tensor | None = _per("sequence", default=None)
    """Reward of each answer as it came (before clip and penalty)."""
    logprobs_A: Tensor | None = _per("action", default=None)
    """Log-probabilities under the policy before this round's updates."""
    reference_logprobs_A: Tensor | None = _per("action", default=None)
    values_A: Tensor | None = _per("action", default=None)
    """The critic's values before this round's updates."""
    advantages_A: Tensor | None = _per("action", default=None)
    turn_rewards_A: Tensor | None = _per("action", default=None)
    """Rewards an environment gave, each on the last token of its turn."""
    importance_A: Tensor | None = _per("action", default=None)
    """Weight of each token's policy loss, where answers were drawn by another policy."""
    weight_A: Tensor | None = _per("action", default=None)
    """What each token counts in the mean over the mini-batch."""
    returns_A: Tensor | None = _per("action", default=None)
    """What the critic should have said."""

    def __len__(self) -> int:
        return int(self.lengths_B.shape[0])

    @property
    def sequences(self) -> Sequences:
        """The tokens alone."""
        return Sequences(self.tokens_N, self.lengths_B, self.action_N)

    @property
    def action_lengths_B(self) -> Tensor:
        """Action tokens per answer."""
        return self.sequences.action_lengths_B

    def index(self, texts: list[str] | None = None) -> Index:
        """What the driver has to know of it."""
        return Index(
            lengths=self.lengths_B.tolist(),
            action_lengths=self.action_lengths_B.tolist(),
            finished=self.finished_B.tolist(),
            groups=self.groups_B.tolist(),
            policy_versions=self.policy_version_B.tolist(),
            texts=texts,
            turn_rewards=None
            if self.turn_rewards_A is None
            else sequence_sum(self.turn_rewards_A, self.action_lengths_B).tolist(),
        )

    def select(self, rows_R: Tensor) -> Experience:
        """The answers `rows_R`, in that order, with every field that is set."""
        index: dict[Per, Tensor] = {
            "token": gather_index(self.lengths_B, rows_R),
            "action": gather_index(self.action_lengths_B, rows_R),
            "sequence": rows_R,
        }
        chosen = {
            f.name: value[index[f.metadata["per"]]]
            for f in fields(self)
            if (value := getattr(self, f.name)) is not None
        }
        return replace(self, **chosen)

    def with_(self, **values: Tensor) -> Experience:
        """A copy with fields set. Raises ValueError where a size does not fit."""
        sizes = {"token": self.tokens_N.shape[0], "action": int(self.action_N.sum()), "sequence": len(self)}
        per = {f.name: f.metadata["per"] for f in fields(self)}
        for name, value in values.items():
            if value.shape[0] != sizes[per[name]]:
                raise ValueError(
                    f"{name} has {value.shape[0]} entries, but there are {sizes[per[name]]} per {per[name]}"
                )
        return replace(self, **values)


def from_answers(
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    logprobs: Sequence[Sequence[float]],
    finished: Sequence[bool],
    *,
    groups: Sequence[int],
    policy_versions: Sequence[int],
) -> Experience:
    """Single-turn experience: each sequence is a prompt and the answer the policy wrote to it."""
    lengths = [len(p) + len(a) for p, a in zip(prompts, answers, strict=True)]
    return Experience(
        tokens_N=torch.tensor([t for p, a in zip(prompts, answers, strict=True) for t in (*p, *a)], dtype=torch.long),
        lengths_B=torch.tensor(lengths, dtype=torch.long),
        action_N=torch.tensor(
            [flag for p, a in zip(prompts, answers, strict=True) for flag in (*[False] * len(p), *[True] * len(a))],
            dtype=torch.bool,
        ),
        rollout_logprobs_A=torch.tensor([value for row in logprobs for value in row], dtype=torch.float32),
        finished_B=torch.tensor(list(finished), dtype=torch.bool),
        groups_B=torch.tensor(list(groups), dtype=torch.long),
        policy_version_B=torch.tensor(list(policy_versions), dtype=torch.long),
    )


def concatenate(parts: Sequence[Experience]) -> Experience:
    """The answers of all parts, one after the other; all have the same fields set."""
    if len(parts) == 1:
        return parts[0]
    present = [f.name for f in fields(Experience) if getattr(parts[0], f.name) is not None]
    return Experience(**{name: torch.cat([getattr(part, name) for part in parts]) for name in present})


def save_experience(experience: Experience, path: Path) -> None:
    """Write all fields that are set as one safetensors file."""
    tensors = {f.name: value for f in fields(Experience) if (value := getattr(experience, f.name)) is not None}
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Copies: the policy's log-probabilities may be rollout's own, and the format keeps no tensor twice.
        save_file({name: value.clone().contiguous() for name, value in tensors.items()}, path)


def load_experience(path: Path) -> Experience:
    """Read back what `save_experience` wrote. Raises ModelError if the file is not one."""
    try:
        return Experience(**load_file(path))
    except (SafetensorError, TypeError) as error:
        raise ModelError(f"{path} holds no experience ({error}); delete the checkpoint it belongs to") from error
