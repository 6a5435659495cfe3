"""Linear layers whose float32 sums do not round: the twin of `probgram.models.exact`, which says why and how."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from probgram.models.on_jax.blocks import Linear

Module = TypeVar("Module")


class ExactLinear(Linear):
    """`Linear` with sums that do not round, in float32; in other precisions just the same.

    Gradients are those of the plain layer, at the exact outputs.
    """

    def __init__(self, layer: Linear) -> None:
        self.weight, self.bias = layer.weight, layer.bias

    def __call__(self, x: Array) -> Array:
        """Map `[..., inputs]` to `[..., outputs]`."""
        plain = super().__call__(x)
        if plain.dtype != jnp.float32:
            return plain
        x, weight, bias = jax.lax.stop_gradient((x, self.weight, self.bias))
        (lead, middle, low), (lead_w, middle_w, low_w) = _slices(x), _slices(weight)
        rest = _product([lead, middle], [middle_w, lead_w])
        rest += _product([lead, middle, low], [low_w, middle_w + low_w, weight])
        exact, lost = _two_sum(_product([lead], [lead_w]), bias)
        return plain + (exact + (rest + lost) - jax.lax.stop_gradient(plain))


def exact_sums(module: Module) -> Module:
    """A copy of a chain or guide whose linear layers do not round their float32 sums.

    Args:
        module: any module; its `Linear` layers are what changes.

    Returns:
        The copy; it shares the weights' arrays.
    """

    def exact(layer: Any) -> Any:
        return ExactLinear(layer) if type(layer) is Linear else layer

    return jax.tree.map(exact, module, is_leaf=lambda layer: isinstance(layer, Linear))


def _product(x: list[Array], weight: list[Array]) -> Array:
    """The sum of x Wᵀ over pairs, in float32 where a device would take fewer bits by itself."""
    return jnp.matmul(jnp.concatenate(x, -1), jnp.concatenate(weight, -1).T, precision=jax.lax.Precision.HIGHEST)


def _two_sum(x: Array, bias: Array | None) -> tuple[Array, Array | float]:
    """The rounded x + bias, and what rounding lost."""
    if bias is None:
        return x, 0.0
    total = x + bias
    added = total - x
    return total, (x - (total - added)) + (bias - added)


def _slices(x: Array) -> tuple[Array, Array, Array]:
    """Numbers `[..., inputs]` as a sum of three: two of so few bits that products of a row sum exactly; the rest.

    Bits are counted from the largest number of the row.
    """
    bits = (24 - (x.shape[-1] - 1).bit_length()) // 2
    _, exponent = jnp.frexp(jnp.abs(x).max(-1, keepdims=True))
    exponent = jnp.maximum(exponent, 2 * bits - 125)  # what is smaller has no bits to spare: no unit may be 0
    unit = jnp.ldexp(jnp.ones_like(x[..., :1]), exponent - bits)
    lead = jnp.round(x / unit) * unit
    unit = unit / 2**bits
    middle = jnp.round((x - lead) / unit) * unit
    return lead, middle, x - lead - middle
