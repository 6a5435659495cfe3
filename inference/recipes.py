"""Ready-made objectives of the published reasoners, by how they are trained; every option can be changed.

    deep_supervision   TRM, HRM, EqR: y at every depth step, each starting where the last ended, without its graph;
                       gradient through the last transition
    end_to_end         direct prediction, looped transformers: y once, at the end, gradient through everything
    bridged            looped flow: y at every depth step, on the guide's path from noise to y, its KL not charged

All keep the answer that a pair came with (target=fixed), as their authors do; GRAM's objective is the default of
`fit`. Chains without noise have no guide: `fit(chain, None, task, steps, objective=deep_supervision())`.
"""

from dataclasses import replace
from typing import Any

from probgram.inference.objective import ObjectiveConfig
from probgram.inference.targets import fixed


def deep_supervision(depth: int = 16, **changes: Any) -> ObjectiveConfig:
    """One optimiser step a depth step, gradient through its last transition (arXiv 2510.04871, figure 3).

    Args:
        depth: S, depth steps of a training trajectory.
        **changes: other fields of `ObjectiveConfig`.
    """
    recipe = ObjectiveConfig(depth=depth, target=fixed, carry=1.0, gradient="transition")
    return replace(recipe, **changes)


def end_to_end(**changes: Any) -> ObjectiveConfig:
    """One depth step, gradient through all its transitions (arXiv 2311.12424, section 3).

    Args:
        **changes: other fields of `ObjectiveConfig`.
    """
    return replace(ObjectiveConfig(depth=1, target=fixed, carry=1.0, gradient="step"), **changes)


def bridged(depth: int, **changes: Any) -> ObjectiveConfig:
    """Every depth step starts where the guide's fixed path is; its KL is not charged (arXiv 2609.11801).

    Args:
        depth: S, the depth steps from noise to answer: `steps` of the flow.
        **changes: other fields of `ObjectiveConfig`.
    """
    recipe = ObjectiveConfig(depth=depth, target=fixed, carry=0.0, beta=0.0, gradient="step")
    return replace(recipe, **changes)
