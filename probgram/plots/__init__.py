"""Pictures: each takes data and returns the axes it drew on, new ones unless `axis=` says where.

Answers keep their letter and colour across the pictures of one problem: A is the right answer with the largest
share. Colours are told apart by colour-blind readers too, and never alone: letters, markers, rings and dashes say
the same. `matplotlib` is imported when a picture is drawn.
"""

from typing import TYPE_CHECKING

from probgram.lazy import lazy

if TYPE_CHECKING:
    from probgram.plots.boards import board as board
    from probgram.plots.calibration import reliability as reliability
    from probgram.plots.calibration import risk_coverage as risk_coverage
    from probgram.plots.depth import answers_over_depth as answers_over_depth
    from probgram.plots.depth import boards_over_depth as boards_over_depth
    from probgram.plots.genealogy import genealogy as genealogy
    from probgram.plots.grid import cost_curves as cost_curves
    from probgram.plots.grid import iso_accuracy as iso_accuracy
    from probgram.plots.kl import kl_map as kl_map
    from probgram.plots.latents import latent_paths as latent_paths
    from probgram.plots.posterior import answer_posterior as answer_posterior
    from probgram.plots.training import training_curve as training_curve
    from probgram.plots.weights import ess_and_evidence as ess_and_evidence
    from probgram.plots.width import width_curve as width_curve

_HOMES = {
    "board": "probgram.plots.boards",
    "reliability": "probgram.plots.calibration",
    "risk_coverage": "probgram.plots.calibration",
    "answers_over_depth": "probgram.plots.depth",
    "boards_over_depth": "probgram.plots.depth",
    "genealogy": "probgram.plots.genealogy",
    "cost_curves": "probgram.plots.grid",
    "iso_accuracy": "probgram.plots.grid",
    "kl_map": "probgram.plots.kl",
    "latent_paths": "probgram.plots.latents",
    "answer_posterior": "probgram.plots.posterior",
    "training_curve": "probgram.plots.training",
    "ess_and_evidence": "probgram.plots.weights",
    "width_curve": "probgram.plots.width",
}
__all__ = list(_HOMES)
__getattr__, __dir__ = lazy(__name__, _HOMES)
