"""The command line. It alone maps words to functions; what a command prints as JSON names its schema.

Exit codes: 0 done; 1 ran, but no answer to a problem is right, or sure enough, or training was interrupted or
diverged; 2 bad input, or a file that cannot be read or written.
"""

import logging
from typing import Annotated

import typer

from probgram.cli import demo, evaluate, frontier, info, report, solve, train
from probgram.cli.common import Group

app = typer.Typer(cls=Group, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="markdown")


@app.callback()
def root(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens, to standard error.")] = False,
) -> None:
    """Wide latent recursive reasoning: solve a puzzle with many latent trajectories, train, evaluate.

    Start with `probgram demo`, then `probgram solve queens8 --board "0 . . . . . . ."`
    """
    from rich.console import Console
    from rich.logging import RichHandler

    handler = RichHandler(console=Console(stderr=True), show_path=False, show_time=False)
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(message)s", handlers=[handler]
    )


for command in (
    solve.solve,
    train.train,
    evaluate.evaluate,
    frontier.frontier,
    report.report,
    info.info,
    demo.demo,
):
    app.command()(command)


def main() -> None:
    """Entry point of the `probgram` command."""
    app()
