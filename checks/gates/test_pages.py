"""The pages tell the truth: links lead somewhere, generated parts are current, status is the files'."""

import itertools
import platform
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from course_lib.classroom import course_map, expect, figures, pages
from course_lib.classroom.lesson import available_days, load_lesson
from course_lib.classroom.syllabus import PLAN, WEEKS, find, syllabus

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["README.md", "days/README.md", ".github/CONTRIBUTING.md"]

# What the course promises to have the learner write: kept apart from the syllabus that is tested against it.
PROMISED = {
    1: [
        "numerics.contractions",
        "numerics.softmax",
        "numerics.logsumexp",
        "numerics.cross_entropy",
        "numerics.perplexity",
        "numerics.numerical_gradient",
        "numerics.sample_categorical",
        "hardware.matmul_cost",
        "numerics.round_to_bfloat16",
    ],
    5: [
        "tokenizer.pair_counts",
        "tokenizer.merge_pair",
        "tokenizer.train_bpe",
        "tokenizer.encode_chunk",
        "tokenizer.decode",
        "tokenizer.split_special_tokens",
        "tokenizer.IncrementalDetokenizer",
    ],
}


def without_code(markdown: str) -> str:
    return re.sub(r"^(`{3,}).*?^\1", "", markdown, flags=re.DOTALL | re.MULTILINE)


def links(page: Path) -> list[str]:
    text = without_code(page.read_text(encoding="utf-8"))
    return re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)


def anchors(page: Path) -> set[str]:
    """Heading anchors as GitHub makes them: lower case, punctuation dropped, spaces to hyphens."""
    headings = re.findall(r"^#+ (.+)$", without_code(page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_every_relative_link_leads_to_a_file_and_every_anchor_to_a_heading(name):
    page = ROOT / name
    local = [link for link in links(page) if not link.startswith(("http:", "https:", "mailto:"))]
    assert local, f"{name} has no relative link: the test looks for the wrong thing"
    for link in local:
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name} links to {link}, which is not there"
        if anchor:
            assert anchor in anchors(target), f"{name} links to {link}, but no heading makes that anchor"


@pytest.mark.parametrize("name", PAGES)
def test_web_links_are_https_and_well_formed(name):
    plain_http = {"http://neuralnetworksanddeeplearning.com/"}  # serves no https
    for link in links(ROOT / name):
        if link.startswith("http:"):
            assert link in plain_http, f"{name}: {link} should be https"
        if "arxiv.org" in link:
            assert re.fullmatch(r"https://arxiv\.org/abs/\d{4}\.\d{4,5}", link), f"{name}: {link}"


def test_generated_regions_are_current():
    stale = pages.stale(ROOT, figures=False)
    assert not stale, f"run python -m course_lib.classroom.syllabus --write: {', '.join(stale)} out of date"


@pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="the last digits of a path may differ between processors; the committed files are from x86-64",
)
def test_committed_figures_are_what_the_code_draws():
    stale = pages.stale(ROOT)
    assert not stale, f"run python -m course_lib.classroom.syllabus --write: {', '.join(stale)} out of date"


def test_status_is_read_from_the_files():
    built = {day.number for day in syllabus(ROOT) if day.built}
    assert built == set(available_days(ROOT))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert {int(n) for n in re.findall(r"● (\d+) \[", readme)} == built
    assert {int(n) for n in re.findall(r"○ (\d+) ", readme)} == set(range(1, 31)) - built


def test_a_day_is_built_only_with_its_lesson(tmp_path):
    assert not any(day.built for day in syllabus(tmp_path))
    folder = tmp_path / "solutions" / "day_02_tensors_by_another_name"
    folder.mkdir(parents=True)
    assert not find(2, tmp_path).built, "a folder without lesson.md is no lesson"
    (folder / "lesson.md").write_text(
        "---\njupyter:\n  day: 2\n  title: Another title\n  minutes: 95\n  summary: One sentence.\n---\n\n"
        "## 1. Where you are\n\nProse.\n",
        encoding="utf-8",
    )
    day = find(2, tmp_path)
    assert (day.built, day.title, day.minutes, day.folder) == (True, "Another title", 95, folder.name)
    assert "● 2 [Another title]" in pages.week_map(syllabus(tmp_path), "days/")


@pytest.mark.parametrize("number", sorted(PROMISED))
def test_what_the_curriculum_promises_is_in_the_lesson(number):
    planned = next(day for day in PLAN if day.number == number)
    assert set(PROMISED[number]) <= set(planned.exercises)
    if number not in available_days(ROOT):
        pytest.skip(f"day {number} has no lesson yet")
    missing = set(PROMISED[number]) - set(load_lesson(number).exercises)
    assert not missing, f"day {number} does not ask for {sorted(missing)}"


def test_built_days_ask_for_everything_that_was_planned():
    for day in PLAN:
        if day.number in available_days(ROOT):
            missing = set(day.exercises) - set(load_lesson(day.number).exercises)
            assert not missing, f"day {day.number} was planned with {sorted(missing)}; change plan or lesson"


