"""What a caller may pass to see an extraction advance, and such a display for a terminal.

Nothing but the standard error stream is ever written to: standard output belongs to results.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class ProgressLike(Protocol):
    """The two calls of ``rich.progress.Progress`` that are used; both may come from several threads."""

    def add_task(self, description: str, *, total: float | None) -> "TaskID":
        """A new line, ``total`` images long."""

    def update(self, task_id: "TaskID", *, advance: float) -> None:
        """``advance`` more images are done."""


class Silent:
    """Shows nothing."""

    def add_task(self, description: str, *, total: float | None) -> "TaskID":
        """No line."""
        from rich.progress import TaskID

        return TaskID(0)

    def update(self, task_id: "TaskID", *, advance: float) -> None:
        """No news."""


@contextmanager
def console_progress() -> Iterator["Progress"]:
    """A bar a split on standard error, with images a second and the time left; nothing before the first line."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.progress import Task as Line
    from rich.text import Text

    class ImagesPerSecond(TextColumn):
        """Images a second over the last half minute."""

        def render(self, task: Line) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{speed:,.0f} images/s")

    class Late(Progress):
        """Appears with its first line, so that an error before it stands alone."""

        def add_task(self, *args: Any, **options: Any) -> "TaskID":  # noqa: ANN401
            self.start()
            return super().add_task(*args, **options)

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), ImagesPerSecond(""), TimeRemainingColumn(),
    )  # fmt: skip
    progress = Late(*columns, console=Console(stderr=True))
    try:
        yield progress
    finally:
        if progress.live.is_started:
            progress.stop()
