"""Day 1 in a real browser: JupyterLab as `make start` opens it, all cells run, a wrong and a right answer."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request

import pytest

from course_lib.classroom import lesson as lessons
from course_lib.classroom import sources, start

BROWSER = next(
    filter(
        None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))
    ),
    None,
)
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
TOKEN = "for-this-test-only"

pytestmark = pytest.mark.skipif(
    BROWSER is None,
    reason="no Chromium on PATH: `apt-get install --no-install-recommends chromium` brings one",
)


class Lab:
    """JupyterLab with one notebook open: what a person sees and does."""

    def __init__(self, page, notebook):
        self.page = page
        self.cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]

    def index(self, name, kind):
        marks = [cell["metadata"]["course"] for cell in self.cells]
        return next(i for i, mark in enumerate(marks) if (mark["name"], mark["kind"]) == (name, kind))

    def cell(self, name, kind):
        """The cell on the page, scrolled into view; JupyterLab draws those far away later."""
        at = self.index(name, kind)
        found = self.page.locator(f'.jp-Notebook .jp-Cell[data-windowed-list-index="{at}"]')
        found.wait_for(state="attached", timeout=30_000)
        found.scroll_into_view_if_needed(timeout=30_000)
        return found

    def menu(self, *path):
        for step, label in enumerate(path):
            item = ".lm-MenuBar-item" if step == 0 else ".lm-Menu-item"
            self.page.locator(item).filter(has_text=label).first.click()

    def write(self, name, kind, text):
        """Replace a cell's text, as by pasting."""
        cell = self.cell(name, kind)
        cell.locator(".cm-content").click()
        self.page.keyboard.press("Control+a")
        self.page.keyboard.insert_text(text)
        return cell

    def run(self, name, kind, text=None):
        """Run a cell, with new text if some is given, and wait for what it prints."""
        cell = self.write(name, kind, text) if text is not None else self.cell(name, kind)
        if text is None:
            cell.locator(".cm-content").click()
        before = cell.locator(".jp-InputPrompt").inner_text()
        self.page.keyboard.press("Shift+Enter")
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            prompt = cell.locator(".jp-InputPrompt").inner_text()
            if prompt != before and "*" not in prompt:
                return self.printed(cell)
            self.page.wait_for_timeout(50)
        raise AssertionError(f"{name} does not come to an end")

    @staticmethod
    def printed(cell):
        return "\n".join(cell.locator(".jp-OutputArea-output").all_inner_texts())


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """A copy of Day 1 with a state of its own."""
    folder = tmp_path_factory.mktemp("course")
    name = lessons.find_day(1).name
    for path in (f"solutions/{name}/lesson.md", f"days/{name}/lesson.ipynb", "checks/day_01.ipynb"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(lessons.root() / path, folder / path)
    return folder


@pytest.fixture(scope="module")
def lab(course):
    from playwright.sync_api import sync_playwright

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_ROOT", str(course))
        patch.setenv("JUPYTER_PLATFORM_DIRS", "1")
        for variable in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR"):
            patch.setenv(variable, str(course / ".jupyter-test"))
        notebook = start.prepare(1)
        port = start.free_port(18888)
        environment = start.environment(TOKEN) | {"COURSE_ROOT": str(course)}
        address = f"http://127.0.0.1:{port}"
        with open(course / "server.log", "wb") as log:
            server = subprocess.Popen(
                start.command(notebook, browser=False, port=port),
                cwd=course,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                _wait_for(f"{address}/api?token={TOKEN}", server, course / "server.log")
                with sync_playwright() as playwright:
                    browser = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS.split())
                    page = browser.new_page(viewport={"width": 1360, "height": 900})
                    page.goto(f"{address}/lab/tree/{notebook.relative_to(course)}?token={TOKEN}")
                    page.locator(".jp-Notebook .jp-Cell").first.wait_for(timeout=60_000)
                    _wait_for_kernel(f"{address}/api/sessions?token={TOKEN}")
                    yield Lab(page, notebook)
                    browser.close()
            finally:
                os.killpg(server.pid, signal.SIGTERM)
                try:
                    server.wait(10)
                except subprocess.TimeoutExpired:
                    os.killpg(server.pid, signal.SIGKILL)
                    server.wait()


def _wait_for(address, server, log):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=2):
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"JupyterLab does not start:\n{log.read_text()}")


