"""Inference for any chain: training, sampling, the particle filter (`smc`), selection, evaluation."""

if not __name__.startswith("probgram."):
    raise ImportError("import probgram.inference, not inference: from here every class would exist twice")

from typing import TYPE_CHECKING

from probgram.lazy import lazy

if TYPE_CHECKING:
    from probgram.inference.calibration import Reliability as Reliability
    from probgram.inference.calibration import reliability as reliability
    from probgram.inference.confidence import RiskCoverage as RiskCoverage
    from probgram.inference.confidence import auroc as auroc
    from probgram.inference.confidence import risk_coverage as risk_coverage
    from probgram.inference.diagnose import diagnose as diagnose
    from probgram.inference.diagnosis import Diagnosis as Diagnosis
    from probgram.inference.diagnosis import Finding as Finding
    from probgram.inference.evaluation import evaluate as evaluate
    from probgram.inference.evaluation import evidence_bound as evidence_bound
    from probgram.inference.figures import Report as Report
    from probgram.inference.forecasting import forecast as forecast
    from probgram.inference.frontier import Frontier as Frontier
    from probgram.inference.frontier import frontier as frontier
    from probgram.inference.handlers import guided as guided
    from probgram.inference.handlers import weighted as weighted
    from probgram.inference.objective import Objective as Objective
    from probgram.inference.ranks import islands as islands
    from probgram.inference.ranks import pooled as pooled
    from probgram.inference.sampling import sample as sample
    from probgram.inference.selection import best as best
    from probgram.inference.selection import first_verified as first_verified
    from probgram.inference.selection import posterior as posterior
    from probgram.inference.selection import vote as vote
    from probgram.inference.simulation_based import simulation_based as simulation_based
    from probgram.inference.smc_filter import SMCFilter as SMCFilter
    from probgram.inference.svi import fit as fit
    from probgram.inference.svi import fit_heads as fit_heads

_HOMES = {
    "guided": "probgram.inference.handlers",
    "weighted": "probgram.inference.handlers",
    "Objective": "probgram.inference.objective",
    "fit": "probgram.inference.svi",
    "fit_heads": "probgram.inference.svi",
    "islands": "probgram.inference.ranks",
    "pooled": "probgram.inference.ranks",
    "sample": "probgram.inference.sampling",
    "vote": "probgram.inference.selection",
    "best": "probgram.inference.selection",
    "first_verified": "probgram.inference.selection",
    "posterior": "probgram.inference.selection",
    "forecast": "probgram.inference.forecasting",
    "SMCFilter": "probgram.inference.smc_filter",
    "diagnose": "probgram.inference.diagnose",
    "Diagnosis": "probgram.inference.diagnosis",
    "Finding": "probgram.inference.diagnosis",
    "evaluate": "probgram.inference.evaluation",
    "evidence_bound": "probgram.inference.evaluation",
    "Report": "probgram.inference.figures",
    "frontier": "probgram.inference.frontier",
    "Frontier": "probgram.inference.frontier",
    "reliability": "probgram.inference.calibration",
    "Reliability": "probgram.inference.calibration",
    "risk_coverage": "probgram.inference.confidence",
    "RiskCoverage": "probgram.inference.confidence",
    "auroc": "probgram.inference.confidence",
    "simulation_based": "probgram.inference.simulation_based",
}
__all__ = list(_HOMES)
__getattr__, __dir__ = lazy(__name__, _HOMES)
