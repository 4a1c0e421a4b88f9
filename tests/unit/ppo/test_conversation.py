"""Conversations between a policy and an environment: which tokens are kept, which are actions, and what ends one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from camel_ray.api.stages.ppo import SamplingSpec
from camel_ray.data.conversations import Message
from camel_ray.data.templates import encode_conversation, encode_prompt, stop_token_ids
from camel_ray.data.tokenizer import PLAIN, set_chat_template, train_tokenizer
from camel_ray.errors import ModelError
from camel_ray.models.generation import Generation, generate
from camel_ray.ppo.environment import Environments
from camel_ray.ppo.policy import PolicyModule
from camel_ray.ppo.prompts import Prompt
from camel_ray.ppo.rollout.conversation import Conversations, converse, encode_between
from camel_ray.ppo.settings import EnvironmentSettings

GAME = """
class Environment:
    def reset(self, prompt, row):
        self.turn, self.last = 0, row.get("last", 9)
        if row.get("wide"):
            return "word " * row["wide"]
        return prompt if row.get("plain") else "say " + prompt

    def step(self, answer):
        self.turn += 1
        if "fail" in answer:
            raise ValueError(answer)
        return f"next {self.turn}", self.turn / 2, self.turn == self.last
"""
TOKENIZER = train_tokenizer(["say the next word of a list, then fail or go on"] * 3, vocab_size=300)
STOPS = stop_token_ids(TOKENIZER)
END = TOKENIZER.convert_tokens_to_ids("<|im_end|>")
# ChatML as many published models have it: no marks, and the thoughts of earlier turns are left out.
FORGETFUL = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think></think>' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


class Scripted:
    """Says what it is told, however it is cut into tokens. Implements the part of `RolloutEngine` that is asked."""

    def __init__(self, *turns: Sequence[Generation]) -> None:
        self.turns = list(turns)
        self.asked: list[tuple[list[list[int]], list[int], int]] = []

    def generate(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], *, max_new_tokens: int
    ) -> list[Generation]:
        self.asked.append(([list(prompt) for prompt in prompts], list(seeds), max_new_tokens))
        return list(self.turns.pop(0))


def said(text: str, *, cut: bool = False) -> Generation:
    """One token per character, which is not how the tokenizer would cut it."""
    ids = [TOKENIZER.convert_tokens_to_ids(character) for character in text]
    tokens = ids if cut else [*ids, END]
    return Generation(tokens, [-0.5 * (place + 1) for place in range(len(tokens))], not cut)


def prompt(text: str = "a", row: str = "{}") -> Prompt:
    return Prompt(tuple(encode_prompt(TOKENIZER, [user(text)])), text, (("user", text),), row)


def user(text: str) -> Message:
    return Message(role="user", content=text)


@pytest.fixture(scope="module")
def environments() -> Iterator[Environments]:
    with Environments(EnvironmentSettings(GAME, "/games/game.py", "Environment", 4, 20.0)) as started:
        yield started


def talk(
    environments: Environments, engine: object, prompts: Sequence[Prompt], *, longest: int = 200, max_turns: int = 3
) -> Conversations:
    return converse(
        engine,  # type: ignore[arg-type]
        environments,
        TOKENIZER,
        prompts,
        range(len(prompts)),
        sampling=SamplingSpec(max_prompt_length=longest, max_response_length=8),
        stop_ids=STOPS,
        max_turns=max_turns,
        groups=[0] * len(prompts),
        policy_version=7,
    )


def actions(result: Conversations, row: int) -> list[list[int]]:
    """The runs of action tokens of a row."""
    whole = result.experience.select(torch.tensor([row]))
    runs: list[list[int]] = [[]]
    for token, action in zip(whole.tokens_N.tolist(), whole.action_N.tolist(), strict=True):
        if action:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def test_a_conversation_reads_as_the_template_writes_it_and_keeps_the_tokens_that_were_drawn(
    environments: Environments,
) -> None:
    engine = Scripted([said("the")], [said("word")], [said("list")])
    result = talk(environments, engine, [prompt()])
    assert [(m["role"], m["content"]) for m in result.messages[0]] == [
        ("user", "say a"),
        ("assistant", "the"),
        ("user", "next 1"),
        ("assistant", "word"),
        ("user", "next 2"),
        ("assistant", "list"),
    ]
    assert actions(result, 0) == [said(text).tokens for text in ("the", "word", "list")]
    whole = TOKENIZER.decode(result.experience.tokens_N)
    assert whole + "\n" == TOKENIZER.apply_chat_template(result.messages[0], tokenize=False)
    assert encode_conversation(TOKENIZER, result.messages[0])[0] != result.experience.tokens_N.tolist()
    assert result.failures == [None] and result.ends == {"turns": 1}


def test_rewards_stand_on_the_last_token_of_their_turn(environments: Environments) -> None:
    result = talk(environments, Scripted([said("a")], [said("go")]), [prompt(row='{"last": 2}')])
    experience = result.experience
    assert experience.turn_rewards_A is not None
    assert experience.turn_rewards_A.tolist() == [0.0, 0.5, 0.0, 0.0, 1.0]
    assert experience.rollout_logprobs_A.tolist() == [-0.5, -1.0, -0.5, -1.0, -1.5]
    assert experience.policy_version_B.tolist() == [7] and experience.finished_B.tolist() == [True]
    assert result.ends == {"environment": 1}


def test_every_turn_is_asked_with_what_was_said_before_it_and_a_seed_of_its_own(environments: Environments) -> None:
    engine = Scripted([said("a"), said("b")], [said("c")])
    result = talk(environments, engine, [prompt(row='{"last": 1}'), prompt("b")], max_turns=2)
    (first, seeds, new), (second, later_seeds, _) = engine.asked
    assert new == 8
    assert first == [encode_prompt(TOKENIZER, [user("say a")]), encode_prompt(TOKENIZER, [user("say b")])]
    row = result.experience.select(torch.tensor([1])).tokens_N.tolist()
    assert second == [row[: -len(said("c").tokens)]]
    assert len({*seeds, *later_seeds}) == 3
    alone = Scripted([said("b")], [said("c")])
    converse(
        alone,  # type: ignore[arg-type]
        environments,
        TOKENIZER,
        [prompt("b")],
        [1],
        sampling=SamplingSpec(max_prompt_length=200, max_response_length=8),
        stop_ids=STOPS,
        max_turns=2,
        groups=[0],
        policy_version=7,
    )
    assert [alone.asked[0][1], alone.asked[1][1]] == [seeds[1:], later_seeds]


def test_an_answer_that_was_cut_gets_its_end_as_an_observation(environments: Environments) -> None:
    result = talk(environments, Scripted([said("then", cut=True)], [said("a")]), [prompt(row='{"last": 2}')])
    assert actions(result, 0) == [said("then", cut=True).tokens, said("a").tokens]
    assert "then<|im_end|>\n<|im_start|>user\nnext 1<|im_end|>" in TOKENIZER.decode(result.experience.tokens_N)
    assert result.experience.finished_B.tolist() == [False]


def test_a_conversation_ends_where_its_next_prompt_would_be_too_long(environments: Environments) -> None:
    start = len(encode_prompt(TOKENIZER, [user("say a")]))
    between = encode_between(
        TOKENIZER,
        [user("say a"), Message(role="assistant", content="the")],
        "next 1",
        stop_ids=STOPS,
        ended=True,
    )
    fits = start + len(said("the").tokens) + len(between)
    for longest, turns in ((fits, 2), (fits - 1, 1)):
        result = talk(environments, Scripted([said("the")], [said("go")]), [prompt()], longest=longest)
        assert len(actions(result, 0)) == turns
        assert result.ends == {"room": 1}
        assert int(result.experience.lengths_B[0]) <= longest + 8


def test_a_failed_conversation_keeps_its_turns_and_no_reward_and_the_others_go_on(environments: Environments) -> None:
    prompts = [prompt(), prompt("b"), prompt(row='{"wide": 300}')]
    result = talk(environments, Scripted([said("a"), said("b")], [said("fail"), said("go")]), prompts, max_turns=2)
    assert [None if f is None else f.reason for f in result.failures] == [
        "raised ValueError",
        None,
        "first message too long",
    ]
    assert result.experience.action_lengths_B.tolist() == [2 + 5, 2 + 3, 0]
    assert result.experience.turn_rewards_A is not None
    assert result.experience.turn_rewards_A.tolist() == [0.0] * 7 + [0.0, 0.5, 0.0, 0.0, 1.0]
    assert result.experience.select(torch.tensor([2])).tokens_N.tolist() == list(prompts[2].ids)
    assert [said[-1]["content"] for said in result.messages] == ["fail", "go", "a"]
    assert result.ends == {"failure": 2, "turns": 1}


def test_the_prompts_tokens_are_used_as_they_are_where_the_environment_repeats_it(environments: Environments) -> None:
    odd = Prompt((5, 6, 7), "a", (("system", "x"), ("user", "a")), '{"plain": true, "last": 1}')
    engine = Scripted([said("a")])
    result = talk(environments, engine, [odd])
    assert engine.asked[0][0] == [[5, 6, 7]]
    assert [m["role"] for m in result.messages[0]] == ["system", "user", "assistant"]


def test_no_prompts_make_an_empty_experience(environments: Environments) -> None:
    result = talk(environments, Scripted(), [])
    assert len(result.experience) == 0 and result.messages == []


@pytest.mark.parametrize("template", [PLAIN, FORGETFUL])
def test_other_templates_have_their_own_text_between_turns(template: str) -> None:
    tokenizer: PreTrainedTokenizerBase = train_tokenizer(["say a word"], vocab_size=300)
    set_chat_template(tokenizer, template)
    messages = [user("say"), Message(role="assistant", content="<think>\ufffc</think> "), user("go on")]
    ids = {
        ended: encode_between(tokenizer, messages[:2], "go on", stop_ids=stop_token_ids(tokenizer), ended=ended)
        for ended in (True, False)
    }
    end = {PLAIN: "<|endoftext|>", FORGETFUL: "<|im_end|>"}[template]
    between = {
        PLAIN: "\nUser: go on\nAssistant:",
        FORGETFUL: "\n<|im_start|>user\ngo on<|im_end|>\n<|im_start|>assistant\n",
    }[template]
    assert tokenizer.decode(ids[True]) == between
    assert tokenizer.decode(ids[False]) == end + between


def test_a_template_that_drops_earlier_turns_is_refused() -> None:
    tokenizer: PreTrainedTokenizerBase = train_tokenizer(["say a word"], vocab_size=300)
    tokenizer.chat_template = "{{ messages[-1]['content'] }}"
    messages = [user("say"), Message(role="assistant", content="b")]
    with pytest.raises(ModelError, match="leaves out what is said in a conversation of several turns"):
        encode_between(tokenizer, messages, "go on", stop_ids=[0], ended=True)


class Policy:
    """A small model and the package's own decode loop."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(TOKENIZER),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            initializer_range=0.3,
        )
        self.model = LlamaForCausalLM(config).eval()

    def generate(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], *, max_new_tokens: int
    ) -> list[Generation]:
        uniforms_BT = torch.stack(
            [torch.rand(max_new_tokens, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        )
        return generate(
            self.model,
            prompts,
            max_new_tokens=max_new_tokens,
            temperature=1.0,
            stop_ids=STOPS,
            pad_id=TOKENIZER.pad_token_id,
            uniforms_BT=uniforms_BT,
            batch_size=2,
        )


@torch.no_grad()
def test_one_forward_pass_over_the_conversation_gives_the_log_probabilities_of_all_its_turns(
    environments: Environments,
) -> None:
    policy = Policy()
    result = talk(environments, policy, [prompt(), prompt("go on", '{"last": 2}'), prompt("the")])
    experience = result.experience
    assert sum(len(actions(result, row)) for row in range(3)) == 8
    batch = experience.sequences.padded(range(3))
    logprobs_A: Tensor = PolicyModule(policy.model)(batch.input_BT, batch.index_A, batch.target_A, 1.0, "none")[0]
    torch.testing.assert_close(logprobs_A, experience.rollout_logprobs_A, rtol=1e-4, atol=1e-4)
    again = talk(environments, policy, [prompt(), prompt("go on", '{"last": 2}'), prompt("the")])
    assert torch.equal(again.experience.tokens_N, experience.tokens_N)
