"""Which objective a training takes where none is named."""

import pytest

from probgram import fit, tasks
from probgram.inference import recipes
from probgram.inference.objective import ObjectiveConfig
from probgram.inference.targets import nearest
from probgram.models import GRAM, GRAMGuide


def test_a_chain_with_a_guide_takes_the_measured_defaults_at_the_depth_asked_for() -> None:
    assert recipes.default("a guide", tasks.Queens(5), depth=3) == ObjectiveConfig(depth=3)


def test_a_chain_without_a_guide_trains_on_prior_draws() -> None:
    assert recipes.default(None, tasks.Queens(5)) == ObjectiveConfig(target=nearest, carry=1.0)


def test_a_generator_keeps_one_answer_a_trajectory_and_pays_for_all_the_guide_says() -> None:
    chosen = recipes.default("a guide", tasks.from_name("queens6-blank"))
    assert (chosen.target, chosen.carry, chosen.beta, chosen.kl) == ("fixed", 0.0, 1.0, "every")
    assert chosen.warm_up > 0


@pytest.mark.parametrize(("name", "carry"), [("queens5", 0.7), ("queens5-blank", 0.0)])
def test_fit_takes_the_default(name: str, carry: float, monkeypatch) -> None:
    from probgram.inference import svi

    seen = []
    monkeypatch.setattr(svi, "default", lambda *given: seen.append(recipes.default(*given)) or seen[-1])
    task = tasks.from_name(name)
    chain = GRAM.for_task(task, dim=16, heads=2, hidden=16)
    fit(chain, GRAMGuide(chain), task, steps=1, batch=4, progress=False, validate_every=0)
    assert seen[0].carry == carry
