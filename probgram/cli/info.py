"""`probgram info`: what a weight file holds."""

import json

from probgram.cli.common import Json, Weights, print_json


def info(weights: Weights, as_json: Json = False) -> None:
    """Say what a weight file holds: model, sizes, task, split, seed, figures. Loads no network.

    **Example**: `probgram info queens8`
    """
    from probgram.checkpoint import describe

    content = describe(weights)
    if as_json:
        print_json("info", **content)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None)
    for name, value in content.items():
        rows = value.items() if isinstance(value, dict) else [("", value)]
        for i, (key, entry) in enumerate(rows):
            table.add_row(name if i == 0 else "", key, json.dumps(entry) if not isinstance(entry, str) else entry)
    Console(markup=False, emoji=False).print(table)
