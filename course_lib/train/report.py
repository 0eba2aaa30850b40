"""What a person sees of a run: a line that moves, a curve, TensorBoard."""

import math
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:  # a run in a terminal needs no matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = dict[str, Any]
Report = Callable[[Record], None]


class ProgressLine:
    """A bar with loss, tokens a second, the share of the machine that is used, and the time left.

    A line of its own for every evaluation stays on the screen. Where the output is no terminal (a log file)
    only those lines are written.

    total: the steps of the run. tokens_a_step: of all ranks. flops_a_token and peak: for the share; peak
    is what the machine reaches in one large product.
    """

    def __init__(
        self,
        total: int,
        tokens_a_step: int,
        flops_a_token: float,
        peak: float,
        console: Console | None = None,
    ) -> None:
        self.tokens_a_step, self.flops_a_token, self.peak = tokens_a_step, flops_a_token, peak
        self.times: deque[float] = deque(maxlen=20)
        self.smooth = math.nan
        self.progress = Progress(
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(bar_width=20),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=console or Console(highlight=False),
            transient=True,
        )
        self.task = self.progress.add_task("", total=total)

    def __enter__(self) -> "ProgressLine":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def __call__(self, record: Record) -> None:
        self.times.append(record["seconds"])
        loss = record["loss"]
        self.smooth = loss if math.isnan(self.smooth) else 0.9 * self.smooth + 0.1 * loss
        speed = len(self.times) * self.tokens_a_step / sum(self.times)
        used = speed * self.flops_a_token / self.peak
        words = f"loss {self.smooth:.3f}  {speed:,.0f} tok/s  MFU {used:.0%}"
        self.progress.update(self.task, completed=record["step"], description=words)
        if "bits_per_byte" in record:
            self.say(f"step {record['step']:6}  {words}  {record['bits_per_byte']:.4f} bits/byte held out")

    def say(self, text: str) -> None:
        """A line that stays, above the bar."""
        self.progress.console.print(text, markup=False, highlight=False)


class TensorBoard:
    """Every number of a record as a curve: `tensorboard --logdir FOLDER`."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder))

    def __call__(self, record: Record) -> None:
        for name, value in record.items():
            if name != "step":
                self.writer.add_scalar(name, value, record["step"])


class LiveCurve:
    """The loss of a run in a notebook, drawn again while it falls.

    figure, axes: of matplotlib. every: steps between two drawings. beside: records of earlier runs by name,
    drawn in gray. The horizontal axis is steps; the loss is in nats a token.
    """

    def __init__(
        self,
        figure: "Figure",
        axes: "Axes",
        every: int = 10,
        beside: dict[str, Sequence[Record]] | None = None,
    ) -> None:
        from IPython.display import display

        self.figure, self.axes, self.every, self.beside = figure, axes, every, beside or {}
        self.records: list[Record] = []
        self.handle = display(figure, display_id=True)

    def __call__(self, record: Record) -> None:
        self.records.append(record)
        if record["step"] % self.every == 0 or "bits_per_byte" in record:
            self.draw()

    def draw(self) -> None:
        self.axes.clear()
        for name, records in self.beside.items():
            curve(self.axes, records, label=name, color="0.7")
        curve(self.axes, self.records, label="this run", color="C0")
        self.axes.set_xlabel("step")
        self.axes.set_ylabel("loss, nats a token")
        self.axes.legend(frameon=False)
        if self.handle is not None:
            self.handle.update(self.figure)


def curve(axes: "Axes", records: Sequence[Record], **style: Any) -> None:
    """Plot the loss, smoothed over the last twentieth of the steps so far, as the eye would."""
    points, mean = [], math.nan
    for record in records:
        weight = min(0.5, 20 / (record["step"] + 19))
        mean = record["loss"] if math.isnan(mean) else mean + weight * (record["loss"] - mean)
        points.append((record["step"], mean))
    axes.plot([x for x, _ in points], [y for _, y in points], **style)


def several(*reports: Report) -> Report:
    """One report that calls all of them, in order."""

    def report(record: Record) -> None:
        for each in reports:
            each(record)

    return report
