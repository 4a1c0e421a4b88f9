"""The DeepSpeed configuration, and how batches divide over workers."""

import pytest

from camel_ray.training.zero import accumulation_steps, deepspeed_config


def config(**changes):
    values = {
        "stage": 2, "offload": "none", "precision": "fp32", "batch_size": 32, "micro_batch_size": 4, "workers": 2,
        "max_grad_norm": 0.5,
    }  # fmt: skip
    return deepspeed_config(**{**values, **changes})


def test_batch_numbers_multiply():
    made = config()
    assert made["train_batch_size"] == 32
    assert made["train_micro_batch_size_per_gpu"] == 4
    assert made["gradient_accumulation_steps"] == 4
    assert made["gradient_clipping"] == 0.5


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="batch size 12 is not a multiple of 2 workers x 4"):
        accumulation_steps(batch_size=12, micro_batch_size=4, workers=2)
    with pytest.raises(ValueError, match="multiple"):
        accumulation_steps(batch_size=4, micro_batch_size=8, workers=1)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_only_stage_3_shards_parameters(stage):
    zero = config(stage=stage)["zero_optimization"]
    assert zero["stage"] == stage
    assert ("stage3_gather_16bit_weights_on_model_save" in zero) == (stage == 3)


def test_offload_moves_the_optimizer_and_with_all_also_the_parameters():
    assert "offload_optimizer" not in config()["zero_optimization"]
    assert config(offload="optimizer")["zero_optimization"]["offload_optimizer"] == {"device": "cpu"}
    everything = config(stage=3, offload="all")["zero_optimization"]
    assert everything["offload_optimizer"] == everything["offload_param"] == {"device": "cpu"}


def test_nothing_in_it_compiles():
    # An "optimizer" block would make DeepSpeed build its own CPU Adam from C++.
    assert "optimizer" not in config(offload="optimizer")
    assert config(offload="optimizer")["zero_force_ds_cpu_optimizer"] is False


def test_precision_decides_bf16():
    assert config(precision="bf16")["bf16"] == {"enabled": True}
    assert config(precision="fp32")["bf16"] == {"enabled": False}
