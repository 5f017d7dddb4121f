"""Tables on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pwl_hf.modeling.plain import one_line
from pwl_hf.modeling.publishing.model_card import human_bytes, stage_rows
from pwl_hf.modeling.repository.manifest import Manifest


def stage_table(manifest: Manifest, console: Console | None = None) -> None:
    """Print a row a stage: what it adds, the sum so far, and its metrics.

    Args:
        manifest: The repository's manifest.
        console: Where to print; the terminal by default.
    """
    rows = stage_rows(manifest)
    names = list(dict.fromkeys(name for row in rows for name in row["metrics"]))
    table = Table("stage", "sources", "adds", "so far", "parameters")
    for name in names:
        # Not a string, in which brackets would be markup.
        table.add_column(Text(one_line(name)))
    for row in rows:
        table.add_row(
            str(row["stage"]),
            row["sources"],
            human_bytes(row["bytes"]),
            human_bytes(row["total_bytes"]),
            f"{row['total_parameters']:,}",
            *(f"{row['metrics'][name]:.4f}" if name in row["metrics"] else "-" for name in names),
        )
    (console or Console()).print(table)
