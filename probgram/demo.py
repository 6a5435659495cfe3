"""The demo: three boards completed with 20 trajectories each, and coverage against width as a picture."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from probgram import metrics, plots, tasks
from probgram.solve import Solution, solve

if TYPE_CHECKING:
    from probgram.models import GRAM

WIDTHS = (1, 2, 4, 8, 16, 32, 64)


def run(console: Console, picture: Path, width: int = 20, depth: int = 16, seed: int = 0) -> None:
    """Complete a held-out board with one answer, one with several and one with many; then draw the curve.

    Args:
        console: where the boards are shown.
        picture: the PNG to write.
        width: trajectories a board.
        depth: depth steps.
        seed: of the trajectories.
    """
    from probgram.models import GRAM

    chain = GRAM.from_pretrained("queens8")
    task = tasks.Queens(8)
    x = np.unique(task.examples("test")[0], axis=0)  # problems no weight has seen
    counts = np.array([len(task.solutions(problem)) for problem in x])
    for title, wanted in (("one answer", 1), ("several answers", 3), ("many answers", int(counts.max()))):
        problem = x[np.flatnonzero(counts == wanted)[0]]
        solution = solve(chain, problem, width, depth, seed, task=task)
        _show(console, title, solution, int(wanted))
    several = np.random.default_rng(0).permutation(x[counts > 1])[:24]
    _draw_curve(console, chain, task, several, picture, depth, seed)


def panels(solution: Solution) -> list[Panel]:
    """Every accepted answer drawn, with its share: green where verified, yellow where the task cannot tell."""
    style = "yellow" if solution.verified is None else "green"
    return [
        Panel(Text(solution.task.decode(answer)), title=f"share {share:.2f}", expand=False, border_style=style)
        for answer, share in solution.accepted()
    ]


def _show(console: Console, title: str, solution: Solution, there_are: int) -> None:
    task, run = solution.task, solution.run
    right = solution.accepted()
    console.rule(f"{title}: {len(right)} of {there_are} solutions found by {run.width} trajectories")
    boards = [Panel(task.decode(run.x[0]), title="given", expand=False)]
    console.print(Columns(boards + panels(solution)))
    valid = task.verify(run.x, run.answers).float().mean((1, 2))  # [S]
    steps = [s for s in (1, 2, 4, 8, 16, 32) if s <= run.depth]
    console.print("valid after depth step " + ", ".join(f"{s}: {float(valid[s - 1]):.0%}" for s in steps))


def _draw_curve(
    console: Console,
    chain: "GRAM",
    task: tasks.Queens,
    x: np.ndarray,
    picture: Path,
    depth: int,
    seed: int,
) -> None:
    import matplotlib

    from probgram.inference.sampling import sample

    matplotlib.use("Agg")
    solutions = metrics.all_solutions(task, x)
    run = sample(chain, x, max(WIDTHS), depth, seed, keep="last")
    answers = run.answers[-1].cpu().numpy()
    ours = [metrics.summarize(task, x, answers[:n], solutions)["coverage_macro_all"] for n in WIDTHS]
    ceiling = [metrics.uniform_coverage(solutions.counts, n)[0] for n in WIDTHS]
    floor = [metrics.one_answer_coverage(solutions.counts)[0]] * len(WIDTHS)
    axis = plots.width_curve(WIDTHS, {"queens8": ours}, {"uniform draws": ceiling, "one answer": floor})
    axis.set_title(f"{len(x)} held-out boards with several solutions, depth {depth}")
    axis.get_figure(root=True).savefig(picture, dpi=150)  # type: ignore[union-attr]
    console.rule("coverage against width")
    for n, share, limit in zip(WIDTHS, ours, ceiling, strict=True):
        console.print(f"width {n:3d}: {share:6.1%} of all solutions (uniform draws {limit:6.1%})")
    console.print(f"picture: {picture}")
