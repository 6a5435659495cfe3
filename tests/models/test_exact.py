"""`exact_sums`: float32 products whose sums do not round, on either backend, and nothing else changed."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from probgram.models import GRAM, GRAMGuide, exact_sums
from probgram.models.exact import ExactLinear

INPUTS = (1, 7, 128, 344, 2_000)
SIZES: dict[str, Any] = dict(length=5, input_size=6, output_size=6, dim=8, heads=2, blocks=1, hidden=8)


def layer_and_inputs(inputs: int, bias: bool) -> tuple[nn.Linear, torch.Tensor]:
    """Tokens with one large feature in common, and one that is zero: sums cancel, large numbers meet small ones."""
    torch.manual_seed(inputs)
    layer, x = nn.Linear(inputs, 64, bias=bias), torch.randn(3, 100, inputs)
    x[..., 0] += 20
    x[0, 0] = 0
    return layer, x


def in_float64(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x.double(), layer.weight.double(), None if layer.bias is None else layer.bias.double())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("inputs", INPUTS)
def test_sums_are_rounded_once(inputs: int, bias: bool) -> None:
    """To half of the last digit, and the rounding of the rest: of a random sum, smaller by a slice's bits."""
    layer, x = layer_and_inputs(inputs, bias)
    exact, found = in_float64(layer, x), exact_sums(layer)(x)
    assert found.dtype == torch.float32 and found.shape == exact.shape
    half_a_digit = 2.0**-25 * 2 ** exact.abs().log2().ceil().clamp(min=-126)
    largest = x.abs().amax(-1, keepdim=True) * layer.weight.abs().amax(-1)
    bits = (24 - (inputs - 1).bit_length()) // 2
    assert ((found - exact).abs() <= half_a_digit + inputs**0.5 * 2.0 ** -(24 + bits) * largest).all()
    if inputs > 100:  # a plain layer is off by many digits
        assert ((layer(x) - exact).abs() > 4 * half_a_digit).double().mean() > 0.05


@pytest.mark.parametrize("inputs", [1, 16, 128])
def test_tiny_numbers_and_zeros_stay_finite(inputs: int) -> None:
    """Where a slice's unit would underflow: plain results to the last digit that float32 has there."""
    layer, x = layer_and_inputs(inputs, True)
    for scale in (1e-20, 1e-30, 1e-36, 1e-44, 0.0):
        for tiny, row in ((layer, x * scale), (scaled(layer, scale), x)):
            torch.testing.assert_close(exact_sums(tiny)(row), tiny(row), rtol=1e-4, atol=1e-35)


def scaled(layer: nn.Linear, scale: float) -> nn.Linear:
    """A layer with tiny weights."""
    copied = copy.deepcopy(layer)
    copied.weight.data *= scale
    return copied


def test_gradients_are_those_of_the_plain_layer() -> None:
    layer, x = layer_and_inputs(128, True)
    x.requires_grad_()
    exact, direction = exact_sums(layer), torch.randn(3, 100, 64)
    wanted = torch.autograd.grad((layer(x) * direction).sum(), [x, layer.weight, layer.bias])
    found = torch.autograd.grad((exact(x) * direction).sum(), [x, exact.weight, exact.bias])
    assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))


def test_other_precisions_are_left_as_they_are() -> None:
    layer, x = layer_and_inputs(128, True)
    exact = exact_sums(layer)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(exact(x), layer(x)) and exact(x).dtype == torch.bfloat16
    assert torch.equal(exact.double()(x.double()), layer.double()(x.double()))


def test_a_chain_and_its_guide_are_copied_with_every_layer() -> None:
    chain = GRAM.from_configuration(SIZES | dict(refinements=1, transitions=1))
    guide = GRAMGuide(chain)
    for module in (chain, guide):
        exact = exact_sums(module)
        layers = [m for m in exact.modules() if isinstance(m, nn.Linear)]
        assert layers and all(type(layer) is ExactLinear for layer in layers)
        assert not any(isinstance(m, ExactLinear) for m in module.modules())
        assert all(torch.equal(v, exact.state_dict()[k]) for k, v in module.state_dict().items())
        assert exact.state_dict().keys() == module.state_dict().keys()


@pytest.mark.parametrize("bias", [True, False])
def test_jax_has_the_same_sums(bias: bool) -> None:
    """All but a few of its outputs are PyTorch's, bit for bit, where less than half of the plain ones are."""
    eqx = pytest.importorskip("equinox", reason="needs probgram[jax]")
    import jax
    import jax.numpy as jnp

    from probgram.models import on_jax
    from probgram.models.on_jax.blocks import Linear

    layer, x = layer_and_inputs(344, bias)
    weights = [jnp.asarray(p.detach().numpy()) for p in layer.parameters()]
    twin = Linear(344, 64, jax.random.key(0), bias=bias)
    twin = eqx.tree_at(lambda m: [m.weight, m.bias][: len(weights)], twin, weights)
    run = eqx.filter_jit(lambda layer, x: layer(x))
    exact, plain = exact_sums(layer)(x).detach().numpy(), layer(x).detach().numpy()
    assert (np.asarray(run(on_jax.exact_sums(twin), x.numpy())) == exact).mean() > 0.98
    assert (np.asarray(run(twin, x.numpy())) == plain).mean() < 0.5

    tiny = run(on_jax.exact_sums(twin), 1e-34 * x.numpy())
    np.testing.assert_allclose(tiny, run(twin, 1e-34 * x.numpy()), rtol=1e-4, atol=1e-35)

    def loss(layer: Any) -> Any:
        return (layer(x.numpy()) ** 2).sum()

    found, wanted = (eqx.filter_jit(eqx.filter_grad(loss))(m) for m in (on_jax.exact_sums(twin), twin))
    np.testing.assert_allclose(found.weight, wanted.weight, rtol=1e-4, atol=1e-2)
    with jax.enable_x64(True):
        twin = jax.tree.map(lambda leaf: leaf.astype("float64"), twin)
        np.testing.assert_array_equal(on_jax.exact_sums(twin)(x.double().numpy()), twin(x.double().numpy()))


def test_a_chain_in_jax_is_copied_with_every_layer() -> None:
    pytest.importorskip("equinox", reason="needs probgram[jax]")
    import jax

    from probgram.models import on_jax
    from probgram.models.on_jax.blocks import Linear
    from probgram.models.on_jax.exact import ExactLinear as ExactTwin

    chain = on_jax.GRAM.from_configuration(SIZES | dict(refinements=1, transitions=1))
    for module in (chain, on_jax.GRAMGuide(chain)):
        leaves = jax.tree.leaves(on_jax.exact_sums(module), is_leaf=lambda m: isinstance(m, Linear))
        layers = [leaf for leaf in leaves if isinstance(leaf, Linear)]
        assert layers and all(type(layer) is ExactTwin for layer in layers)
