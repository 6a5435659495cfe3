"""What the noise says of known answers: a table of tokens, or answer by answer, is the same.

That it is the sum of `targets` is tested by hand with the objective that asks for it, in test_objective.py.
"""

import pytest
import torch
from torch import Tensor

from probgram.inference import attribution
from probgram.inference.objective import Objective, ObjectiveConfig, Rollout
from probgram.models import GRAM, GRAMConfig, GRAMGuide


class AskedByAnswer(GRAMGuide):
    """The same densities, of which nobody knows that they have factors."""

    token_values = None


@pytest.mark.parametrize(
    ("named", "padded", "at_once"), [(0, False, 8), (2, False, 8), (0, True, 8), (0, False, 1)]
)
def test_a_guide_asked_by_token_says_what_it_says_answer_by_answer(
    named: int, padded: bool, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three values of a token, 27, 1 and 20 answers; a token for the task, padding, three answers at a time."""
    config = GRAMConfig(4, 3, 3, dim=8, heads=2, blocks=1, hidden=8, refinements=1, transitions=2, tasks=named)
    x, answers = torch.zeros(3, 4 + bool(named), dtype=torch.long), torch.zeros(3, 27, 4, dtype=torch.long)
    answers[..., :3] = torch.cartesian_prod(*[torch.arange(3)] * 3)
    if padded:
        x[0, -1], answers[0, :, -1] = -1, -1
    begin = Rollout(x, answers, torch.tensor([27, 1, 20]), torch.zeros(2, 3).long(), torch.zeros(3).long())
    by_token, asked = attribution._by_token, []
    monkeypatch.setattr(attribution, "_by_token", lambda *given: asked.append(1) or by_token(*given))
    monkeypatch.setattr(attribution, "AT_ONCE", at_once)
    found = []
    for kind in (GRAMGuide, AskedByAnswer):
        torch.manual_seed(0)
        chain = GRAM(config)
        guide = kind(chain)
        with torch.no_grad():  # layers that start at zero would hide what y says
            for parameter in (*chain.parameters(), *guide.parameters()):
                parameter.add_(0.3 * torch.randn_like(parameter))
        objective, rollout = Objective(chain, guide, ObjectiveConfig(particles=2)), begin
        for _ in range(2):
            rollout = objective(rollout).rollout
        found.append(rollout)
    assert len(asked) == 2
    assert found[0].belief is not None and found[1].belief is not None and bool(found[0].belief[:, 0].std(-1).all())
    largest = float(found[1].belief.abs().max())
    torch.testing.assert_close(found[0].belief, found[1].belief, rtol=0, atol=1e-5 * largest)
    assert torch.equal(found[0].target, found[1].target)


def test_a_guide_whose_noise_sees_more_of_y_is_asked_answer_by_answer() -> None:
    class Other(GRAMGuide):
        def encode(self, y: Tensor) -> Tensor:
            return super().encode(y).mean(-2, keepdim=True)

    chain = GRAM(GRAMConfig(4, 3, 3, dim=8, heads=2))
    assert GRAMGuide(chain).token_values == 3
    assert Other(chain).token_values is None
