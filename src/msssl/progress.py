"""A progress bar for long work outside of training, such as the extraction of features."""

from collections.abc import Iterable
from typing import TypeVar

from lightning.fabric.utilities.rank_zero import rank_zero_only
from rich.console import Console
from rich.progress import track

T = TypeVar("T")


def with_bar(steps: Iterable[T], what: str, total: int | None = None) -> Iterable[T]:
    """Iterate over steps with a progress bar, which is shown by rank 0 on a terminal only, and removed at the end."""
    console = Console(stderr=True)
    hidden = getattr(rank_zero_only, "rank", 0) > 0 or not console.is_terminal
    return track(steps, description=what, total=total, transient=True, console=console, disable=hidden)
