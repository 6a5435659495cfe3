"""Write docs/results.md from what the benchmarks left in results/: every figure there was measured by a command.

python -m benchmarks.results
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import sudoku9
from benchmarks.reasoners import read, table
from benchmarks.trainings import RECIPES
from probgram.checkpoint import write_bytes
from probgram.inference.frontier import selection
from probgram.inference.verdict import Verdict

RESULTS, PAGE = Path(__file__).parent / "results", Path(__file__).parent.parent / "docs" / "results.md"

HEAD = """# Results

Written by `python -m benchmarks.results` from `benchmarks/results/`; the command in a section makes its figures
again. Where a section says nothing else, they are of prior samples on problems that were held out, ± is the
standard deviation over sampling seeds, and the machine is a 2-core x86-64 one.
*Uniform*: what as many uniform draws over a problem's solutions reach; *one answer*: what one right answer does.
"""

FAMILY = """## The family on 8-queens

`python -m benchmarks.reasoners --rows NAME --seeds 0 1 2`, which leaves alone what has a file in
`benchmarks/results/reasoners/`: about 0.25M parameters each, equal multiply-adds in training, problems held out by
symmetry orbit. Trajectories that differ get 20 × 16 depth steps, or what costs as much; a deterministic one, where
it has depth to use, the same cost as depth, too. ± is the standard deviation over training seeds. *Several*: the
problems with several answers.

"""


# What was hoped for: weights, figure, value, and whether that is a share of what uniform draws reach. Conflicts of
# the most frequent colouring, summed over graphs, are the published measure; not counted, it must be right.
GOALS = (
    ("queens8", "valid", 0.999, False),
    ("queens8", "coverage_macro_all", 0.99, False),
    ("queens10", "valid", 0.99, False),
    ("queens10", "coverage_macro_all", 0.95, False),
    ("colouring8", "conflicts_vote", 0.0, False),
    ("colouring8", "coverage_macro_all", 0.97, True),
    ("colouring10", "selected_vote", 1.0, False),
    ("colouring10", "coverage_macro_all", 0.95, True),
    ("queens8-blank", "coverage_macro_all", 1.0, False),
)


WIDENED = {  # heads of columns, and their figures
    "one draw valid": "valid",
    "vote": "vote",
    "conflicts of the vote": "conflicts_vote",
    "coverage macro, all": "coverage_macro_all",
    "coverage macro, several": "coverage_macro_several",
    "total variation, several": "total_variation_several",
}


def family(measured: Sequence[dict[str, Any]]) -> str:
    """The reasoners' table, how long each training took, and what noise was chosen."""
    minutes: dict[str, list[str]] = {}
    sigmas: dict[str, list[str]] = {}
    for result in measured:
        minutes.setdefault(result["model"], []).append(f"{result['minutes']:.1f}" if result["minutes"] else "–")
        for name, row in result["rows"].items():
            if "sigma" in row:
                sigmas.setdefault(name, []).append(str(row["sigma"]))
    taken, noise = (
        "; ".join(f"{name} {', '.join(values)}" for name, values in said.items()) for said in (minutes, sigmas)
    )
    after = f"Minutes of training, seed by seed, on one thread of a machine that did other work beside: {taken}."
    chosen = f" Noise chosen, seed by seed: {noise}." if sigmas else ""
    return f"{FAMILY}{table(measured)}\n\n{after} –: not recorded.{chosen}"


def goals() -> str:
    """What was hoped for beside what was measured."""
    lines = [
        "## Goals\n\nOf one training each. *Uniform*: what a perfect sampler's draws, as many, would have. *Wider "
        "noise*: as chosen on training problems.\n",
        "| weights | figure | goal | measured | uniform | |",
        "|---|---|---|---|---|---|",
    ]
    for name, figure, goal, share in GOALS:
        path = RESULTS / f"{name}.json"
        if not path.exists():
            continue
        report = json.loads(path.read_text(encoding="utf-8"))
        uniform = report["limits"]["uniform"].get(figure)
        least = goal * uniform if share else goal
        asked = f"{goal:.0%} of uniform, {least:.4f}" if share else f"{goal:g}"
        limit = "–" if uniform is None else f"{uniform:.4f}"
        measured = {name: report["figures"][figure]}
        path = RESULTS / "widening" / path.name
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            row = found["test"][found["chosen"]]
            measured[f"{name}, [wider noise](#wider-noise)"] = row[figure.removeprefix("selected_")]
        for weights, values in measured.items():
            mean = float(np.mean(values))
            over = round(mean, 4) - round(least, 4)
            said = "reached" if (over <= 0 if figure.startswith("conflicts") else over >= 0) else "missed"
            lines.append(f"| {weights} | {figure.replace('_', ' ')} | {asked} | {mean:.4f} | {limit} | {said} |")
    path = RESULTS / "queens8-blank.json"
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))["about"]["uniformity"]
        said = "reached" if found["found"] == found["answers"] else "missed"
        draws = f"boards in {found['draws']:,} right draws"
        lines.append(f"| queens8-blank | {draws} | {found['answers']} | {found['found']} | – | {said} |")
        measured = f"{found['chi_square']:.1f}, p = {found['p_value']:.0e}"
        lines.append(f"| queens8-blank | chi-square | reported | {measured} | {found['answers'] - 1} | – |")
    return "\n".join(lines)