def test_the_plan_is_thirty_days_in_four_weeks():
    assert [day.number for day in PLAN] == list(range(1, 31))
    assert [number for week in WEEKS for number in week.days] == list(range(1, 31))
    assert len({day.slug for day in PLAN}) == 30
    names = [name for day in PLAN for name in day.exercises]
    assert len(set(names)) == len(names), "an exercise is planned twice"
    with pytest.raises(ValueError, match="no day 31"):
        find(31)


def test_every_day_lights_a_room_of_the_map():
    lit = {number for room in course_map.ROOMS for number in room.days}
    assert lit == set(range(1, 31))


@pytest.mark.parametrize("day", [0, 31, "five", 2.0])
def test_the_map_refuses_a_day_that_is_not_one(day):
    with pytest.raises(ValueError, match="1 to 30"):
        course_map.draw_map(day)


def test_the_palette_can_be_read_on_white():
    for name in ("INK", "BLUE", "ORANGE", "GREEN", "RED", "GREY"):
        contrast = 1.05 / (figures.luminance(getattr(figures, name)) + 0.05)
        assert contrast >= 3, f"{name} has a contrast of {contrast:.2f} on white; a line needs 3"


# Linear RGB as a person without red, green or blue cones sees it (Machado, Oliveira & Fernandes, 2009).
SEEN_BY = {
    "everybody": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopes": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopes": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "tritanopes": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}


def cielab(linear_rgb: np.ndarray) -> np.ndarray:
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ np.clip(linear_rgb, 0, 1) / to_xyz.sum(axis=1)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("eyes", SEEN_BY)
def test_the_palette_stays_apart(eyes):
    from matplotlib.colors import to_rgb

    names = ("INK", "BLUE", "ORANGE", "GREEN", "RED", "GREY")
    rgb = [np.array(to_rgb(getattr(figures, name))) for name in names]
    linear = [np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) for c in rgb]
    seen = [cielab(np.array(SEEN_BY[eyes]) @ c) for c in linear]
    for (one, here), (other, there) in itertools.combinations(zip(names, seen, strict=True), 2):
        distance = np.linalg.norm(here - there)  # 2 is just noticed
        assert distance > 12, f"{one} and {other} are {distance:.0f} apart for {eyes}"


def test_cells_says_what_does_not_fit():
    fig, ax = figures.figure()
    with pytest.raises(ValueError, match="3 texts, 2 widths"):
        figures.cells(ax, ["a", "b", "c"], widths=[1, 2])
    assert figures.cells(ax, ["a", "b"], x=1, widths=[1, 3]) == [1.5, 3.5]
    fig.clear()


def test_importing_figures_and_map_does_not_import_matplotlib():
    code = (
        "import sys; from course_lib.classroom import course_map, figures, pages, syllabus;"
        "sys.exit('matplotlib' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("name", PAGES)
def test_pages_speak_of_the_project_only(name):
    """No workplace path, no emoji, no line that is left to be written."""
    text = (ROOT / name).read_text(encoding="utf-8")
    for pattern in (r"/(work|root)/", r"\.\./shared", r"\bTODO\b", r"\bFIXME\b", "[\U0001f300-\U0001faff]"):
        assert not re.search(pattern, text), f"{name} contains {pattern}"


def example(language: str) -> str:
    """The one block of that language in CONTRIBUTING.md that is about the entropy exercise."""
    text = (ROOT / ".github/CONTRIBUTING.md").read_text(encoding="utf-8")
    blocks = [
        match[3]
        for match in re.finditer(r"^(`{3,})(\w+)\n(.*?)^\1$", text, re.DOTALL | re.MULTILINE)
        if match[2] == language
    ]
    (found,) = [block for block in blocks if "entropy" in block]
    return found


def run_checks(cell: str, checks: list[str]) -> list[bool]:
    """Which of the checks an exercise cell passes, each in a namespace of its own."""
    passed = []
    for check in checks:
        names = {"np": np, "Float": _Shape(), "expect": expect.expect, "rng": expect.rng}
        exec(cell, names)
        try:
            exec(check, names)
            passed.append(True)
        except AssertionError:
            passed.append(False)
    return passed


class _Shape:
    """Stands in for jaxtyping's Float, so that the example's signature can be evaluated."""

    def __getitem__(self, key):
        return object


def test_the_example_of_how_to_contribute_works(tmp_path):
    front = "---\njupyter:\n  day: 1\n  title: T\n  minutes: 6\n  summary: S.\n---\n\n## 6. Exercises\n\n"
    path = tmp_path / "lesson.md"
    path.write_text(front + example("markdown"), encoding="utf-8")
    exercise = load_lesson(path).exercises["numerics.entropy"]
    checks = [check.source for check in exercise.checks]
    reference = example("py").replace("@exercise(day=1)\n", "")
    assert run_checks(reference, checks) == [True] * len(checks)
    assert len(exercise.hints) >= 2
    assert len(exercise.wrongs) >= 3
    for wrong in exercise.wrongs:
        if any(forbidden in wrong.source for forbidden in exercise.forbid):
            continue  # right by value: the grader refuses it for what it calls
        assert not all(run_checks(wrong.source, checks)), f"the checks let through: {wrong.says}"
