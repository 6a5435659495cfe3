"""Numbers of every particle at every depth step that runs are compared by: heads, energy, answers, latents."""

from typing import Any

import torch
from torch import Tensor

from probgram import state as trees
from probgram.state import widest
from probgram.trajectories import Trajectories


def quantities(run: Trajectories, task: Any = None, directions: int = 2) -> dict[str, Tensor]:
    """What R-hat is taken of, `[S, N, B]` each.

    Heads by their names (logits); "energy", the task's violations; "answer", the principal direction of the
    answers, tokens read as numbers; "direction 1" and so on, those of the states.

    Args:
        run: directions only where it kept its states.
        task: counts violations; None: no energy.
        directions: how many principal directions of the states.
    """
    found = {name: value.to(widest(value.device)) for name, value in run.heads.items()}
    if task is not None:
        violations = torch.as_tensor(task.violations(run.x, run.answers), device=run.answers.device)
        found["energy"] = violations.to(widest(violations.device))
    if run.answers.shape[-1]:
        answers = run.answers.to(widest(run.answers.device))
        found["answer"] = principal(answers, 1)[..., 0]
    if run.states is not None:
        for number, values in enumerate(principal(run.states, directions).unbind(-1), 1):
            found[f"direction {number}"] = values
    return found


def principal(states: Any, directions: int = 2) -> Tensor:
    """Coordinates of latents along the directions in which they vary most, for each problem.

    Directions are common to all depth steps and particles of a problem, and their sign is such that the element
    with the largest loading is positive.

    Args:
        states: leaves `[S, N, B, ...]`; those of floating type count.
        directions: how many; fewer where the states have fewer dimensions.

    Returns:
        `[S, N, B, directions]`, float64 (float32 on MPS).
    """
    leaves = [leaf.flatten(3) if leaf.dim() > 3 else leaf[..., None] for _, leaf in trees.leaves(states)]
    flat = torch.cat([leaf for leaf in leaves if leaf.is_floating_point()], -1)
    steps, width = flat.shape[:2]
    points = flat.to(widest(flat.device)).movedim(2, 0).flatten(1, 2)  # [B, S · N, D]
    points = points - points.mean(1, keepdim=True)
    # The smaller of two symmetric matrices has the same leading directions.
    if points.shape[2] <= points.shape[1]:
        axes = torch.linalg.eigh(points.mT @ points).eigenvectors.flip(-1)[..., :directions]  # [B, D, directions]
    else:
        axes = points.mT @ torch.linalg.eigh(points @ points.mT).eigenvectors.flip(-1)[..., :directions]
        axes = torch.nn.functional.normalize(axes, dim=1)
    sign = axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    found = points @ (axes * sign)
    # Equal points must have equal coordinates, whatever order a product was summed in: R-hat compares ranks.
    unit = 1e-9 * found.abs().amax(1, keepdim=True).clamp(min=torch.finfo(found.dtype).tiny * 1e9)
    return ((found / unit).round() * unit).unflatten(1, (steps, width)).movedim(0, 2)
