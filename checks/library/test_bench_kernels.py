"""`make kernels`: what it prints and writes, and that it fails where a kernel is wrong."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console

from course_lib.bench import kernels as bench
from course_lib.kernels.catalog import cuda
from course_lib.kernels.lab import Module


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests are about the laptop's run; the other takes a GPU."""
    monkeypatch.setattr("course_lib.kernels.lab.on_cuda.driver", lambda: None)
    monkeypatch.setattr(bench.sys, "platform", "linux")


def written(folder: Path) -> list[dict[str, Any]]:
    (path,) = folder.glob("kernels-*.json")
    content: dict[str, Any] = json.loads(path.read_text())
    assert content["machine"]
    kernels: list[dict[str, Any]] = content["kernels"]
    return kernels


def test_a_kernel_in_all_three_languages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench.main(only="vector_add", out=tmp_path)
    printed = capsys.readouterr().out
    assert all(len(line) <= 80 for line in printed.splitlines()[:-1])  # the last is a path
    rows = written(tmp_path)
    assert {row["language"] for row in rows} == {"CUDA", "Metal", "Triton"}
    for row in rows:
        if not row["skipped"]:
            assert row["counted"] == row["formula"] == 12 * 4096
            assert 0 <= row["error"] < 1e-6 and row["wrong"] == []
        assert row["seconds"] is None and row["share"] is None
    assert printed.count("49,152") == sum(not row["skipped"] for row in rows)
    assert f"of {len(rows)} right, 0 wrong." in printed


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("a[i] + b[i]", "a[i] - b[i]"), "c[0] is"),
        (("if (i < n) c", "c"), "vector_add"),
        (("+ b[i]", "+ b[i], c[i] = *(volatile const float*)(a + i) + b[i]"), "a: 8,024 bytes counted"),
    ],
    ids=["wrong result", "past the end", "more bytes"],
)
def test_a_wrong_kernel_fails_the_run(
    change: tuple[str, str],
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernel = dataclasses.replace(cuda.find("vector_add"), counted=(1003,))
    source = kernel.path.read_text()
    assert change[0] in source
    changed = Module(source.replace(*change))
    monkeypatch.setattr(bench, "module_of", lambda path: changed)
    monkeypatch.setattr(bench, "runs", lambda only: [("CUDA", kernel.name, lambda: bench.in_the_lab(kernel))])
    with pytest.raises(typer.Exit) as caught:
        bench.main(only="", out=tmp_path)
    assert caught.value.exit_code == 1
    (row,) = written(tmp_path)
    assert any(says in text for text in row["wrong"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "WRONG: CUDA vector_add (lab):" in printed and "0 of 1 right, 1 wrong." in printed


def test_every_catalogued_kernel_is_run() -> None:
    from course_lib.kernels.catalog import metal, triton

    listed = [(language, name) for language, name, _ in bench.runs()]
    assert listed == [
        (language, kernel.name)
        for language, module in (("CUDA", cuda), ("Metal", metal), ("Triton", triton))
        for kernel in module.KERNELS
    ]


def test_a_timed_row_shows_its_share_of_the_roofline() -> None:
    row = bench.Row("softmax", "GPU", 1e-7, seconds=2.5e-3, share=0.8)
    console = Console(width=80)
    with console.capture() as seen:
        console.print(bench.table({"CUDA": [row]}))
    assert "2.50 ms" in seen.get() and "80%" in seen.get()


def test_the_roofline_takes_the_slower_of_memory_and_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "speeds", lambda half: (1e12, 1e13 * (1 + half)))
    addition = cuda.find("vector_add").at(1000).problem
    assert bench.floor(addition) == pytest.approx(12000 / 1e12)
    product = cuda.find("matmul_tiled").at(64, 64, 4096).problem
    assert bench.floor(product) == pytest.approx(2 * 64 * 64 * 4096 / 1e13)
    halves = cuda.find("matmul_wmma").at(64, 64, 4096).problem
    assert bench.floor(halves) == pytest.approx(2 * 64 * 64 * 4096 / 2e13)