def _wait_for_kernel(address):
    """Until the page has its kernel: a cell that is run before makes JupyterLab ask for one."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with urllib.request.urlopen(address, timeout=10) as reply:
            kernels = [session["kernel"] for session in json.load(reply)]
        if any(kernel["connections"] and kernel["execution_state"] == "idle" for kernel in kernels):
            return
        time.sleep(0.1)
    raise AssertionError("the notebook's kernel does not start")


def test_a_learner_runs_day_one_and_answers_wrong_and_right(lab, course):
    """One test, since it is one sitting: each step goes on from the one before."""
    page = lab.page
    lesson = lessons.load_lesson(1)
    exercise = next(e for e in lesson.exercises.values() if e.kind == "part")
    quiz = next(e for e in lesson.exercises.values() if e.kind == "quiz" and not e.options)

    # No news, no questions, no pop-ups: the lesson is what one sees.
    assert page.locator(".jp-Dialog, .Toastify__toast").count() == 0

    lab.menu("Run", "Run All Cells")
    last = max(i for i, cell in enumerate(lab.cells) if cell["cell_type"] == "code")
    mark = lab.cells[last]["metadata"]["course"]
    prompt = lab.cell(mark["name"], mark["kind"]).locator(".jp-InputPrompt")
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and prompt.inner_text() in ("[ ]:", "[*]:"):
        page.wait_for_timeout(200)
    assert prompt.inner_text() not in ("[ ]:", "[*]:"), "the last cell has run"
    assert page.locator('.jp-RenderedText[data-mime-type="application/vnd.jupyter.stderr"]').count() == 0
    check = lab.cell(f"{exercise.name}-check", "check")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not lab.printed(check):
        page.wait_for_timeout(200)  # outputs above the last cell may still be on their way to the page
    assert lab.printed(check).startswith("not attempted")

    lab.run(exercise.name, "exercise", exercise.wrongs[0].source)
    said = lab.run(f"{exercise.name}-check", "check")
    assert said.startswith(f"failed  {exercise.name}")
    assert f'hint("{exercise.name}")' in said

    lab.run(exercise.name, "exercise", sources.solved_source(exercise))
    said = lab.run(f"{exercise.name}-check", "check")
    assert said.startswith(f"passed  {exercise.name}")

    # Questions answer at once.
    key = quiz.body.rstrip().rsplit("\n", 1)
    assert lab.run(quiz.name, "quiz", f'answer("{quiz.name}", -12345)').startswith(f"wrong  {quiz.name}")
    right = "\n".join([*key[:-1], f'answer("{quiz.name}", {key[-1]})'])
    assert lab.run(quiz.name, "quiz", right).startswith(f"right  {quiz.name}")

    # What is saved is what is graded.
    page.keyboard.press("Control+s")
    notebook = course / "days" / lessons.find_day(1).name / "lesson.ipynb"
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and quiz.body.rstrip() not in notebook.read_text(encoding="utf-8"):
        page.wait_for_timeout(200)
    command = [sys.executable, "-m", "course_lib.classroom", "check-day", "1"]
    graded = subprocess.run(
        command, env=os.environ | {"COURSE_ROOT": str(course)}, capture_output=True, text=True
    )
    assert graded.returncode == 1, graded.stdout + graded.stderr
    short = exercise.name.rpartition(".")[2]
    line = next(line for line in graded.stdout.split("\n") if short in line)
    assert "passed" in line or "✓" in line
