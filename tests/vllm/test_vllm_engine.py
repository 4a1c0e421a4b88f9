"""The vLLM engine for real: a two-layer Llama in vLLM's CPU build, in Ray actors as the rollout role has it.

Tolerances: log-probabilities of vLLM and transformers were seen to differ by up to 2e-5 in float32 (two ranks), and by
0.03 on average and 0.14 at most in bfloat16, for a model whose weights are ten times as large as usual.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from camel_ray.api.model import ModelSpec
from camel_ray.api.stages.ppo import SamplingSpec
from camel_ray.api.stages.ppo_roles import RolloutSpec
from camel_ray.data.tokenizer import train_tokenizer
from camel_ray.errors import WorkerLost
from camel_ray.models.generation import Generation, generate
from camel_ray.models.load import load_causal_lm, load_tokenizer, save_model
from camel_ray.ppo.experience import Experience, Sequences, from_answers
from camel_ray.ppo.rollout.vllm import VllmEngine
from camel_ray.ppo.settings import Place, RoleSettings, RolloutSettings
from camel_ray.ray_session import ensure_ray

ATOL = 1e-4
STOP = 7
TEMPERATURE = 0.7
CONTEXT = 256
LONG = [(11 * i) % 200 + 5 for i in range(150)]  # vLLM shares prefixes by blocks of 128 tokens on a CPU
PROMPTS = [[5, 6, 8], [9, 10], LONG, [20] * 16]
SEEDS = [101, 102, 103, 104]


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    ensure_ray(cores=2)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two policies: `plain`, and `tied`, whose head is its embedding. Their answers are far from uniform."""
    root = tmp_path_factory.mktemp("models")
    tokenizer = train_tokenizer([f"item {i} of a list in order" for i in range(100)], vocab_size=280)
    for name in ("plain", "tied"):
        torch.manual_seed(3)
        config = LlamaConfig(
            vocab_size=330,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=name == "tied",
            initializer_range=0.2,
        )
        save_model(LlamaForCausalLM(config), tokenizer, root / name)
    return root


def settings(models: Path, model: ModelSpec, *, tensor_parallel: int = 1, bf16: bool = False, **sampling: Any) -> Any:
    return RoleSettings(
        model=model,
        tokenizer=str(models / "plain"),
        seed=11,
        bf16=bf16,
        micro_batch_tokens=512,
        rollout=RolloutSettings(
            spec=RolloutSpec(engine="vllm", tensor_parallel=tensor_parallel),
            sampling=SamplingSpec(max_prompt_length=200, max_response_length=56, **sampling),
            stop_ids=(STOP,),
        ),
    )


class Engine:
    """A `VllmEngine` in an actor of its own, called as if it were here."""

    def __init__(self, role: RoleSettings) -> None:
        place = Place(rank=0, world=1, device=torch.device("cpu"), roles={})
        self.actor = ray.remote(num_cpus=0)(VllmEngine).remote(role, place)

    def generate(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], *, max_new_tokens: int = 20
    ) -> list[Generation]:
        return list(ray.get(self.actor.generate.remote(prompts, seeds, max_new_tokens=max_new_tokens)))

    def logprobs(self, sequences: Sequences) -> torch.Tensor:
        result: torch.Tensor = ray.get(self.actor.logprobs.remote(sequences))
        return result

    def load_weights(self, *buckets: Mapping[str, torch.Tensor]) -> None:
        ray.get(self.actor.load_weights.remote(buckets))

    def do(self, action: Callable[[Any], Any]) -> Any:
        return ray.get(self.actor.__ray_call__.remote(action))

    def end(self) -> None:
        ray.kill(self.actor)


@pytest.fixture(scope="module")
def start(models: Path) -> Iterator[Callable[..., Engine]]:
    engines: list[Engine] = []

    def start(name: str = "plain", **options: Any) -> Engine:
        options = {"temperature": TEMPERATURE, **options}
        engines.append(Engine(settings(models, ModelSpec(source=str(models / name)), **options)))
        return engines[-1]

    yield start
    for engine in engines:
        engine.end()


