"""Multiply-adds against a count by hand."""

import pytest

from probgram import tasks
from probgram.inference.cost import multiply_adds
from probgram.models import TRM, Direct, LoopedTransformer

TASK = tasks.Queens(5)
L, D, H = 5, 16, 24
BLOCK = L * D * 3 * D + 2 * L * L * D + L * D * D + L * D * 2 * H + L * H * D  # qkv, scores and values, out, SwiGLU
READ = L * D * 5 + L * D * D + 2 * D * 2  # decoder; the heads' layer on each token and their linear map


@pytest.mark.parametrize(
    ("make", "blocks"),
    [
        (lambda **sizes: Direct.for_task(TASK, blocks=3, **sizes), 3),
        (lambda **sizes: LoopedTransformer.for_task(TASK, transitions=5, **sizes), 5 * 2),
        (lambda **sizes: TRM.for_task(TASK, refinements=4, transitions=3, **sizes), 3 * (4 + 1) * 2),
    ],
)
@pytest.mark.parametrize("depth", [1, 4])
def test_a_trajectory_costs_what_counting_by_hand_says(make, blocks, depth):
    chain = make(dim=D, heads=2, hidden=H)
    x = TASK.examples("test")[0]
    assert multiply_adds(chain, x[0], depth) == depth * (blocks * BLOCK + READ)
    assert multiply_adds(chain, x[:7], depth) == multiply_adds(chain, x[0], depth)  # of one problem
