"""What all sides work on: the same models, prompts, lengths and settings, as files and numbers.

Imports nothing of camel-ray: the TRL side reads it too.
"""

from __future__ import annotations

import json
import math
import random
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

EOS, PAD, UNKNOWN = 0, 1, 2
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + eos_token }}"
    "{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
)
MICRO_BATCH_TOKENS = 3072
"""Most tokens, padding included, in one pass of the engine and of the limit: all answers of a round at full length."""
_NEVER = -30.0
"""A logit beside which a token of probability 1/1000 is certain."""
_CONSTANT = 8.0
"""Value of the constant feature: it outweighs all others, so that a norm hardly changes it."""


@dataclass(frozen=True)
class Task:
    """Sizes and settings of a run; the same for all sides."""

    directory: str
    """Where the models, the tokenizer and the prompts lie."""
    ends: bool
    """Answers end at random after 16 tokens in the mean (at most `response`), or never before `response`."""
    threads: int
    prompts: int = 32
    """Per round."""
    prompt: int = 32
    """Tokens."""
    response: int = 64
    """Most tokens of an answer."""
    epochs: int = 1
    mini_batches: int = 1
    learning_rate: float = 1e-5
    """Of the policy and of the critic."""
    max_grad_norm: float = 1.0
    """TRL's trainer knows no limit."""
    kl: float = 0.05
    gamma: float = 1.0
    lam: float = 0.95
    clip: float = 0.2
    value_clip: float = 0.2

    def path(self, name: str) -> Path:
        """A file or directory of the task."""
        return Path(self.directory) / name

    def all_prompts(self) -> list[list[int]]:
        """Token ids of all prompts."""
        found: list[list[int]] = json.loads(self.path("prompts.json").read_text())
        return found

    def wire(self) -> str:
        """As JSON, for the command line of a side."""
        return json.dumps(asdict(self))


def make(task: Task) -> None:
    """Write models, tokenizer and prompts of `task`."""
    words = {"<eos>": EOS, "<pad>": PAD, "<unk>": UNKNOWN} | {f"w{i}": i for i in range(3, 1024)}
    words_only = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    words_only.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words_only, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>", chat_template=TEMPLATE
    )
    shape = {
        "vocab_size": len(words), "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 256, "bos_token_id": None,
        "eos_token_id": EOS, "pad_token_id": PAD, "tie_word_embeddings": False,
    }  # fmt: skip
    torch.manual_seed(0)
    policy = LlamaForCausalLM(LlamaConfig(**shape))
    # The probability of an end is 1/16 where all other logits are about 0.
    bias_of_token_logits(policy, {EOS: math.log((len(words) - 2) / 15) if task.ends else _NEVER, PAD: _NEVER})
    reward = LlamaForSequenceClassification(LlamaConfig(**shape, num_labels=1))
    for name, model in (("policy", policy), ("reward", reward)):
        model.save_pretrained(task.path(name))
        tokenizer.save_pretrained(task.path(name))
    rng = random.Random(0)
    prompts = [[rng.randrange(3, len(words)) for _ in range(task.prompt)] for _ in range(1024)]
    task.path("prompts.json").write_text(json.dumps(prompts))
    rows = [{"prompt": " ".join(f"w{i}" for i in ids), "completion": "w3"} for ids in prompts]
    task.path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@torch.no_grad()
def bias_of_token_logits(model: LlamaForCausalLM, biases: dict[int, float]) -> None:
    """Give tokens a constant in their logit, in a stock Llama, whose head has no bias.

    The first feature becomes a constant: the embedding sets it, no layer writes to it, and it is so large that the
    last norm gives it nearly the same value everywhere. The head reads it for these tokens only.
    """
    hidden = model.config.hidden_size
    model.model.embed_tokens.weight[:, 0] = _CONSTANT
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight[0] = 0.0
        layer.mlp.down_proj.weight[0] = 0.0
    model.lm_head.weight[:, 0] = 0.0
    for token, bias in biases.items():
        model.lm_head.weight[token] = 0.0
        model.lm_head.weight[token, 0] = bias / math.sqrt(hidden)
