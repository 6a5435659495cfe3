"""docs/results.md says what was measured, and nothing else."""

from benchmarks.results import PAGE, page


def test_the_page_of_results_is_what_the_measurements_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m benchmarks.results writes it"
