"""One call that looks at a run from every side and says in plain words what is fine, what is not, and what to try.

    print(diagnose(run))                      what the run alone can tell
    print(diagnose(run, task))                and whether its answers are right, and trapped where they are not
    print(diagnose(run, task, chain))         and whether copies of a trajectory would come apart (runs a few more)

Each question is a function below that yields its findings, or a sentence on why it cannot be answered. The
thresholds are the constants, each with its reason.
"""

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from probgram.chain import Chain
from probgram.fields import islands_of
from probgram.inference import diagnostics as measures
from probgram.inference.diagnosis import Diagnosis, Finding, finding, graded, plural, spread, whole
from probgram.inference.rhat import blocks_of, islands_chance
from probgram.run import Run
from probgram.tasks import UnknownAnswers
from probgram.trajectories import Trajectories, as_trajectories

VERIFIED_FINE = 0.9  # weight on right answers from which on a single draw can be trusted
LOST = 0.1  # of the weight was on right answers at an earlier depth step, and is no more
CHANGING_LOOK = 0.05  # share still changing: more than one trajectory of the usual 20
CHANGING_TROUBLE = 0.25  # with a quarter still moving the last depth step is no end of anything
FADING = 0.8  # changes in the last quarter of the run, as a share of those in the quarter before, that are fewer
TRAPPED_LOOK = 0.05  # more than one trajectory of the usual 20
TRAPPED_TROUBLE = 0.5  # most of the cloud sits where it cannot be right
ESCAPES = 0.05  # per depth step: from here on another 20 steps free two thirds (1 - 0.95^20 = 0.64)
UNSEEN_LOOK = 0.1  # probability of answers that nobody has drawn yet
UNSEEN_TROUBLE = 0.5  # more is unseen than seen
MISSED = 0.05  # probability that an answer of the share given has not been drawn
CHANCE = 0.01  # how often islands of independent draws may look so different
APART = 1.1  # trajectories' R-hat: the older rule, laxer than 1.01, since depth steps are few and correlated
ESS_LOOK = 0.5  # share of N: below it the filter itself would resample
ESS_TROUBLE = 0.1  # share of N: below it `Trajectories.untilted` warns
K_LOOK = 0.5  # Vehtari et al. 2024: above it the variance of the weights is infinite
K_TROUBLE = 0.7  # and above this averages by weight cannot be relied on at any practical width
ANCESTORS_LOOK = 0.5  # of the first slots: with a third left answers were lost (benchmarks/filter_vs_independent)
ANCESTORS_TROUBLE = 0.1  # two lines of the usual 20
HEAD_LOOK = 0.2  # by how much a head's probability misses what is right: four trajectories of the usual 20
HEAD_TROUBLE = 0.5  # it says the contrary
AGAINST = -0.4  # a correlation that 20 independent trajectories fall below 4 times in 100
CONTRACTS = -0.7  # nats a depth step: what sets two copies apart halves in each
EXPANDS = 0.1  # nats a depth step: in ten of them a small difference grows to three times its size
STABILITY_WIDTH, STABILITY_PROBLEMS = 4, 16  # what stability is measured on: trajectories, and problems at most


def diagnose(run: Run[Any], task: Any = None, chain: Chain | None = None) -> Diagnosis:
    """Say in words what is fine with a run, what is not, and what to try, each with its figure.

    Args:
        run: of `sample` or the filter. With a row for every depth step (`keep="paths"`) most can be told, with its
            states principal directions too.
        task: verifies and counts violations; None: nothing is said about right and wrong.
        chain: the run's own; None: nothing is said about its stability.

    Returns:
        The findings; `print` it, or read `findings`.

    Raises:
        ValueError: the run has no answers.
    """
    if not run.answers.shape[-1]:
        raise ValueError("diagnose needs answers, and the run has none: its model reads none out of its states")
    run = as_trajectories(run)
    seen = Seen(run, task, chain)
    said = [part for question in QUESTIONS for part in question(seen)]
    name = run.task or getattr(task, "name", "")
    about = f"{run.width} trajectories × {run.depth} depth steps, {plural(run.problems, 'problem')}"
    return Diagnosis(
        tuple(part for part in said if isinstance(part, Finding)),
        tuple(part for part in said if isinstance(part, str)),
        f"{name}, {about}" if name else about,
    )


