"""A progress bar for a download: a moving one in a terminal, two lines anywhere else."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from course_lib.assets.catalog import Asset
from course_lib.assets.store import Progress as Report


@contextmanager
def shown(asset: Asset) -> Iterator[Report]:
    """Show the asset coming in on stderr; yields the function that takes (bytes so far, bytes in all)."""
    console = Console(stderr=True)
    if not console.is_terminal:
        print(
            f"Fetching {asset.name}: {asset.title} ({asset.archive.size / 1e6:.1f} MB)",
            file=sys.stderr,
            flush=True,
        )
        yield lambda done, total: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=console) as bars:
        task = bars.add_task(f"{asset.name:12}", total=asset.archive.size)
        yield lambda done, total: bars.update(task, completed=done, total=total)
