"""Linear layers on oneDNN give what plain ones give, forward and backward, and change nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from camel_ray.models import cpu_linear
from camel_ray.models.cpu_linear import OneDnnLinear, packed_weights, speed_up_linear_layers

SHAPES = [(5, 8, 24), (7, 24, 8), (3, 4, 4)]


@pytest.fixture(autouse=True)
def slow_mkl(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine is."""
    monkeypatch.setattr(cpu_linear, "_mkl_is_slow", lambda: True)


def pair(inputs: int, outputs: int, *, bias: bool) -> tuple[nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    plain = nn.Linear(inputs, outputs, bias=bias)
    fast = nn.Linear(inputs, outputs, bias=bias)
    fast.load_state_dict(plain.state_dict())
    speed_up_linear_layers(fast)
    assert type(fast) is OneDnnLinear and type(plain) is nn.Linear
    return plain, fast


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), SHAPES)
def test_values_and_gradients_are_those_of_a_plain_layer(rows: int, inputs: int, outputs: int, bias: bool) -> None:
    plain, fast = pair(inputs, outputs, bias=bias)
    x = torch.randn(2, rows, inputs)
    gradients = []
    for layer in (plain, fast):
        own = x.clone().requires_grad_()
        (layer(own).sin() * torch.arange(outputs)).sum().backward()
        gradients.append([own.grad, *(p.grad for p in layer.parameters())])
    for wanted, got in zip(*gradients, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), plain(x), rtol=1e-5, atol=1e-6)


def test_frozen_weights_pass_the_gradient_on_and_get_none() -> None:
    plain, fast = pair(8, 24, bias=True)
    fast.requires_grad_(False)
    x = torch.randn(3, 8, requires_grad=True)
    fast(x).sum().backward()
    assert fast.weight.grad is None and fast.bias.grad is None and x.grad is not None
    torch.testing.assert_close(x.grad, plain.weight.sum(0).expand(3, -1), rtol=1e-5, atol=1e-6)


def test_packed_weights_last_as_long_as_the_body_and_give_the_same() -> None:
    plain, fast = pair(8, 24, bias=True)
    x = torch.randn(3, 8)
    with torch.no_grad(), packed_weights(fast):
        assert "packed" in fast.__dict__ and set(fast.state_dict()) == {"weight", "bias"}
        torch.testing.assert_close(fast(x), plain(x), rtol=1e-5, atol=1e-6)
    assert "packed" not in fast.__dict__


def test_changed_weights_are_used_at_once() -> None:
    _, fast = pair(4, 4, bias=False)
    x = torch.ones(1, 4)
    with torch.no_grad():
        fast.weight.data.zero_()
        assert fast(x).tolist() == [[0.0] * 4]


def test_other_types_are_left_to_torch() -> None:
    _, fast = pair(8, 24, bias=True)
    fast.to(torch.bfloat16)
    x = torch.randn(3, 8, dtype=torch.bfloat16)
    torch.testing.assert_close(fast(x), nn.functional.linear(x, fast.weight, fast.bias))
    with torch.no_grad(), packed_weights(fast):
        assert fast(x).dtype == torch.bfloat16


def test_nothing_changes_where_mkl_is_as_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_linear, "_mkl_is_slow", lambda: False)
    layer = nn.Linear(2, 2)
    speed_up_linear_layers(layer)
    assert type(layer) is nn.Linear
