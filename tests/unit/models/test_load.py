"""Loading and saving models: what a user can get wrong is one clear sentence."""

import pytest
import torch
from safetensors.torch import load_file

from camel_ray.api.model import ModelSpec
from camel_ray.data.tokenizer import train_tokenizer
from camel_ray.errors import ModelError
from camel_ray.models.load import (
    check_length,
    load_causal_lm,
    load_config,
    load_reward_model,
    load_tokenizer,
    save_model,
)

LLAMA = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["some words to learn from"], vocab_size=300)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tokenizer):
    directory = tmp_path_factory.mktemp("model")
    save_model(load_causal_lm(ModelSpec(config=LLAMA), tokenizer, seed=1), tokenizer, directory)
    return directory


def copied(saved, tmp_path):
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_the_vocabulary_and_special_tokens_come_from_the_tokenizer(tokenizer):
    config = load_config(ModelSpec(config=LLAMA), tokenizer)
    assert config.vocab_size == len(tokenizer)
    assert (config.eos_token_id, config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)


def test_fresh_weights_depend_on_the_seed_only(tokenizer):
    one, same, other = (load_causal_lm(ModelSpec(config=LLAMA), tokenizer, seed=s) for s in (1, 1, 2))
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(one.state_dict()[name], same.state_dict()[name])
    assert not torch.equal(one.state_dict()[name], other.state_dict()[name])


def test_a_saved_model_comes_back_and_holds_no_pickle(saved, tokenizer):
    model = load_causal_lm(ModelSpec(source=str(saved)), load_tokenizer(str(saved)), seed=5)
    fresh = load_causal_lm(ModelSpec(config=LLAMA), tokenizer, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), fresh.state_dict().values(), strict=True))
    assert not [f.name for f in saved.iterdir() if f.suffix in (".bin", ".pt", ".pth", ".pkl")]


def test_weights_of_a_sharded_model_are_given(saved, tokenizer, tmp_path):
    model = load_causal_lm(ModelSpec(source=str(saved)), tokenizer, seed=1)
    state = {name: torch.full_like(weight, 0.5) for name, weight in model.state_dict().items()}
    save_model(model, tokenizer, tmp_path / "out", state_dict=state)
    assert all(bool((w == 0.5).all()) for w in load_file(tmp_path / "out" / "model.safetensors").values())


def test_a_reward_model_takes_the_backbone_of_a_causal_one(saved, tokenizer, tmp_path):
    causal = load_causal_lm(ModelSpec(source=str(saved)), tokenizer, seed=1)
    reward = load_reward_model(ModelSpec(source=str(saved)), tokenizer, seed=3)
    assert torch.equal(reward.model.embed_tokens.weight, causal.model.embed_tokens.weight)
    assert reward.score.weight.shape == (1, 32)
    assert torch.equal(
        reward.score.weight, load_reward_model(ModelSpec(source=str(saved)), tokenizer, seed=3).score.weight
    )
    save_model(reward, tokenizer, tmp_path)
    again = load_reward_model(ModelSpec(source=str(tmp_path)), tokenizer, seed=99)
    assert torch.equal(again.score.weight, reward.score.weight)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**LLAMA, "model_type": "lama"}, "model_type 'lama' is unknown. Did you mean 'llama'?"),
        ({"hidden_size": 32}, "model_type None is unknown"),
        ({**LLAMA, "hiden_size": 3}, "model.config.hiden_size: llama has no such setting. Did you mean 'hidden_size'?"),
        ({**LLAMA, "hidden_size": 30}, "hidden"),
        ({**LLAMA, "vocab_size": 100}, "tokens, but the model of `config` only knows 100; use the tokenizer"),
    ],
)
def test_a_wrong_configuration_is_one_sentence(tokenizer, config, message):
    with pytest.raises(ModelError) as caught:
        load_causal_lm(ModelSpec(config=config), tokenizer, seed=0)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_tokenizer_that_does_not_fit_the_model(saved):
    larger = train_tokenizer(["abc " * 50], vocab_size=310, special_tokens=[f"<x{i}>" for i in range(9)])
    assert len(larger) > 261
    with pytest.raises(ModelError, match="only knows 261; use the tokenizer the model was trained with"):
        load_causal_lm(ModelSpec(source=str(saved)), larger, seed=0)


def test_a_pickle_is_refused(saved, tokenizer, tmp_path):
    directory = copied(saved, tmp_path)
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model.bin is a pickle, .* convert the model to safetensors"):
        load_causal_lm(ModelSpec(source=str(directory)), tokenizer, seed=0)


@pytest.mark.parametrize("keep", [0, 4, 200, -100])
def test_truncated_weights_are_refused(saved, tokenizer, tmp_path, keep):
    directory = copied(saved, tmp_path)
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"model.safetensors is corrupt .* make or download the model again"):
        load_causal_lm(ModelSpec(source=str(directory)), tokenizer, seed=0)


def test_missing_weights_configuration_and_tokenizer_are_named(saved, tokenizer, tmp_path):
    with pytest.raises(ModelError, match="no tokenizer can be loaded from"):
        load_tokenizer(str(tmp_path))
    with pytest.raises(ModelError, match="holds no readable model configuration"):
        load_causal_lm(ModelSpec(source=str(tmp_path)), tokenizer, seed=0)
    directory = copied(saved, tmp_path)
    (directory / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"has no model weights \(\*.safetensors\)"):
        load_causal_lm(ModelSpec(source=str(directory)), tokenizer, seed=0)


def test_entries_of_config_override_a_loaded_one(saved, tokenizer):
    config = load_config(ModelSpec(source=str(saved), config={"max_position_embeddings": 32}), tokenizer)
    assert config.max_position_embeddings == 32
    with pytest.raises(ModelError, match="max_position_embedings: llama has no such setting"):
        load_config(ModelSpec(source=str(saved), config={"max_position_embedings": 32}), tokenizer)


def test_a_sequence_longer_than_the_context_is_refused(saved, tokenizer):
    config = load_config(ModelSpec(source=str(saved)), tokenizer)
    check_length(config, 64, field="maxLength")
    with pytest.raises(ModelError, match=r"maxLength is 65 tokens, but the model's context is 64"):
        check_length(config, 65, field="maxLength")


def test_a_masked_model_sees_both_sides(tokenizer):
    bert = {
        "model_type": "bert",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
    }
    model = load_causal_lm(ModelSpec(config=bert), tokenizer, seed=0, masked=True).eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    changed = torch.tensor([[5, 6, 7, 9]])
    assert not torch.allclose(model(ids).logits[0, 0], model(changed).logits[0, 0])
