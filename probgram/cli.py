"""The command line. It alone maps words to functions."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(
    name="probgram", help="Wide latent recursive reasoning.", no_args_is_help=True, add_completion=True
)


@app.callback()
def root() -> None:
    """Wide latent recursive reasoning as probabilistic programs."""


@app.command()
def demo(
    picture: Annotated[Path, typer.Option(help="PNG of coverage against width.")] = Path("width.png"),
    width: Annotated[int, typer.Option(min=1, help="Trajectories a board.")] = 20,
    depth: Annotated[int, typer.Option(min=1, help="Depth steps.")] = 16,
    seed: Annotated[int, typer.Option(help="Same seed, same boards.")] = 0,
) -> None:
    """Complete three 8-queens boards with the shipped weights, and draw coverage against width."""
    from probgram import demo as shown

    shown.run(Console(), picture, width, depth, seed)


def main() -> None:
    """Entry point of the `probgram` command."""
    app()


if __name__ == "__main__":
    main()