@pytest.fixture(scope="module")
def shared(start: Callable[..., Engine]) -> Engine:
    """One engine for the tests that leave it as they found it, or load all its weights first."""
    return start(top_p=0.9, top_k=100)


def load(models: Path, name: str = "plain") -> PreTrainedModel:
    return load_causal_lm(ModelSpec(source=str(models / name)), load_tokenizer(str(models / "plain")), seed=0).eval()


def changed(models: Path, name: str = "plain", *, scale: float = 0.05) -> PreTrainedModel:
    """The policy after an update of every weight."""
    model = load(models, name)
    torch.manual_seed(17)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * scale)
    return model


def weights(model: PreTrainedModel, *, without: str | None = None) -> list[dict[str, torch.Tensor]]:
    """Three buckets that cut through layers."""
    items = [(name, tensor) for name, tensor in model.state_dict().items() if name != without]
    return [dict(items[start::3]) for start in range(3)]


def experience(prompts: Sequence[Sequence[int]], answers: Sequence[Generation]) -> Experience:
    return from_answers(
        prompts,
        [answer.tokens for answer in answers],
        [answer.logprobs for answer in answers],
        [answer.finished for answer in answers],
        groups=range(len(prompts)),
        policy_versions=[0] * len(prompts),
    )


@torch.no_grad()
def expected(model: PreTrainedModel, sequences: Sequences, *, temperature: float = TEMPERATURE) -> torch.Tensor:
    """Log-probabilities of the action tokens by transformers, one sequence at a time, (A,)."""
    rows = []
    for tokens in sequences.tokens_N.split(sequences.lengths_B.tolist()):
        logprobs = (model(tokens[None]).logits[0].float() / temperature).log_softmax(-1)
        rows += [torch.zeros(1), logprobs[:-1].gather(1, tokens[1:, None])[:, 0]]
    return torch.cat(rows)[sequences.action_N]


def assert_agree(engine: Engine, model: PreTrainedModel, *, atol: float = ATOL, **options: Any) -> list[Generation]:
    """Drawn and given tokens have the model's log-probabilities."""
    answers = engine.generate(PROMPTS, SEEDS)
    drawn = experience(PROMPTS, answers)
    reference = expected(model, drawn.sequences, **options)
    torch.testing.assert_close(drawn.rollout_logprobs_A, reference, rtol=0, atol=atol)
    torch.testing.assert_close(engine.logprobs(drawn.sequences), reference, rtol=0, atol=atol)
    return answers


def test_logprobs_are_the_models_at_the_temperature_and_before_top_p_and_top_k(shared: Engine, models: Path) -> None:
    model = load(models)
    shared.load_weights(*weights(model))
    answers = assert_agree(shared, model)
    with pytest.raises(AssertionError):  # the temperature matters: the test would see a wrong one
        torch.testing.assert_close(
            experience(PROMPTS, answers).rollout_logprobs_A,
            expected(model, experience(PROMPTS, answers).sequences, temperature=1.0),
            rtol=0,
            atol=0.05,
        )


def test_tied_head_and_temperature_1_before_and_after_an_update(start: Callable[..., Engine], models: Path) -> None:
    engine = start("tied", temperature=1.0)
    assert_agree(engine, load(models, "tied"), temperature=1.0)
    for scale, left_out in ((0.05, None), (0.02, "lm_head.weight")):  # the head is the embedding: it may stay away
        update = changed(models, "tied", scale=scale)
        engine.load_weights(*weights(update, without=left_out))
        assert_agree(engine, update, temperature=1.0)
    engine.end()


def test_bfloat16_engine_takes_float32_weights(start: Callable[..., Engine], models: Path) -> None:
    engine = start(bf16=True)
    update = changed(models)
    engine.load_weights(*weights(update))
    drawn = experience(PROMPTS, engine.generate(PROMPTS, SEEDS))
    difference_A = (drawn.rollout_logprobs_A - expected(update.bfloat16(), drawn.sequences)).abs()
    assert difference_A.mean() < 0.1 and difference_A.max() < 0.4
    engine.end()


