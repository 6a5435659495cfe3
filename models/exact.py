"""Linear layers whose float32 sums do not round: to tell another model from another order of summation.

    exact = exact_sums(chain)                    the same weights; copies, so the chain stays fast
    exact_guide = exact_sums(guide)

Two backends, devices or batch sizes add up products in different orders, and a recursion, or a KL between two
means that are nearly equal, makes much of the last digit. With sums that do not round what is left is one rounding
of each output. Everything stays in float32. Tried on CPUs; where a GPU takes fewer bits for float32 (TF32, off
unless asked for), sums round again.

Numbers are split into two groups of leading bits and the rest. Products of such groups, and sums of those, fit into
the 24 bits of float32 and are exact in any order; what has the rest in it is smaller by so many bits, and so is its
rounding. That makes seven products of one. Source: Ozaki, Ogita, Oishi and Rump, "Error-free transformations of
matrix multiplication by using fast routines of matrix multiplication and its applications", Numerical Algorithms 59
(2012), section 3; the bias by Knuth's two-sum, The Art of Computer Programming 2, section 4.2.2.
"""

import copy
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


class ExactLinear(nn.Linear):
    """`nn.Linear` with sums that do not round, in float32; in other precisions and under autocast just the same.

    Gradients are those of the plain layer, at the exact outputs.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map `[..., inputs]` to `[..., outputs]`."""
        plain = super().forward(x)
        if plain.dtype != torch.float32:
            return plain
        with torch.no_grad():
            (lead, middle, low), (lead_w, middle_w, low_w) = _slices(x), _slices(self.weight)
            rest = _product([lead, middle], [middle_w, lead_w])
            rest += _product([lead, middle, low], [low_w, middle_w + low_w, self.weight])
            exact, lost = _two_sum(_product([lead], [lead_w]), self.bias)
            correction = exact + (rest + lost) - plain
        return plain + correction


def exact_sums(module: Module) -> Module:
    """A copy of a chain or guide whose linear layers do not round their float32 sums.

    Args:
        module: any module; its `nn.Linear` layers are what changes.

    Returns:
        The copy, with its own weights of the same names and values.
    """
    copied = copy.deepcopy(module)
    for layer in copied.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = ExactLinear  # the same parameters and hooks under the same name
    return copied


def _product(x: list[Tensor], weight: list[Tensor]) -> Tensor:
    """The sum of x Wᵀ over pairs."""
    return F.linear(torch.cat(x, -1), torch.cat(weight, -1))


def _two_sum(x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | float]:
    """The rounded x + bias, and what rounding lost."""
    if bias is None:
        return x, 0.0
    total = x + bias
    added = total - x
    return total, (x - (total - added)) + (bias - added)


def _slices(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers `[..., inputs]` as a sum of three: two of so few bits that products of a row sum exactly; the rest.

    Bits are counted from the largest number of the row.
    """
    bits = (24 - (x.shape[-1] - 1).bit_length()) // 2
    _, exponent = torch.frexp(x.abs().amax(-1, keepdim=True))
    exponent = exponent.clamp(min=2 * bits - 125)  # what is smaller has no bits to spare: no unit may be 0
    unit = torch.ldexp(torch.ones_like(x[..., :1]), exponent - bits)
    lead = (x / unit).round() * unit
    unit = unit / 2**bits
    middle = ((x - lead) / unit).round() * unit
    return lead, middle, x - lead - middle
