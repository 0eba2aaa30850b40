"""What a person sees of a run."""

import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes
from rich.console import Console

from course_lib.train.report import LiveCurve, ProgressLine, TensorBoard, curve, several


def records(steps: int, look: int = 10) -> list[dict]:
    made = []
    for step in range(1, steps + 1):
        made.append({"step": step, "loss": 5.0 / step, "norm": 1.0, "rate": 1.0, "seconds": 0.5})
        if step % look == 0:
            made[-1]["bits_per_byte"] = 3.0 / step
    return made


def heights(axes: Axes, line: int) -> np.ndarray:
    return np.asarray(axes.get_lines()[line].get_ydata())


def test_every_look_leaves_a_line_with_speed_and_share():
    out = io.StringIO()
    line = ProgressLine(20, 1000, flops_a_token=6e6, peak=1e11, console=Console(file=out, width=100))
    with line:
        for record in records(20):
            line(record)
    shown = out.getvalue()
    lines = [text for text in shown.splitlines() if "bits/byte" in text]
    assert len(lines) == 2
    # 1000 tokens in half a second, 6 million operations each, of 100 billion a second
    assert "2,000 tok/s  MFU 12%" in lines[1]
    assert "step     20" in lines[1]
    assert "0.1500 bits/byte held out" in lines[1]


def test_tensorboard_reads_the_curves_back(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = TensorBoard(tmp_path)
    for record in records(20):
        board(record)
    board.writer.close()
    found = EventAccumulator(str(tmp_path))
    found.Reload()
    assert set(found.Tags()["scalars"]) == {"loss", "norm", "rate", "seconds", "bits_per_byte"}
    assert [event.step for event in found.Scalars("bits_per_byte")] == [10, 20]
    assert [event.value for event in found.Scalars("loss")] == pytest.approx([5 / i for i in range(1, 21)])


def test_the_live_figure_holds_this_run_and_the_ones_beside_it():
    figure, axes = plt.subplots()
    live = LiveCurve(figure, axes, every=5, beside={"shipped": records(30)})
    for record in records(12):
        live(record)
    lines = axes.get_lines()
    assert [line.get_label() for line in lines] == ["shipped", "this run"]
    assert [len(heights(axes, i)) for i in (0, 1)] == [30, 10], "drawn every fifth step"
    live.draw()
    assert len(axes.get_lines()) == 2, "old lines are gone"
    assert len(heights(axes, 1)) == 12
    plt.close(figure)


def test_the_curve_is_smooth_and_not_late():
    figure, axes = plt.subplots()
    noisy = [{"step": i, "loss": 3.0 + (-1) ** i} for i in range(1, 400)]
    curve(axes, noisy)
    assert np.abs(heights(axes, 0)[100:] - 3.0).max() < 0.2
    curve(axes, [{"step": i, "loss": 1.0 if i > 200 else 4.0} for i in range(1, 401)])
    assert heights(axes, 1)[260] < 1.2
    plt.close(figure)


def test_several_reports_are_called_in_order():
    seen: list[tuple[str, int]] = []
    both = several(lambda r: seen.append(("a", r["step"])), lambda r: seen.append(("b", r["step"])))
    both({"step": 1})
    both({"step": 2})
    assert seen == [("a", 1), ("b", 1), ("a", 2), ("b", 2)]
