"""What camel-ray adds to the workers of a vLLM engine: weights in parts, and logits at the sampling temperature.

vLLM mixes `WorkerExtension` into its worker class by name, in every process of a tensor-parallel engine; `VllmEngine`
calls it through `collective_rpc`. Nothing else imports this module, since it needs vllm.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from vllm.config import set_current_vllm_config
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload


class WorkerExtension:
    """Methods of a vLLM worker, which has `vllm_config` and `model_runner`."""

    vllm_config: Any
    model_runner: Any

    def scale_logits(self, temperature: float) -> None:
        """Divide all logits by `temperature` before anything reads them.

        PPO needs log-probabilities at the temperature but before top-p and top-k, for drawn and for given tokens.
        vLLM has them before the temperature or after the cuts, and for given tokens only without temperature. With the
        temperature in the model, and 1 in the sampling parameters, its raw log-probabilities are the right ones.
        """
        model = self.model_runner.get_model()
        compute_logits = model.compute_logits

        def scaled(*args: Any, **options: Any) -> Tensor | None:
            logits: Tensor | None = compute_logits(*args, **options)
            return None if logits is None else logits.float() / temperature  # None: another rank samples

        model.compute_logits = scaled

    def begin_weights(self) -> None:
        """Prepare for weights as a checkpoint has them. Kernels keep theirs packed: plain loading would miss those."""
        with set_current_vllm_config(self.vllm_config):
            initialize_layerwise_reload(self.model_runner.get_model())

    def load_bucket(self, weights: list[tuple[str, Tensor]]) -> None:
        """Load some weights, by their names in a checkpoint. A layer is packed once it is complete."""
        with set_current_vllm_config(self.vllm_config):
            self.model_runner.get_model().load_weights(weights)

    def end_weights(self) -> None:
        """Pack the rest. The model cannot run between `begin_weights` and this."""
        with set_current_vllm_config(self.vllm_config):
            finalize_layerwise_reload(self.model_runner.get_model(), self.model_runner.model_config)