def command(name: str, about: dict[str, Any]) -> str:
    """What makes a trained chain's figures again: options say what is not the recipe's own."""
    made = max((recipe for recipe in RECIPES if f"{name}-".startswith(f"{recipe}-")), key=len)
    recipe, call = RECIPES[made], f"python -m benchmarks.trainings {made}"
    split = name[len(made) + 1 :]  # or what tells apart weights of one recipe
    call += f" --split {split}" if split and str(about.get("split")).startswith(split) else ""
    call += " --data FOLDER" if recipe.reads else ""
    if not recipe.reads and recipe.task().name != about["task"]:
        return f"Of an earlier recipe, on other problems; today's is `{call}`"
    seeds = str(about["training seed"]).split(", ")
    parts = str(about.get("training parts") or about["training steps"]).split(", ")
    calls, goes_on = [], ""
    for seed, steps in zip(seeds, parts, strict=True):
        calls.append(call + goes_on.format(seed=seed))
        calls[-1] += f" --seed {seed}" if seed != "0" else ""
        calls[-1] += f" --steps {steps}" if int(steps) != recipe.steps else ""
        goes_on = f" --start FILE --folder runs/{name}-{{seed}}"
    # Of all held-out problems or of some: as many as these. Of drawings nothing is a problem.
    evaluated = about["problems"] > 1 and "several answers" in about
    calls[-1] += f" --problems {about['problems']}" if evaluated else ""
    where = [f"FOLDER has {file}" for file in recipe.reads.values()]
    where += ["FILE is what the command before has made"] if len(calls) > 1 else []
    return ", then ".join(f"`{call}`" for call in calls) + (f", where {' and '.join(where)}" if where else "")


def trained(path: Path) -> str:
    """A trained chain's figures."""
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    uniformity = report["about"].pop("uniformity", None)
    about = ", ".join(f"{key} {value}" for key, value in report["about"].items() if value is not None)
    lines = [
        f"## {path.stem}",
        "",
        f"{command(path.stem, report['about'])}: {about}.",
        *(["Nothing is held out: there is one problem, and training saw all its answers."] if uniformity else []),
        "",
        "| figure | mean ± sd | uniform | one answer |",
        "|---|---|---|---|",
    ]
    for name, values in report["figures"].items():
        limits = (report["limits"].get(kind, {}).get(name) for kind in ("uniform", "one answer"))
        cells = ["–" if limit is None else f"{limit:.4f}" for limit in limits]
        lines.append(f"| {name.replace('_', ' ')} | {_spread(values)} | " + " | ".join(cells) + " |")
    if uniformity:
        figure = (
            f"chi-square of the {uniformity['draws']:,} right draws of seed 0 (p = {uniformity['p_value']:.0e})"
        )
        lines.append(f"| {figure} | {uniformity['chi_square']:.1f} | {uniformity['answers'] - 1} | – |")
    return "\n".join(lines)


def measured_frontier(path: Path) -> str:
    """A frontier's verdict, picture and table."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    name, text = path.stem, found["verdict"]
    for written in found["verdicts"].values():  # today's words for the figures that were measured
        text = text.replace(written["text"], str(Verdict.from_dict(written)))
    found_by, rule = np.mean(found["figures"]["pass_at_n"], 0)[-1][-1], found["verdicts"]["selected"]["measure"]
    loses = selection(found_by, *found["selection_gap"], rule, found["widths"][-1])
    lines = [loses if line.startswith("Selection") else line for line in text.splitlines()]
    verdict = "\n".join(f"* {line}" for line in lines if line)
    data = " --data FOLDER" if name in RECIPES and RECIPES[name].reads else ""
    picture = f"![Depth and width of {name}](frontier_{name}.png)"
    parts = [
        f"## Depth or width: {name}",
        f"`python -m benchmarks.frontiers {name}{data}`",
        verdict,
        picture,
        found["table"],
    ]
    return "\n\n".join(parts)


def boards_by_clues(path: Path) -> str:
    """What the Sudoku weights solve, by given cells."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    about = ", ".join(f"{key} {value}" for key, value in found["about"].items() if value is not None)
    return (
        "## Sudoku 9x9, by given cells\n\n`python -m benchmarks.sudoku9 --data FOLDER`, of the weights "
        f"[sudoku9](#sudoku9): {about}. ± is the standard error over problems. Of easy50, top95 "
        f"and sudokus_17 boards with an image in training are left out.\n\n{sudoku9.table(found)}"
    )


