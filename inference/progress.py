"""A progress bar for training, by rich; or nothing."""

from typing import Any


class ProgressBar:
    """A rich progress bar, or nothing."""

    def __init__(self, steps: int, done: int, shown: bool) -> None:
        self.progress: Any = None
        if shown:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.description}"),
            )
            self.progress = Progress(*columns, console=Console(stderr=True))  # standard output is for results
            self.bar = self.progress.add_task("", total=steps, completed=done)

    def __enter__(self) -> "ProgressBar":
        if self.progress is not None:
            self.progress.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self.progress is not None:
            self.progress.stop()

    def update(self, step: int, line: dict[str, float]) -> None:
        """Show the latest figures."""
        if self.progress is None:
            return
        # Not what is right in training: its trajectories may have seen y on the way, held-out ones have not.
        names = {"reconstruction": "nats", "kl": "KL", "valid_held_out": "held out"}
        text = "  ".join(f"{label} {line[name]:.3f}" for name, label in names.items() if name in line)
        self.progress.update(self.bar, completed=step, description=text)