def test_two_tensor_parallel_ranks_agree_and_their_death_is_worker_lost(
    start: Callable[..., Engine], models: Path
) -> None:
    engine = start(tensor_parallel=2)
    assert_agree(engine, load(models))
    update = changed(models)
    engine.load_weights(*weights(update))
    assert_agree(engine, update)
    ranks = [psutil.Process(pid) for pid in engine.do(rank_pids)]
    assert len(ranks) == 2
    os.kill(ranks[1].pid, signal.SIGKILL)
    with pytest.raises(WorkerLost, match="lost one of its tensor-parallel processes"):
        engine.generate(PROMPTS, SEEDS)
    with pytest.raises(WorkerLost, match="is closed"):
        engine.generate(PROMPTS, SEEDS)
    engine.end()
    assert not psutil.wait_procs(ranks, timeout=300)[1]


def rank_pids(engine: Any) -> list[int]:
    return [worker.proc.pid for worker in engine._llm.llm_engine.model_executor.workers]


def test_killed_host_takes_the_engine_with_it_and_another_writes_the_same_answers(
    start: Callable[..., Engine], models: Path
) -> None:
    engine = start(tensor_parallel=2)
    answers = engine.generate(PROMPTS, SEEDS)
    ranks = [psutil.Process(pid) for pid in engine.do(rank_pids)]
    os.kill(engine.do(lambda _: os.getpid()), signal.SIGKILL)
    with pytest.raises(ray.exceptions.RayActorError):
        engine.generate(PROMPTS, SEEDS)
    assert not psutil.wait_procs(ranks, timeout=300)[1]
    other = start()  # nor does an answer depend on the number of ranks
    assert [a.tokens for a in other.generate(PROMPTS, SEEDS)] == [a.tokens for a in answers]
    other.end()


def test_new_weights_change_the_answers_and_the_old_ones_bring_them_back(shared: Engine, models: Path) -> None:
    model, update = load(models), changed(models)
    shared.load_weights(*weights(model))
    before = assert_agree(shared, model)
    shared.load_weights(*weights(update))
    after = assert_agree(shared, update)
    assert all(a.tokens != b.tokens for a, b in zip(before, after, strict=True))
    shared.load_weights(*weights(model))
    assert shared.generate(PROMPTS, SEEDS) == before


def test_prefixes_cached_under_old_weights_are_not_used(shared: Engine, models: Path) -> None:
    def cached_tokens() -> int:
        return int(
            shared.do(lambda e: e._llm.generate({"prompt_token_ids": LONG}, use_tqdm=False)[0].num_cached_tokens)
        )

    shared.load_weights(*weights(load(models)))
    assert cached_tokens() == 0
    assert cached_tokens() == 128
    update = changed(models)
    shared.load_weights(*weights(update))
    answer = shared.generate([LONG], [5])
    drawn = experience([LONG], answer)
    torch.testing.assert_close(drawn.rollout_logprobs_A, expected(update, drawn.sequences), rtol=0, atol=ATOL)
    assert cached_tokens() == 128  # of the new weights


def test_an_answer_depends_on_its_seed_and_not_on_the_batch(shared: Engine, models: Path) -> None:
    shared.load_weights(*weights(load(models)))
    together = shared.generate([*PROMPTS, PROMPTS[0], PROMPTS[0]], [*SEEDS, SEEDS[0], 2**63 + 5])
    assert together[4].tokens == together[0].tokens
    assert together[5].tokens != together[0].tokens
    alone = [shared.generate([p], [s])[0] for p, s in zip(PROMPTS, SEEDS, strict=True)]
    assert [a.tokens for a in alone] == [a.tokens for a in together[:4]]


