"""Every picture against an image of it, drawn by Agg from fixed numbers with the fonts that matplotlib brings.

`python tests/probgram/test_pictures.py` draws the images anew, after a change that is meant; look at them.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.testing.compare import compare_images

from probgram import plots, tasks
from probgram.trajectories import Trajectories

matplotlib.use("Agg")

IMAGES = Path(__file__).parent / "images"
# Root mean square difference of pixels, 0 to 255. One version of matplotlib draws the same twice (0); the gaps that
# contours leave for their letters move by 0.1 with the hints of a font; the least change below makes 3. What is
# between is left to the rims of lines in other versions. Letters are hidden, since their pixels hang on FreeType:
# what they say is read back in test_plots.py.
TOLERANCE = 1.0
DPI = 50


# -- fixed numbers --------------------------------------------------------------------------------------------


def queens_run() -> Trajectories:
    """Eight trajectories of an empty 6-queens board over five steps, resampled twice; states of two numbers."""
    task, rng = tasks.Queens(6), np.random.default_rng(0)
    right = task.solutions(np.full(6, 6))
    answers = rng.integers(0, 6, (5, 8, 6))
    answers[2:, :3], answers[1:, 3:5], answers[3:, 5:7] = right[0], right[1], right[2]
    ancestors = np.tile(np.arange(8), (5, 1))
    ancestors[1], ancestors[3] = [0, 0, 0, 3, 3, 5, 6, 6], [0, 1, 1, 3, 4, 5, 5, 7]
    log_weights = np.log(rng.dirichlet(np.full(8, 0.7), 5))
    log_weights[-1] = -np.log(8)
    states = rng.normal(size=(5, 8, 2)).cumsum(0) + np.array([3, 3, 3, -3, -3, 0, 0, 0])[:, None]
    return Trajectories(
        torch.full((1, 6), 6),
        torch.as_tensor(answers, dtype=torch.uint8)[:, :, None],
        torch.as_tensor(log_weights)[..., None],
        torch.as_tensor(ancestors, dtype=torch.int32)[..., None],
        log_normalizer=torch.tensor([-4.0, -2.5, -2.0, -1.8, -1.8])[:, None],
        states=torch.as_tensor(states)[:, :, None],
    )


def on(rows: int, columns: int, width: float, height: float) -> Any:
    """Axes at fixed places: a layout that makes room for letters would hang on them."""
    import matplotlib.pyplot as plt

    axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False)[1]
    return axes[0, 0] if rows == columns == 1 else axes


def six_boards() -> np.ndarray:
    """Boards of several tasks, each with something wrong."""
    from probgram.tasks.arc_grids import tokens

    axes = on(2, 3, 6, 4)
    sudoku, graph, rule = tasks.Sudoku(2), tasks.Colouring(6), tasks.Rule110(12, 2)
    queens = tasks.Queens(5, encoding="board")
    x = sudoku.encode("1...|..2.|.3..|...4".replace("|", ""))
    plots.board(sudoku, x, np.array([1, 2, 4, 3, 3, 4, 2, 1, 4, 3, 1, 2, 2, 1, 3, 3]), axes[0, 0])
    plots.board(graph, graph.encode("0-1 1-2 2-3 3-4 4-5 0-5 1-4"), np.array([0, 1, 2, 0, 1, 1]), axes[0, 1])
    plots.board(rule, np.arange(12) % 2, np.arange(12) % 3 % 2, axes[0, 2])
    squares = (np.array([[0], [2], [4], [3], [1]]) == np.arange(5)).astype(int).reshape(-1)
    plots.board(queens, queens.encode("0 . . . ."), squares, axes[1, 0])
    grid = np.arange(12).reshape(3, 4) % 10
    with TemporaryDirectory() as folder:
        pair = {"input": grid.tolist(), "output": grid.tolist()}
        for kind, content in (("challenges", {"train": [pair], "test": [pair]}), ("solutions", [pair["output"]])):
            (Path(folder) / f"arc-agi_training_{kind}.json").write_text(json.dumps({"one": content}))
        arc = tasks.Arc(folder, side=5)
    plots.board(arc, arc.encode("one"), tokens(grid, 5, 0), axes[1, 1])
    pairs = tasks.Pairs(np.arange(6)[None], np.arange(6)[None], columns=3)
    plots.board(pairs, np.arange(6), np.array([5, 4, 3, 2, 1, 0]), axes[1, 2])
    return axes


def training() -> Any:
    steps = np.arange(1, 6)
    names = ("reconstruction", "kl", "right_at_end", "sigma_amin", "sigma_mean", "sigma_amax", "gradient_norm")
    lines = [{"step": int(s)} | {name: float((i + 1) / s) for i, name in enumerate(names)} for s in steps]
    figure = plots.training_curve(lines)
    figure.set_layout_engine("none")
    return figure


def reliable(accuracy: float = 0.6) -> Any:
    return SimpleNamespace(
        confidence=np.array([0.1, np.nan, 0.5, 0.95]),
        accuracy=np.array([0.2, np.nan, accuracy, 0.9]),
        count=np.array([20, 0, 40, 1_500]),
        error=0.062,
        floor=0.021,
    )


def curve(risk: list[float]) -> Any:
    return SimpleNamespace(coverage=np.arange(1, 6) / 5, risk=np.array(risk), area=float(np.mean(risk)))


SIX, FOUR = tasks.Queens(6), np.outer([0.2, 0.5, 0.8, 1.0], [0.5, 0.8, 1.0])
KL = np.outer(0.5 ** np.arange(6), [0.0, 1.0, 3.0, 2.0])
PICTURES: dict[str, Callable[[], Any]] = {
    "board": six_boards,
    "reliability": lambda: plots.reliability(reliable(), axis=on(1, 1, 4, 4)),
    "risk_coverage": lambda: plots.risk_coverage(
        {"votes": curve([0.0, 0.0, 0.1, 0.2, 0.3]), "head": curve([0.2, 0.2, 0.3, 0.25, 0.3])}, on(1, 1, 4, 3)
    ),
    "answers_over_depth": lambda: plots.answers_over_depth(queens_run(), SIX, axis=on(1, 1, 4, 3)),
    "boards_over_depth": lambda: plots.boards_over_depth(
        queens_run(), SIX, rows=3, steps=(1, 3, 5), axis=on(3, 3, 4, 4)
    ),
    "genealogy": lambda: plots.genealogy(queens_run(), SIX, axis=on(1, 1, 4, 3)),
    "cost_curves": lambda: plots.cost_curves([1, 2, 4, 8], [1, 2, 4], FOUR, on(1, 1, 4, 3)),
    "iso_accuracy": lambda: plots.iso_accuracy([1, 2, 4, 8], [1, 2, 4], FOUR, on(1, 1, 4, 3)),
    "kl_map": lambda: plots.kl_map(np.where(np.arange(6)[:, None] == 4, np.nan, KL), on(1, 1, 4, 3)),
    "latent_paths": lambda: plots.latent_paths(queens_run(), SIX, axis=on(1, 1, 4, 4)),
    "answer_posterior": lambda: plots.answer_posterior(queens_run(), SIX, most=3, axis=on(1, 3, 6, 3)),
    "training_curve": training,
    "ess_and_evidence": lambda: plots.ess_and_evidence(queens_run(), axis=on(2, 1, 4, 4)),
    "width_curve": lambda: plots.width_curve(
        [1, 2, 4, 8],
        {"chain": [0.3, 0.5, 0.7, 0.8]},
        {"uniform draws": [0.3, 0.6, 0.9, 1.0], "one": [0.3] * 4},
        on(1, 1, 4, 3),
    ),
}
CHANGED: dict[str, Callable[[], Any]] = {
    "an answer of one trajectory": lambda: plots.answers_over_depth(_other_answer(), SIX, axis=on(1, 1, 4, 3)),
    "a weight": lambda: plots.genealogy(_other_weights(), SIX, axis=on(1, 1, 4, 3)),
    "a point of a line": lambda: plots.reliability(reliable(accuracy=0.5), axis=on(1, 1, 4, 4)),
    "a queen of one board": lambda: plots.boards_over_depth(
        _other_answer(), SIX, rows=3, steps=(1, 3, 5), axis=on(3, 3, 4, 4)
    ),
}
OF = dict(zip(CHANGED, ("answers_over_depth", "genealogy", "reliability", "boards_over_depth"), strict=True))


def _other_answer() -> Trajectories:
    run = queens_run()
    answers = run.answers.clone()
    answers[2, 3] = answers[2, 0]
    return replace(run, answers=answers)


def _other_weights() -> Trajectories:
    run = queens_run()
    log_weights = run.log_weights.clone()
    log_weights[1, 2] += 3
    return replace(run, log_weights=log_weights)


def draw(picture: Callable[[], Any], path: Path, **settings: Any) -> Path:
    """Draw a picture without its letters, in matplotlib's own style, whatever style the user has."""
    import matplotlib.pyplot as plt
    from matplotlib.legend import Legend
    from matplotlib.text import Text

    with plt.style.context("default"), matplotlib.rc_context(settings):
        drawn = np.asarray(picture(), dtype=object).reshape(-1)[0]
        figure = drawn if hasattr(drawn, "savefig") else drawn.get_figure(root=True)
        figure.canvas.draw()  # makes the ticks, whose letters are to go
        for legend in figure.findobj(Legend):
            legend.remove()
        for text in figure.findobj(Text):
            text.set_visible(False)
        figure.savefig(path, dpi=DPI, metadata={"Software": None})
        plt.close("all")
    return path


