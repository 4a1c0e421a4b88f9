"""Rollout with vLLM: continuous batching, a paged cache with shared prefixes, tensor parallelism.

The engine runs inside the role's own process, so whoever ends that process ends the engine; only tensor parallelism
starts more, and they end with it. vLLM changes torch for its whole process (`set_num_threads`, `accelerator`), so it
needs one without other roles. Imported only where `rollout.engine` is `vllm`; vllm itself, when an engine is built.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig

from camel_ray.errors import ModelError, SpecError, WorkerLost
from camel_ray.models.generation import Generation
from camel_ray.models.load import context_length, load_causal_lm, load_config, load_tokenizer, save_model
from camel_ray.ppo.experience import Sequences
from camel_ray.ppo.settings import Place, RoleSettings, RolloutSettings

_T = TypeVar("_T")

_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine's loop in this process instead of a child
    "VLLM_NO_USAGE_STATS": "1",  # vLLM reports every start to its makers otherwise
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the cores it would take may be those of another role
}
_CPU_CACHE_BYTES = 1 << 30
"""Keys and values on a CPU, where a share of the machine's memory would starve the other roles. The variable
VLLM_CPU_KVCACHE_SPACE (GiB) overrides it."""
_SEED_BITS = (1 << 63) - 1
"""Seeds are 64-bit and signed in vLLM, where -1 means none."""


class VllmEngine:
    """A `RolloutEngine`. Raises SpecError where vllm is not installed, ModelError for a model that it cannot run.

    Every answer draws from a generator of its own, seeded with its number: it does not depend on what else is in the
    batch. The same number gives other answers than in the transformers engine.
    """

    def __init__(self, settings: RoleSettings, place: Place) -> None:
        assert settings.rollout is not None, "the role rollout has rollout settings"
        self._rollout = settings.rollout
        config = load_config(settings.model, load_tokenizer(settings.tokenizer))
        self._shapes, self._tied = _parameters(config, settings.model.trust_remote_code)
        self._asleep = False
        self._llm = _start(settings, place, context_length(config))
        try:
            self._run([[0]], [{"max_tokens": 1}])  # kernels are found when they are used
        except RuntimeError as error:
            if "Unsupported" not in str(error):
                raise
            raise _cannot_run(settings, error) from error
        if self._rollout.sampling.temperature != 1.0:
            self._on_workers("scale_logits", self._rollout.sampling.temperature)

    def generate(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], *, max_new_tokens: int
    ) -> list[Generation]:
        """One answer to each prompt; see `RolloutEngine`. Raises ValueError for an empty prompt."""
        sampling, stop = self._rollout.sampling, set(self._rollout.stop_ids)
        options = [
            {
                "temperature": 1.0,  # the logits have it already
                "top_p": sampling.top_p,
                "top_k": sampling.top_k,
                "seed": seed & _SEED_BITS,
                "max_tokens": max_new_tokens,
                "stop_token_ids": sorted(stop),
                "ignore_eos": True,  # only `stop_token_ids` count
                "logprobs": 0,
            }
            for seed in seeds
        ]
        answers = [request.outputs[0] for request in self._run(prompts, options)]
        return [
            Generation(list(a.token_ids), list(a.logprobs.logprobs), finished=a.token_ids[-1] in stop) for a in answers
        ]

    def logprobs(self, sequences: Sequences) -> Tensor:
        """Log-probabilities (float32, CPU) of the action tokens at the sampling temperature, (A,). Sequences have at
        least two tokens.
        """
        rows = [row.tolist() for row in torch.split(sequences.tokens_N, sequences.lengths_B.tolist())]
        # vLLM cannot but predict one token more than it is given. To give all would take one place of the context
        # more than the model may have, so the last token is what it is asked to judge as its prediction.
        options = [
            {"temperature": 0.0, "max_tokens": 1, "prompt_logprobs": 0, "logprob_token_ids": [row[-1]]} for row in rows
        ]
        values: list[float] = []
        for request in self._run([row[:-1] for row in rows], options):
            _, last = request.outputs[0].logprobs.logprobs  # of its own choice, and of the token asked for
            values += [0.0, *request.prompt_logprobs.logprobs, last]  # nothing predicts the first
        return torch.tensor(values, dtype=torch.float32)[sequences.action_N]

    def load_weights(self, buckets: Iterable[Mapping[str, Tensor]]) -> None:
        """Take over weights; see `RolloutEngine`. After an error the engine is closed: its weights are a mixture."""
        missing = set(self._shapes)
        kept: dict[str, Tensor] = {}
        try:
            if self._asleep:
                self._call(lambda llm: llm.wake_up(tags=["weights"]))
            self._on_workers("begin_weights")
            for bucket in buckets:
                for name, tensor in bucket.items():
                    if name not in self._shapes:
                        raise _wrong_weights(f"{name} is unknown")
                    if tensor.shape != self._shapes[name]:
                        raise _wrong_weights(f"{name} has shape {[*tensor.shape]} instead of {[*self._shapes[name]]}")
                self._on_workers("load_bucket", list(bucket.items()))
                missing -= bucket.keys()
                kept |= {name: bucket[name] for name in self._tied.values() if name in bucket}
            # vLLM has a head of its own also where the model's is the embedding, and would keep the old one.
            for name, twin in self._tied.items():
                if name in missing and twin in kept:
                    self._on_workers("load_bucket", [(name, kept[twin])])
                    missing.discard(name)
            if missing:
                raise _wrong_weights(f"{min(missing)} is missing")
            self._on_workers("end_weights")
            self._call(lambda llm: llm.reset_prefix_cache())  # keys and values of the old weights
        except BaseException:
            self.close()
            raise

    def sleep(self) -> None:
        """Free memory of the device until `wake`: weights move to host memory, the cache is dropped. vLLM's build for
        CPUs only drops the shared prefixes.
        """
        self._call(lambda llm: llm.sleep(level=1))
        self._asleep = True

    def wake(self) -> None:
        """End `sleep`. Weights may be loaded before."""
        self._call(lambda llm: llm.wake_up())
        self._asleep = False

    def close(self) -> None:
        """Free the device, and end the processes of tensor parallelism. Harmless when repeated."""
        llm, self._llm = self._llm, None
        if llm is not None:
            llm.llm_engine.engine_core.shutdown()

    def _run(self, prompts: Sequence[Sequence[int]], options: Sequence[Mapping[str, Any]]) -> list[Any]:
        """What vLLM makes of the prompts, in their order."""
        for index, prompt in enumerate(prompts):
            if not prompt:
                raise ValueError(f"prompt {index} is empty; a model needs at least one token to continue")
        assert not self._asleep, "the engine sleeps; wake it first"
        if not prompts:
            return []
        from vllm import SamplingParams

        requests = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        params = [SamplingParams(**own, detokenize=False, flat_logprobs=True) for own in options]
        return self._call(lambda llm: llm.generate(requests, params, use_tqdm=False))

    def _on_workers(self, method: str, *args: Any) -> None:
        self._call(lambda llm: llm.collective_rpc(method, args=args))

    def _call(self, action: Callable[[Any], _T]) -> _T:
        """Raises WorkerLost if the engine is closed, or a process of tensor parallelism died."""
        if self._llm is None:
            raise WorkerLost("the vllm engine of role rollout is closed; run again to continue")
        try:
            return action(self._llm)
        except Exception as error:
            if not getattr(self._llm.llm_engine.model_executor, "is_failed", False):
                raise
            self._llm = None  # it has shut down by itself
            raise WorkerLost(
                "the vllm engine of role rollout lost one of its tensor-parallel processes; run again to continue"
            ) from error


def _start(settings: RoleSettings, place: Place, context: int | None) -> Any:
    """The engine (vllm.LLM) with the policy's first weights."""
    assert settings.rollout is not None
    spec, model = settings.rollout.spec, settings.model
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with tempfile.TemporaryDirectory(prefix="camel-ray-vllm-") as scratch, warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)  # of torch, about vLLM's code
        try:
            from vllm import LLM
            from vllm.platforms import current_platform
        except ImportError as error:
            raise SpecError(
                f"ppo.rollout.engine is vllm, which cannot be imported on this node ({error}); install it there "
                "(docs/guide/vllm.md), or set the engine to transformers"
            ) from error
        source = model.source
        if source is None or model.config:  # vLLM reads nothing but checkpoints
            tokenizer = load_tokenizer(settings.tokenizer)
            save_model(load_causal_lm(model, tokenizer, seed=settings.seed), tokenizer, Path(scratch))
            source = scratch
        on_cpu = place.device.type == "cpu"
        options = dict[str, Any](
            model=source,
            revision=model.revision if source == model.source else None,
            trust_remote_code=model.trust_remote_code,
            skip_tokenizer_init=True,
            generation_config="vllm",  # not the checkpoint's: `generate` says all there is to say
            dtype=str(settings.dtype).removeprefix("torch."),
            seed=settings.seed,
            max_model_len=_longest(settings.rollout, context),
            logprobs_mode="raw_logprobs",
            tensor_parallel_size=spec.tensor_parallel,
            distributed_executor_backend="uni" if spec.tensor_parallel == 1 else "mp",
            worker_extension_cls="camel_ray.ppo.rollout.vllm_worker.WorkerExtension",
            gpu_memory_utilization=spec.memory_share,
            kv_cache_memory_bytes=_CPU_CACHE_BYTES if on_cpu else None,
            enforce_eager=on_cpu,  # compiling takes minutes there
            enable_sleep_mode=bool(current_platform.is_sleep_mode_available()),
            use_tqdm_on_load=False,
        )
        try:
            return LLM(**options)
        except (ValueError, NotImplementedError) as error:  # unknown architecture, no room for one sequence, ...
            raise _cannot_run(settings, error) from error


def _longest(rollout: RolloutSettings, context: int | None) -> int:
    """Most tokens of a sequence: the cache has room for at least one that long."""
    # The same with an environment: all that was said before is the prompt of a turn.
    longest = rollout.sampling.max_prompt_length + rollout.sampling.max_response_length
    return longest if context is None else min(longest, context)


def _parameters(config: PretrainedConfig, trust_remote_code: bool) -> tuple[dict[str, torch.Size], dict[str, str]]:
    """Shapes of the transformers model's weights by name, and the names of those that another weight stands for."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    return shapes, dict(model.all_tied_weights_keys or {})


def _cannot_run(settings: RoleSettings, error: Exception) -> ModelError:
    reason = " ".join(str(error).split()).rstrip(".")
    name = settings.model.source or "of `config`"
    return ModelError(f"vllm cannot run the model {name} ({reason}); set ppo.rollout.engine to transformers")


def _wrong_weights(difference: str) -> WorkerLost:
    return WorkerLost(f"role rollout got weights of another model ({difference}); run again to continue")