class Seen:
    """A run and what several questions ask of it, on the host."""

    def __init__(self, run: Trajectories, task: Any, chain: Chain | None) -> None:
        self.run, self.task, self.chain = run, task, chain
        self.weights = run.weights[-1].cpu()  # [N, B]
        self.resampled = run.ancestors is not None
        self.independent = measures.independent(run)
        self.every_step = len(run.depths) == run.depth > 1  # it has a row for every depth step
        self.unverified = "" if task is not None else "there is no task to verify with"
        self.right: Tensor | None = None  # [S, N, B]
        if task is not None:
            try:
                self.right = torch.as_tensor(task.verify(run.x, run.answers), device=run.answers.device)
            except UnknownAnswers as error:
                self.unverified = str(error)

    @cached_property
    def share_right(self) -> Tensor:
        """Weight on right answers at the end, `[B]`; only where there is a task that verifies."""
        assert self.right is not None
        return (self.weights * self.right[-1].cpu()).sum(0)

    @cached_property
    def changing(self) -> Tensor:
        """Share of the trajectories that changed their answer in the last depth step, `[B]`."""
        return measures.changing(self.run)[-1].cpu()

    @cached_property
    def different(self) -> Tensor:
        """Different answers at the end, `[B]`."""
        return measures.distinct_answers(self.run)[-1].cpu()

    @cached_property
    def quantities(self) -> dict[str, Tensor]:
        """What R-hat is taken of, `[S, N, B]` each."""
        return measures.quantities(self.run, None if self.right is None else self.task)


Said = Iterator[Finding | str]


# -- the answers ----------------------------------------------------------------------------------------------


def verified(seen: Seen) -> Said:
    """Are the answers right?"""
    if seen.right is None:
        yield f"right and wrong, and what is trapped: {seen.unverified}"
        return
    share = seen.share_right
    grades = torch.where(share >= VERIFIED_FINE - 1e-9, 0, torch.where(share > 0, 1, 2))
    clauses = (
        "nearly all of the weight is on answers that pass verification",
        "some answers pass verification, but a single draw cannot be trusted",
        "no answer passes verification",
    )
    some = "taking the answers that verify (first_verified), or weights at the end by energy"
    none, bad = "more width", grades > 0
    if seen.every_step and bool((seen.changing[bad] > CHANGING_LOOK).any()):
        none = "more depth, since answers still change"
    elif bool((seen.different[grades == 2] <= 1).any()):
        none = "more noise (Perturbed), since all trajectories agree; or there is no right answer"
    over_depth = (seen.run.weights * seen.right).sum(1).cpu()[:, bad].mean(1)  # [S]
    best = int(over_depth.argmax())
    if bool(bad.any()) and float(over_depth[best] - over_depth[-1]) > LOST:
        less = f"less depth: after {plural(seen.run.depths[best], 'step')} {float(over_depth[best]):.2f} was right"
        some, none = f"{less}; or {some}", less
    yield finding("verified", grades, f"{spread(share)} of the weight", clauses, (some, none))


def answers(seen: Seen) -> Said:
    """How many different answers are there, and where do they differ?"""
    count, entropy = seen.different, measures.answer_entropy(seen.run)[-1].cpu()
    open_positions = (measures.cloud_entropy(seen.run)[-1].cpu() > 1e-9).sum(-1)
    agree, length = int((count <= 1).sum()), seen.run.answers.shape[-1]
    if len(count) > 1:
        sentence = f"All trajectories agree in {agree} of {len(count)} problems."
    elif agree:
        sentence = "All trajectories give the same answer."
    else:
        where = f"{whole(open_positions)} of {length} positions"
        sentence = f"Trajectories give different answers, which differ at {where}."
    yield Finding("answers", "fine", f"{whole(count)} different, entropy {spread(entropy)} nats", sentence)