def halves_of_digits(path: Path) -> str:
    """How well the lower part of digits is drawn, given the upper."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    about = ", ".join(f"{key} {value}" for key, value in found["about"].items())
    figures = dict(found["pixels below that agree"])
    ess = figures.pop("ess of the filter")["mean"]
    rows = "\n".join(f"| {name} | {v['mean']:.4f} ± {v['se']:.4f} |" for name, v in figures.items())
    return (
        "## The other half of a digit\n\n`python -m benchmarks.digits --data FOLDER --weights FILE`, FILE being "
        f"the weights of [digits](#digits): {about}; effective sample size of the filter {ess}; ± is the standard "
        "error over pictures.\n\n"
        f"| drawn from | pixels below that agree |\n|---|---|\n{rows}\n\n"
        "![Drawings from nothing; four held-out digits and four ways to finish each](pictures/digits.png)"
    )


def same_on_both(path: Path) -> str:
    """How far PyTorch and JAX are apart on the shipped weights."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    about = ", ".join(f"{key} {value}" for key, value in found["about"].items())
    return (
        f"## PyTorch and JAX\n\n`python -m benchmarks.agreement`: {about}. The largest differences in a depth step "
        "from the same state and noise, divided by the largest magnitude where that is above 1 (the gradient is "
        "one vector). As they come, float32's gradients are more than 1e-5 apart, and torch's as far from its own "
        "float64 (*float32 itself*); with `exact_sums` in linear layers they are not. Whole runs: 16 depth steps "
        f"of 20 trajectories; h as it comes, answers equal in all tokens at every depth.\n\n{found['table']}"
    )


def speed_of_both(path: Path) -> str:
    """How fast PyTorch and JAX are, and the filter beside its peers."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    about = ", ".join(f"{key} {value}" for key, value in found["about"].items())
    return (
        f"## Speed of PyTorch and JAX\n\n`python -m benchmarks.backends`: {about}. The shipped queens8 GRAM at 16 "
        "depth steps, one board; its training; bootstrap filters, resampled systematically at every one of 100 "
        "steps. A process a candidate, all on one core, taking turns; ratios are medians of rounds [quartiles].\n\n"
        f"{found['table']}"
    )


def gold_posterior(path: Path) -> str:
    """NUTS, the conditional filter and a trained guide on small chains, against what is known exactly."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    about = ", ".join(f"{key} {value}" for key, value in found["about"].items())
    return (
        f"## A gold posterior\n\n`python -m benchmarks.gold_posterior`: {about}. Six transitions of two features; "
        "largest of 36 coordinates of two problems, noise and states. *z*: differences over their standard errors, "
        "from effective sample sizes; *KS*, *energy*: p-values of two-sample tests on 500 thinned draws. A guide "
        f"that is mean-field in a transition is expected to be too narrow.\n\n{found['table']}"
    )


def noise_widened(paths: Sequence[Path]) -> str:
    """What wider noise does to trained weights."""
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}
    about = next(iter(found.values()))["about"]
    lines = [
        f"## Wider noise\n\n`python -m benchmarks.widening {' '.join(found)}`: `widened(chain, factor)`, sigma(u) "
        "times a factor, or, *at first*, `widened(chain, factor, steps)` in a quarter of the steps; shipped "
        f"weights, or the file that the training has made; width {about['width']}, depth of their recipe; training "
        "problems with seed 0, held-out ones with seeds 0 to 2 (mean ± sd), in another order than in evaluations, "
        "so that draws are others. A setting is chosen (bold) on training problems alone: highest coverage among "
        "those whose draws are right as often as at factor 1 but for 0.005.\n",
        "| weights | depth | problems | factor | " + " | ".join(WIDENED) + " |",
        "|---|---|---|---|" + "---|" * len(WIDENED),
    ]
    for name, result in found.items():
        for split, said in (("train", "training"), ("test", "held-out")):
            for factor, figures in result[split].items():
                bold = "**" if factor == result["chosen"] else ""
                cells = [_spread(figures.get(key), bold) for key in WIDENED.values()]
                count, depth = (result["about"][key] for key in (f"{said} problems", "depth"))
                lines.append(
                    f"| {name} | {depth} | {count} {said} | {bold}{factor}{bold} | " + " | ".join(cells) + " |"
                )
    return "\n".join(lines)


def _spread(values: list[float] | None, bold: str = "") -> str:
    """Mean ± standard deviation over seeds, to four digits; a dash where nothing was measured."""
    if values is None:
        return "–"
    spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
    return f"{bold}{np.mean(values):.4f}{bold}{spread}"


def page() -> str:
    """The whole page."""
    parts = [HEAD.rstrip(), goals(), *(trained(path) for path in sorted(RESULTS.glob("*.json")))]
    measured = read()
    if measured:
        parts.insert(2, family(measured))
    widened = sorted((RESULTS / "widening").glob("*.json"))
    parts += [noise_widened(widened)] if widened else []
    parts += [boards_by_clues(path) for path in RESULTS.glob("sudoku9/by_clues.json")]
    parts += [halves_of_digits(path) for path in RESULTS.glob("digits/half.json")]
    parts += [same_on_both(path) for path in RESULTS.glob("backends/agreement.json")]
    parts += [speed_of_both(path) for path in RESULTS.glob("backends/speed.json")]
    parts += [gold_posterior(path) for path in RESULTS.glob("backends/gold_posterior.json")]
    parts += [measured_frontier(path) for path in sorted((RESULTS / "frontiers").glob("*.json"))]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    write_bytes(PAGE, page().encode())
