"""What a trajectory costs in multiply-adds, the one measure that compares chains with different f; on what it runs.

Counted are matrix products, convolutions and attention, as PyTorch dispatches them; elementwise work is not.
"""

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from probgram.chain import Chain
from probgram.inference.sampling import as_problems, sample


def multiply_adds(chain: Chain, x: Any, depth: int, width: int = 1) -> int:
    """Count the multiply-adds of a problem: its encoding, then S depth steps, readout and heads after each of them.

    Args:
        chain: any chain.
        x: a problem `[L]`, or problems `[B, L]` of which the first is counted.
        depth: S, depth steps.
        width: N, trajectories; what is encoded once is counted once.

    Returns:
        Multiply-adds, half of the floating-point operations.

    Raises:
        ValueError: as `sample`.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        sample(chain, as_problems(x, chain)[:1], width=width, depth=depth)
    return counter.get_total_flops() // 2


def machine(chain: Chain) -> dict[str, Any]:
    """The kind of device that a chain's weights are on, and PyTorch's threads."""
    return {
        "device": next((p.device.type for p in chain.parameters()), "cpu"),
        "threads": torch.get_num_threads(),
    }
