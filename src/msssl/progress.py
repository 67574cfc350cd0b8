"""A progress bar for what takes long outside of training."""

from collections.abc import Iterable
from typing import TypeVar

from lightning.fabric.utilities.rank_zero import rank_zero_only
from rich.console import Console
from rich.progress import track

T = TypeVar("T")


def with_bar(steps: Iterable[T], what: str, total: int | None = None) -> Iterable[T]:
    """The steps, with a bar on the terminal of rank 0 that goes away at the end; none where the output is a file."""
    console = Console(stderr=True)
    hidden = getattr(rank_zero_only, "rank", 0) > 0 or not console.is_terminal
    return track(steps, description=what, total=total, transient=True, console=console, disable=hidden)