def test_an_answer_ends_with_its_stop_token_or_at_its_longest(shared: Engine, models: Path) -> None:
    shared.load_weights(*weights(load(models)))
    answers = shared.generate([[5, 6, 8]] * 64, range(64), max_new_tokens=40)
    assert {a.finished for a in answers} == {True, False}
    for answer in answers:
        assert len(answer.logprobs) == len(answer.tokens)
        assert STOP not in answer.tokens[:-1]
        assert answer.finished == (answer.tokens[-1] == STOP)
        assert answer.finished or len(answer.tokens) == 40
    assert shared.generate([], []) == []
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        shared.generate([[5], []], [1, 2])


def test_greedy_answers_are_those_of_the_transformers_engine(start: Callable[..., Engine], models: Path) -> None:
    engine = start(top_k=1)
    ours = generate(load(models), PROMPTS, max_new_tokens=20, temperature=0.0, stop_ids=[STOP], pad_id=0, batch_size=4)
    answers = engine.generate(PROMPTS, SEEDS)
    assert [(a.tokens, a.finished) for a in answers] == [(a.tokens, a.finished) for a in ours]
    engine.end()


def test_sequences_that_fill_the_context_and_shortest_ones_are_scored(shared: Engine, models: Path) -> None:
    model = load(models)
    shared.load_weights(*weights(model))
    full = (LONG * 2)[:CONTEXT]
    sequences = Sequences(
        tokens_N=torch.tensor([*full, 5, 6, *full[:30]]),
        lengths_B=torch.tensor([CONTEXT, 2, 30]),
        # Of the last one, a conversation: two turns, and the last token is not the policy's.
        action_N=torch.tensor(
            [i >= 200 for i in range(CONTEXT)] + [False, True] + [5 <= i < 9 or 12 <= i < 20 for i in range(30)]
        ),
    )
    torch.testing.assert_close(shared.logprobs(sequences), expected(model, sequences), rtol=0, atol=ATOL)


def test_sleep_and_wake_keep_the_weights_and_new_ones_may_come_in_between(shared: Engine, models: Path) -> None:
    model, update = load(models), changed(models)
    shared.load_weights(*weights(model))
    before = shared.generate(PROMPTS, SEEDS)
    shared.do(lambda engine: engine.sleep())
    shared.do(lambda engine: engine.wake())
    assert shared.generate(PROMPTS, SEEDS) == before
    shared.do(lambda engine: engine.sleep())
    shared.load_weights(*weights(update))
    shared.do(lambda engine: engine.wake())
    assert_agree(shared, update)


def test_a_model_built_from_its_configuration_has_the_weights_of_its_seed(models: Path) -> None:
    spec = ModelSpec(
        config={
            "model_type": "llama",
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 300,
        }
    )
    engine = Engine(settings(models, spec, temperature=TEMPERATURE))
    assert_agree(engine, load_causal_lm(spec, load_tokenizer(str(models / "plain")), seed=11).eval())
    engine.end()


def test_a_model_without_a_kernel_is_refused_at_the_start(models: Path) -> None:
    config = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    engine = Engine(settings(models, ModelSpec(config=config)))
    with pytest.raises(  # Ray says so of whatever ends a constructor
        ray.exceptions.ActorDiedError, match=r"ModelError: vllm cannot run the model of `config` .*head_dim=16"
    ):
        engine.generate(PROMPTS, SEEDS)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        pytest.param({"model.layers.7.mlp.up_proj.weight": torch.zeros(128, 64)}, "is unknown", id="unknown"),
        pytest.param(
            {"lm_head.weight": torch.zeros(331, 64)}, r"has shape \[331, 64\] instead of \[330, 64\]", id="shape"
        ),
        pytest.param({}, "lm_head.weight is missing", id="missing"),
    ],
)
def test_weights_of_another_model_are_refused_and_the_engine_is_closed(
    start: Callable[..., Engine], models: Path, wrong: dict[str, torch.Tensor], message: str
) -> None:
    engine = start()
    with pytest.raises(WorkerLost, match=message):
        engine.load_weights(*weights(load(models), without="lm_head.weight"), wrong)
    with pytest.raises(WorkerLost, match="is closed"):
        engine.generate(PROMPTS, SEEDS)
    engine.end()
