"""Ready-made objectives, by what is trained; every option can be changed.

    default            what `fit` takes where none is given
    generation         from a blank problem: one answer a trajectory from start to end, the plain ELBO
    deep_supervision   TRM, HRM, EqR: y at every depth step, each starting where the last ended, without its graph;
                       gradient through the last transition
    end_to_end         direct prediction, looped transformers: y once, at the end, gradient through everything
    bridged            looped flow: y at every depth step, on the guide's path from noise to y, its KL not charged

The published ones keep the answer that a pair came with (target=fixed), as their authors do. Chains without noise
have no guide: `fit(chain, None, task, steps, objective=deep_supervision())`.
"""

from dataclasses import replace
from typing import Any

from probgram.inference.objective_config import ObjectiveConfig


def default(guide: Any, data: Any, depth: int = 8) -> ObjectiveConfig:
    """What `fit` takes where no objective is given.

    Args:
        guide: None trains on prior draws alone, towards the nearest known answer.
        data: training data; a task with `grouped = False` (generation) keeps one answer a trajectory.
        depth: S, depth steps of a training trajectory.
    """
    if guide is None:
        return ObjectiveConfig(depth=depth, target="nearest", carry=1.0)
    return ObjectiveConfig(depth=depth) if getattr(data, "grouped", True) else generation(depth)


def generation(depth: int = 8, **changes: Any) -> ObjectiveConfig:
    """The ELBO of the training program: the guide's draws carry on, nothing but them is charged.

    A prior draw that has settled on one answer cannot be told to become another, so carry is 0; with beta below 1
    the guide's draws hold what the prior's do not, and beta = 1 at once leaves the guide unused: it warms up.

    Args:
        depth: S, depth steps of a training trajectory.
        **changes: other fields of `ObjectiveConfig`.
    """
    recipe = ObjectiveConfig(depth=depth, target="fixed", carry=0.0, beta=1.0, warm_up=300)
    return replace(recipe, **changes)


def deep_supervision(depth: int = 16, **changes: Any) -> ObjectiveConfig:
    """One optimiser step a depth step, gradient through its last transition (arXiv 2510.04871, figure 3).

    Args:
        depth: S, depth steps of a training trajectory.
        **changes: other fields of `ObjectiveConfig`.
    """
    recipe = ObjectiveConfig(depth=depth, target="fixed", carry=1.0, gradient="transition")
    return replace(recipe, **changes)


def end_to_end(**changes: Any) -> ObjectiveConfig:
    """One depth step, gradient through all its transitions (arXiv 2311.12424, section 3).

    Args:
        **changes: other fields of `ObjectiveConfig`.
    """
    return replace(ObjectiveConfig(depth=1, target="fixed", carry=1.0, gradient="step"), **changes)


def bridged(depth: int, **changes: Any) -> ObjectiveConfig:
    """Every depth step starts where the guide's fixed path is; its KL is not charged (arXiv 2609.11801).

    Args:
        depth: S, the depth steps from noise to answer: `steps` of the flow.
        **changes: other fields of `ObjectiveConfig`.
    """
    recipe = ObjectiveConfig(depth=depth, target="fixed", carry=0.0, beta=0.0, gradient="step")
    return replace(recipe, **changes)
