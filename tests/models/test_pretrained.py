"""The shipped weights are what their card says."""

import math
from pathlib import Path

import numpy as np
import pytest

from probgram import metrics, solve, tasks
from probgram.checkpoint import pretrained_folder
from probgram.inference import first_verified, sample
from probgram.models import GRAM, LoopedTransformer

PROBLEMS, WIDTH = 48, 20
OTHERS = ["sudoku4", "colouring8", "queens10"]
BOARDS = Path(__file__).resolve().parents[3] / "shared" / "data" / "sudoku" / "sudoku10k.txt"


@pytest.fixture(scope="module")
def chain() -> GRAM:
    return GRAM.from_pretrained("queens8")


def test_the_card_names_task_split_seed_and_figures(chain: GRAM) -> None:
    assert chain.about["task"] == "queens8" and chain.about["split"] == "orbit"
    assert {"seed", "steps", "evaluation", "figures"} <= set(chain.about)
    assert "queens8" in (pretrained_folder() / "README.md").read_text()


@pytest.mark.parametrize("name", ["queens8", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_held_out_problems_are_solved_as_often_as_the_card_says(name: str) -> None:
    """Each figure is a mean over problems of shares in [0, 1], so its variance is at most m (1 - m) / problems.

    Four of these standard errors below the card's mean: false alarms below 1 in 30,000 for each of three figures.
    Where the card says m = 1 the error has no estimate, and one problem in 48 may fail.
    """
    chain = GRAM.from_pretrained(name)
    about = chain.about
    task = tasks.from_name(about["task"], about["split"])
    x = np.unique(task.examples("test")[0], axis=0)
    x = x[np.random.default_rng(1).choice(len(x), PROBLEMS, replace=False)]
    run = sample(chain, x, WIDTH, about["evaluation"]["depth"], seed=11, keep="last")
    solutions = metrics.all_solutions(task, x)
    found = metrics.summarize(task, x, run.answers[-1].numpy(), solutions)
    found["selected_first_verified"] = float(first_verified(run, task).score.mean())
    for figure in ("valid", "selected_first_verified", "coverage_macro_all"):
        said = about["figures"][figure]
        error = max(math.sqrt(said * (1 - said) / PROBLEMS), 1 / (4 * PROBLEMS))
        assert found[figure] > said - 4 * error, figure


def test_one_call_finds_several_ways_to_finish_a_board(chain: GRAM) -> None:
    solution = solve("queens8", [0, None, None, None, None, None, None, None], width=20, seed=0)
    assert int(solution.verified.sum()) >= 2
    assert math.isclose(float(solution.shares.sum()), 1.0)
    assert "Q" in str(solution)


def test_the_looped_transformer_follows_held_out_pointers_as_often_as_its_card_says() -> None:
    """200 problems: four standard errors of a share, false alarm 6e-5."""
    looped = LoopedTransformer.from_pretrained("pointers-looped")
    task = tasks.from_name(looped.about["task"])
    x = task.examples("test")[0][:200]
    right = float(task.verify(x, sample(looped, x, 1, 1).answers[-1].numpy()).mean())
    said = looped.about["figures"]["valid"]
    assert abs(right - said) < 4 * math.sqrt(said * (1 - said) / 200)


def test_one_call_solves_a_sudoku() -> None:
    """The first board of easy50.txt (norvig/pytudes, MIT)."""
    board = "003020600900305001001806400008102900700000008006708200002609500800203009005010300"
    solution = solve("sudoku9", board, width=8, seed=0)
    assert solution.run.depth == 64
    assert len(solution.accepted()) == 1
    assert "4 8 3 9 2 1 6 5 7" in " ".join(str(solution).replace("|", " ").split())


@pytest.mark.slow
def test_held_out_sudokus_are_solved_as_often_as_the_card_says() -> None:
    """64 boards: four standard errors of a share below the card's, false alarm 3e-5 each."""
    if not BOARDS.is_file():
        pytest.skip(f"{BOARDS.name} is not in the folder of shared data")
    solver = GRAM.from_pretrained("sudoku9")
    task = tasks.Sudoku(3, BOARDS)
    x = task.examples("test")[0]
    x = x[np.random.default_rng(1).choice(len(x), 64, replace=False)]
    run = sample(solver, x, WIDTH, solver.about["evaluation"]["depth"], seed=11, keep="last")
    valid = task.verify(run.x, run.answers[-1])  # [N, B]
    for figure, found in (("valid", valid.float().mean()), ("pass_at_n", valid.any(0).float().mean())):
        said = solver.about["figures"][figure]
        assert float(found) > said - 4 * math.sqrt(said * (1 - said) / 64), figure


@pytest.mark.slow
def test_boards_from_nothing_are_right_and_different_as_often_as_their_card_says() -> None:
    """400 independent draws: four standard errors of a share, false alarm 6e-5.

    335 right ones that are as uneven as the card's chi-square says (a coefficient of variation of 0.25) miss 3.7 of
    92 boards, and by Poisson's law more than 12 with probability 1e-4.
    """
    generator = GRAM.from_pretrained("queens8-blank")
    task = tasks.from_name(generator.about["task"])
    draws = sample(generator, task.blank, 400, generator.about["evaluation"]["depth"], 11, keep="last").answers[
        -1, :, 0
    ]
    said = generator.about["figures"]["valid"]
    right = float(task.verify(task.blank, draws).float().mean())
    assert abs(right - said) < 4 * math.sqrt(said * (1 - said) / 400)
    assert metrics.uniformity(draws, task.answers).found >= 80
    assert generator.about["uniformity"]["found"] == generator.about["uniformity"]["answers"] == 92


def test_weights_are_asked_at_the_depth_they_were_evaluated_at_unless_another_is_given() -> None:
    problem = tasks.from_name("pointers8-6hops-permutation-every").examples("test")[0][0]
    assert solve("pointers-looped", problem, width=1).run.depth == 1
    assert solve("pointers-looped", problem, width=1, depth=2).run.depth == 2
    assert solve("queens8", [0] + [None] * 7, width=1).run.depth == 16
