"""What is made of trained GRAM weights: the ablations, and wider noise, as PyTorch makes them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("numpyro", reason="needs probgram[jax]")

import jax

from probgram import checkpoint, models
from probgram.models import on_jax

SIZES = dict(
    length=5, input_size=6, output_size=6, dim=8, heads=2, blocks=1, hidden=8, refinements=1, transitions=1
)
MADE: dict[str, Any] = {
    "without mean": lambda side, chain: side.without(chain, mean=False),
    "without noise": lambda side, chain: side.without(chain, noise=False),
    "widened": lambda side, chain: side.widened(chain, 1.5),
    "widened at first": lambda side, chain: side.widened(chain, 1.5, steps=2),
}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    torch.manual_seed(0)
    chain = models.GRAM.from_configuration(SIZES)
    for parameter in chain.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    path: Path = tmp_path_factory.mktemp("weights") / "gram.safetensors"
    checkpoint.save_chain(path, chain)
    return models.GRAM.from_pretrained(path), on_jax.GRAM.from_pretrained(path)


@pytest.mark.parametrize("name", list(MADE))
def test_the_prior_of_what_is_made_is_that_of_pytorch(both: tuple[Any, Any], name: str) -> None:
    x = np.random.default_rng(0).integers(6, size=(3, 5))
    chain, twin = (MADE[name](side, c) for side, c in zip((models, on_jax), both, strict=True))
    context, twin_context = chain.encode(torch.from_numpy(x)), twin.encode(x)
    for t in range(3):
        law = chain.prior(chain.propose(chain.initial(context), context, t), t).base_dist
        twin_law = jax.jit(lambda c, t: twin.prior(twin.propose(twin.initial(c), c, t), t))(twin_context, t)
        twin_law = getattr(twin_law, "base_dist", twin_law)
        if name == "without noise":
            np.testing.assert_allclose(twin_law.v, law.v.detach(), atol=1e-5)
        else:
            np.testing.assert_allclose(twin_law.loc, law.loc.detach(), atol=1e-5)
            np.testing.assert_allclose(twin_law.scale, law.scale.detach(), atol=1e-5)
    assert twin.homogeneous == chain.homogeneous
    assert twin.config == chain.config != both[1].config  # and what it was made of is left as it was
    assert both[1].mu is not None and both[1].sigma is not None


def test_what_cannot_be_widened_is_one_clear_sentence(both: tuple[Any, Any]) -> None:
    with pytest.raises(ValueError, match="factor must be above 0 and finite, got 0"):
        on_jax.widened(both[1], 0.0)
    with pytest.raises(ValueError, match="has none to widen"):
        on_jax.widened(on_jax.without(both[1], noise=False), 1.5)
