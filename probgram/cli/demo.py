"""`probgram demo`: three boards completed, and a picture."""

from pathlib import Path
from typing import Annotated

import typer

from probgram.cli.common import Seed, Width


def demo(
    picture: Annotated[Path, typer.Option(help="PNG of coverage against width.")] = Path("width.png"),
    width: Width = 20,
    depth: Annotated[int, typer.Option(min=1, help="Depth steps.")] = 16,
    seed: Seed = 0,
) -> None:
    """Complete three 8-queens boards with the shipped weights, and draw coverage against width.

    **Example**: `probgram demo --width 64 --picture coverage.png`
    """
    from rich.console import Console

    from probgram import demo as shown
    from probgram.checkpoint import check_writable

    check_writable(picture)
    shown.run(Console(), picture, width, depth, seed)