def difference(expected: Path, drawn: Path) -> float:
    """Root mean square difference of two images of one size."""
    found = compare_images(str(expected), str(drawn), tol=-1, in_decorator=True)
    return 0.0 if found is None else float(found["rms"])  # None: no pixel differs


# -- tests ----------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


def test_every_picture_has_an_image_and_all_together_are_small():
    images = list(IMAGES.glob("*.png"))
    assert {image.stem for image in images} == set(PICTURES) == set(plots.__all__)
    assert sum(image.stat().st_size for image in images) < 400_000


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_looks_as_its_image_does(name, tmp_path):
    assert difference(IMAGES / f"{name}.png", draw(PICTURES[name], tmp_path / f"{name}.png")) < TOLERANCE


@pytest.mark.parametrize("change", CHANGED)
def test_a_small_change_of_content_is_seen(change, tmp_path):
    assert difference(IMAGES / f"{OF[change]}.png", draw(CHANGED[change], tmp_path / "changed.png")) > TOLERANCE


@pytest.mark.parametrize("name", ["answers_over_depth", "board", "genealogy", "iso_accuracy", "kl_map"])
def test_images_do_not_hang_on_how_letters_are_drawn(name, tmp_path):
    settings = {"text.hinting": "none", "text.antialiased": False}
    assert difference(IMAGES / f"{name}.png", draw(PICTURES[name], tmp_path / f"{name}.png", **settings)) < 0.5


if __name__ == "__main__":
    for name, picture in PICTURES.items():
        print(draw(picture, IMAGES / f"{name}.png"))