def unseen(seen: Seen) -> Said:
    """Are there answers that nobody has drawn yet?"""
    if not seen.independent:
        yield "answers not drawn yet: only independent draws (sample) can tell"
        return
    share = measures.unseen(seen.run, seen.right)[-1].cpu()
    if seen.right is not None:
        share = share[seen.share_right > 0]  # where no answer was right, nothing says how many there are
        if not len(share):
            return
    kind = "answers" if seen.right is None else "right answers"
    clauses = (
        f"hardly any of the probability is in {kind} that were not drawn",
        f"many {kind} were drawn only once, so that others are still to come",
        f"most draws are {kind} seen only once, so that most are still to come",
    )
    grades = graded(share, UNSEEN_LOOK, UNSEEN_TROUBLE)
    largest = 1 - MISSED ** (1 / seen.run.width)  # (1 - p)^N = MISSED
    figure = f"{spread(share)} of the probability; an answer not drawn has at most {largest:.2f}"
    yield finding("unseen", grades, figure, clauses, "more width")


# -- over depth -----------------------------------------------------------------------------------------------


def settled(seen: Seen) -> Said:
    """Have answers come to rest?"""
    if not seen.every_step:
        yield 'what happens over depth: the run has not kept every depth step (keep="paths")'
        return
    since = measures.settled(seen.run, CHANGING_LOOK).cpu()
    figure = f"{spread(seen.changing)} still changing"
    if bool((since > 0).any()):
        figure += f", at rest since depth {whole(since[since > 0])}"
    clauses = (
        "answers have settled",
        "some trajectories still change their answers at the last depth step",
        "many trajectories still change their answers at the last depth step",
    )
    grades = graded(seen.changing, CHANGING_LOOK, CHANGING_TROUBLE)
    over_depth = measures.changing(seen.run).cpu()[:, grades > 0]
    quarter = max(1, len(over_depth) // 4)
    late, earlier = over_depth[-quarter:].mean(), over_depth[-2 * quarter : -quarter].nanmean()
    advice = "more depth"
    if float(late) > FADING * float(earlier):
        advice = "less noise, where it can be set (Perturbed): changes do not become fewer with depth"
    yield finding("settled", grades, figure, clauses, advice)


def trapped(seen: Seen) -> Said:
    """Do trajectories sit on wrong answers?"""
    if seen.right is None or not seen.every_step:
        return
    found = measures.trapping(seen.run, seen.task)
    share = found.trapped[-1].cpu()
    grades = graded(share, TRAPPED_LOOK, TRAPPED_TROUBLE)
    figure, out, stuck = spread(share), None, grades > 0
    if bool(stuck.any()):
        rates = [found.rate(part).cpu()[stuck] for part in (found.escaped, found.rescued)]
        if bool(rates[0].isfinite().any()):  # nobody was trapped before the last step
            out, rescued = (float(rate.nanmean()) for rate in rates)
            figure += f"; of those trapped {out:.2f} change and {rescued:.2f} become right in a step"
    clauses = (
        "hardly any trajectory sits on a wrong answer that no longer changes",
        "some trajectories sit on wrong answers that no longer change",
        "most trajectories sit on wrong answers that no longer change",
    )
    try_first = "more noise (Perturbed)" if bool((seen.different[stuck] <= 1).all()) else "more width or more noise"
    advice = f"{try_first}, since hardly any gets out: more depth alone will not free them"
    if out is None or out >= ESCAPES:
        advice = "more depth, since some get out at every step"
    if seen.resampled:
        advice += "; less resampling, which copies them"
    yield finding("trapped", grades, figure, clauses, advice)


def apart(seen: Seen) -> Said:
    """Are trajectories stuck apart?"""
    if not seen.every_step:
        return
    rhat = _largest(seen, measures.trajectories_rhat)
    if rhat is None:
        yield "whether trajectories are stuck apart: that takes 8 depth steps, and heads, kept states or a task"
        return
    moving = seen.changing > CHANGING_TROUBLE  # whatever R-hat says of some quantity, those are not stuck
    grades = ((rhat[1] > APART) & (seen.different > 1) & ~moving).long()
    wrong = "different answers"
    if seen.right is not None:
        wrong = "different answers, not all of them right"
        grades[seen.share_right >= VERIFIED_FINE - 1e-9] = 0
        grades[(grades > 0) & (seen.share_right == 0)] = 2
    at_peace = "trajectories do not keep to answers of their own"
    if seen.right is not None:
        own = (rhat[1] > APART) & (seen.different > 1) & (seen.share_right >= VERIFIED_FINE - 1e-9)
        at_peace = "trajectories keep to different answers, which are right"
        at_peace = at_peace if bool(own.all()) else "trajectories are not stuck apart on wrong answers"
    clauses = (
        at_peace,
        f"trajectories keep to {wrong}: depth does not bring them together",
        "trajectories keep to different answers, all of them wrong",
    )
    advice = "more width, or another potential: more depth does not move them"
    figure = f"R-hat {spread(rhat[1])} over trajectories, largest of {rhat[0]}"
    yield finding("apart", grades, figure, clauses, advice)


# -- width and weights ----------------------------------------------------------------------------------------


def width(seen: Seen) -> Said:
    """Do islands agree?"""
    run = seen.run
    if seen.resampled and islands_of(run) == 1:
        yield "whether islands agree: a resampled run needs several that exchange nothing, smc.run(islands=4)"
        return
    rhat = _largest(seen, measures.islands_rhat)
    if rhat is None:
        yield "whether islands agree: that takes 8 trajectories, and heads, kept states or a task"
        return
    last = torch.stack([values[-1] for values in seen.quantities.values()])
    grades = (islands_chance(run, last).cpu() <= CHANCE).long()
    islands = blocks_of(run)
    clauses = (
        f"{islands} islands of {run.width // islands} agree as well as independent draws would",
        "islands disagree by more than chance: another run may say something else",
        "",
    )
    figure = f"R-hat {spread(rhat[1])} over islands, largest of {rhat[0]}"
    advice = "more width; less resampling" if seen.resampled else "more width"
    yield finding("width", grades, figure, clauses, advice, chance=True)


def _largest(seen: Seen, measure: Callable[[Trajectories, Tensor], Tensor]) -> tuple[str, Tensor] | None:
    """The largest R-hat of all quantities at the last step, `[B]`, and which it mostly is; None: too few draws."""
    found = {name: measure(seen.run, values)[-1].cpu() for name, values in seen.quantities.items()}
    if not found or all(bool(rhat.isnan().all()) for rhat in found.values()):
        return None
    largest, whose = torch.stack(list(found.values())).nan_to_num(0.0, posinf=torch.inf).max(0)
    return list(found)[int(whose.mode().values)], largest


def weights(seen: Seen) -> Said:
    """Is there weight on enough trajectories?"""
    if seen.independent:
        return
    run = seen.run
    share = run.ess[-1].cpu() / run.width
    dead = int((seen.weights.sum(0) == 0).sum())
    clauses = (
        "the weight is spread over many trajectories",
        "most trajectories have little weight",
        "the weight is on a few trajectories, or on none: shares of answers mean little",
    )
    advice = "a weaker potential (a larger alpha, a smaller power), or more width"
    if not run.settings.get("resample"):
        advice = "resampling (resample=systematic), " + advice
    grades = graded(-share, -ESS_LOOK, -ESS_TROUBLE)
    grades[share * run.width < 2] = 2  # a single trajectory, whatever share of N it is
    figure = f"effective {spread(share)} of N" + (f", {plural(dead, 'problem')} without any" if dead else "")
    yield finding("weights", grades, figure, clauses, advice)


def tail(seen: Seen) -> Said:
    """Can averages by weight be relied on?"""
    if seen.independent:
        return
    k = measures.pareto_k(seen.run.log_weights[-1]).cpu()
    known = k[k.isfinite()]
    if not len(known):
        yield "the tail of the weights (Pareto k): too few of them stand out"
        return
    clauses = (
        "the largest weights are not heavy-tailed",
        "the largest weights are heavy-tailed: averages by weight converge slowly",
        "the largest weights are so heavy-tailed that averages by weight cannot be relied on",
    )
    grades = graded(k.nan_to_num(0.0), K_LOOK, K_TROUBLE)
    advice = "a weaker potential, or one that comes in little by little"
    yield finding("tail", grades, f"Pareto k {spread(known)}", clauses, advice)


def ancestors(seen: Seen) -> Said:
    """What has resampling left?"""
    if not seen.resampled or not seen.every_step:
        return
    share = measures.unique_ancestors(seen.run)[0].cpu() / seen.run.width
    clauses = (
        "most of the first trajectories have descendants",
        "few of the first trajectories have descendants: answers may have been lost",
        "all trajectories descend from one or two of the first: answers have been lost",
    )
    grades = graded(-share, -ANCESTORS_LOOK, -ANCESTORS_TROUBLE)
    advice = "less resampling: later (adaptive(systematic, first=4)), or only weights at the end"
    yield finding("ancestors", grades, f"{spread(share)} of the first slots", clauses, advice)


# -- the network ----------------------------------------------------------------------------------------------


def heads(seen: Seen) -> Said:
    """Do heads say what verification says?"""
    if seen.right is None:
        return
    for name, logits in seen.run.heads.items():
        says = (seen.weights * logits[-1].cpu().to(seen.weights).sigmoid()).sum(0)
        over = says - seen.share_right
        more = "more" if float(over.sum()) > 0 else "less"
        clauses = (
            f"the {name} head says what verification says",
            f"the {name} head promises {more} than verification finds",
            f"the {name} head says the contrary of what verification finds",
        )
        grades = graded(over.abs(), HEAD_LOOK, HEAD_TROUBLE)
        figure = f"says {spread(says)}, right {spread(seen.share_right)}"
        advice = f"another potential and another selection than {name}"
        yield finding(f"{name} head", grades, figure, clauses, advice)


def alignment(seen: Seen) -> Said:
    """Does a head know half-way where the cloud goes?"""
    if not seen.every_step:
        return
    for name in seen.run.heads:
        early = measures.alignment(seen.run, name)[(len(seen.run.depths) - 1) // 2].cpu()
        known = early[early.isfinite()]
        if not len(known):
            continue
        clauses = (
            f"half-way the {name} head does not speak against where most trajectories go",
            f"half-way the {name} head favours trajectories that go where few go",
            "",
        )
        figure = f"correlation {spread(known, signed=True)}"
        advice = f"another potential than {name}, or one that acts later"
        grades = graded(-early.nan_to_num(0.0), -AGAINST, 2.0)
        yield finding(f"{name} early", grades, figure, clauses, advice, chance=True)


def stability(seen: Seen) -> Said:
    """Would copies of a trajectory come apart?"""
    if seen.chain is None:
        yield "whether copies would come apart (stability): that needs the chain"
        return
    run = seen.run
    growth = measures.stability(seen.chain, run.x[:STABILITY_PROBLEMS], STABILITY_WIDTH, run.depth, run.seed)
    late = growth[len(growth) // 2 :].mean((0, 1)).cpu()
    contracts = late < CONTRACTS
    grades = (late > EXPANDS) | (contracts & seen.resampled)
    clauses = (
        "small differences shrink: only fresh noise sets trajectories apart"
        if bool(contracts.any())
        else "small differences neither shrink fast nor grow",
        "copies that resampling makes stay copies"
        if bool((contracts & grades).any())
        else "small differences grow: an answer hangs on the noise of every step",
        "",
    )
    advice = "less resampling, or weights at the end only" if bool((contracts & grades).any()) else "more width"
    figure = f"log growth {spread(late, signed=True)} nats a step"
    yield finding("stability", grades.long(), figure, clauses, advice)


QUESTIONS: tuple[Callable[[Seen], Said], ...] = (
    verified,
    answers,
    unseen,
    settled,
    trapped,
    apart,
    width,
    weights,
    tail,
    ancestors,
    heads,
    alignment,
    stability,
)
