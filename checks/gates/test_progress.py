"""Progress is never lost, and what a notebook's cells say is right: check, hint, answer, drill, predict."""

import json
import math
import multiprocessing
import re
from datetime import date, timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from course_lib.classroom import cli, drills, notebook, overview, predictions, progress
from course_lib.classroom import lesson as lessons


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A copy of the course's lessons: their state goes to a folder of its own."""
    for day in lessons.available_days():
        folder = lessons.find_day(day)
        (tmp_path / "solutions" / folder.name).mkdir(parents=True)
        (tmp_path / "solutions" / folder.name / "lesson.md").write_text((folder / "lesson.md").read_text())
    monkeypatch.setenv("COURSE_ROOT", str(tmp_path))
    monkeypatch.delenv("COURSE_BUILD", raising=False)
    return tmp_path


def some_exercise(day=1, kind="part"):
    return next(e for e in lessons.load_lesson(day).exercises.values() if e.kind == kind)


# The file


def test_what_is_recorded_is_there_again(course):
    with progress.edit() as kept:
        progress.record_try(kept, "numerics.softmax", 1, passed=False)
        progress.record_try(kept, "numerics.softmax", 1, passed=True)
        progress.record_try(kept, "numerics.softmax", 1, passed=False)
    entry = progress.load()["exercises"]["1:numerics.softmax"]
    assert (entry["status"], entry["tries"]) == ("failed", 3)
    assert entry["passed_at"], "once passed, a later failure does not take it away"
    assert progress.passed_names(progress.load()) == {"numerics.softmax"}
    assert progress.passed_names(progress.load(), 5) == set()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"version": "one"}', '{"version": 1, "exercises": []}', "\x00" * 100]
)
def test_an_unreadable_file_is_kept_aside_and_the_last_good_one_goes_on(course, capsys, text):
    for number in range(3):
        with progress.edit() as kept:
            kept["hints"][f"exercise {number}"] = 1
    progress.path().write_text(text)
    kept = progress.load()
    assert set(kept["hints"]) == {"exercise 0", "exercise 1"}, "the copy made before the last change"
    error = capsys.readouterr().err
    aside = re.search(r"kept as (\S+);", error)
    assert aside is not None
    assert (progress.folder() / aside[1]).read_text() == text
    with progress.edit() as kept:
        kept["hints"]["exercise 3"] = 1
    assert set(progress.load()["hints"]) == {"exercise 0", "exercise 1", "exercise 3"}


def test_a_newer_version_s_file_is_not_touched(course):
    progress.folder().mkdir()
    progress.path().write_text('{"version": 99, "exercises": {}}')
    with pytest.raises(progress.ProgressError, match="newer version of the course"):
        progress.load()
    with pytest.raises(progress.ProgressError), progress.edit():
        pass
    assert progress.path().read_text() == '{"version": 99, "exercises": {}}'


def test_fields_that_this_version_does_not_know_survive(course):
    progress.folder().mkdir()
    progress.path().write_text(json.dumps(progress.new() | {"extra": [1, 2]}))
    with progress.edit() as kept:
        kept["hints"]["a"] = 1
    assert json.loads(progress.path().read_text())["extra"] == [1, 2]


def test_a_block_that_fails_changes_nothing(course):
    with progress.edit() as kept:
        kept["hints"]["a"] = 1
    with pytest.raises(ZeroDivisionError), progress.edit() as kept:
        kept["hints"]["b"] = 1 // 0
    assert progress.load()["hints"] == {"a": 1}


def _count(times):
    for _ in range(times):
        with progress.edit() as kept:
            kept["hints"]["shared"] = kept["hints"].get("shared", 0) + 1


def test_processes_that_write_at_once_lose_nothing(course):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_count, args=(25,)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert progress.load()["hints"]["shared"] == 100


def test_building_the_lessons_leaves_no_trace(course, monkeypatch):
    monkeypatch.setenv("COURSE_BUILD", "1")
    with progress.edit() as kept:
        kept["hints"]["a"] = 1
    assert not progress.folder().exists()


def test_the_streak_counts_days_in_a_row_up_to_today_or_yesterday():
    today = date(2026, 11, 21)

    def streak(*ago):
        return progress.streak({"active": [str(today - timedelta(days=n)) for n in ago]}, today)

    assert [streak(), streak(0), streak(1), streak(2), streak(0, 1, 2, 4), streak(1, 2)] == [0, 1, 1, 0, 3, 2]


def test_a_graded_day_is_recorded(course):
    exercises = [
        SimpleNamespace(name="numerics.softmax", status="passed"),
        SimpleNamespace(name="numerics.logsumexp", status="failed"),
        SimpleNamespace(name="numerics.perplexity", status="not attempted"),
    ]
    progress.record_day(SimpleNamespace(day=1, seconds=3.14159, passed=False, exercises=exercises))
    kept = progress.load()
    assert set(kept["exercises"]) == {"1:numerics.softmax", "1:numerics.logsumexp"}
    assert not progress.day_passed(kept, 1)
    assert progress.first_unfinished(kept) == lessons.available_days()[0]
    progress.record_day(SimpleNamespace(day=1, seconds=3.0, passed=True, exercises=exercises))
    assert progress.day_passed(progress.load(), 1)


# The overview


def test_the_overview_fits_eighty_columns_and_tells_what_was_done(course):
    lesson = lessons.load_lesson(1)
    with progress.edit() as kept:
        for name in lesson.exercises:
            progress.record_try(kept, name, 1, passed=True)
        kept["days"]["1"] = {"passed_at": "2026-11-21T12:00:00"}
        for number, measured in enumerate([10, 21, 80, 0.5]):
            entry = {"day": 1, "label": str(number), "predicted": 10, "measured": measured, "at": str(number)}
            kept["predictions"][f"1:{number}"] = entry
    console = Console(width=80, record=True, file=open("/dev/null", "w"), highlight=False)  # noqa: SIM115
    overview.show(console)
    lines = console.export_text().split("\n")
    text = "\n".join(lines)
    assert max(len(line.rstrip()) for line in lines) <= 80
    count = len(lesson.exercises)
    assert re.search(rf"1 ● {lesson.title}\s+{count}/{count}", text)
    assert "1 of 30 days" in text
    parts = sum(1 for e in lesson.exercises.values() if e.kind == "part")
    assert f"{parts} of " in text
    assert "4 measured, half of them within a factor of 4.1" in text
    for day in range(1, 31):
        assert re.search(rf"(?m)\b{day} [●◐○·] \w", text), day


def test_the_error_of_an_estimate_is_in_powers_of_two():
    assert predictions.error(40, 80) == 1.0
    assert predictions.error(80, 40) == -1.0
    assert predictions.error(0, 0) == 0.0
    assert predictions.error(0, 1) is None
    assert predictions.error(-1, 1) is None
    assert predictions.verdict(40, 61) == "You said 40, measured 61: 1.52 times too low."
    assert predictions.verdict(40, 40.5) == "You said 40, measured 40.5: right on."
    assert predictions.verdict(1e6, 1000) == "You said 1,000,000, measured 1,000: 1,000 times too high."
    assert predictions.verdict(8, 6.62) == "You said 8, measured 6.62: 1.21 times too high."


# Drills


def test_drills_never_end_and_their_key_is_what_numpy_gives():
    for topic in drills.TOPICS:
        seen = set()
        for number in range(400):
            question = drills.question(topic, 7, number, streak=number % 16)
            seen.add(question.text)
            assert question == drills.question(topic, 7, number, streak=number % 16)
            if topic == "shapes":
                *_, given, expression = question.text.split("\n")
                arrays = {n: np.zeros(eval(s)) for n, s in re.findall(r"(\w): (\([^)]*\))", given)}
                try:
                    shape = np.shape(eval(expression, {"np": np, **arrays}))
                except (ValueError, IndexError):
                    shape = "error"
                given_back = drills.read_answer(shape)
                assert given_back is not None
                assert drills.is_right(given_back, question.answer)
                assert not drills.is_right((99, 99), question.answer)
        assert len(seen) > 200
    assert drills.question("shapes", 1, 0) != drills.question("shapes", 2, 0)


# What cells say


@pytest.fixture
def shell(course, monkeypatch):
    """An IPython as in a kernel of day 1, without the kernel."""
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell()
    monkeypatch.setattr(notebook, "_shell", lambda: shell)
    monkeypatch.setattr(notebook, "_RUN", [])
    monkeypatch.setattr(notebook, "_BENCH", notebook._Bench())
    monkeypatch.setenv("COURSE_DAY", "1")
    monkeypatch.chdir(course)
    shell.events.register("post_run_cell", notebook._remember_cell)
    shell.run_cell(
        "from course_lib.classroom import answer, check, drill, hint, measured, predict, solution",
        store_history=True,
    )
    yield shell
    for _, sandbox in notebook._BENCH.sandboxes.values():
        sandbox.close()


@pytest.fixture
def run(shell, capsys):
    def run(source, cell_id=None):
        capsys.readouterr()
        shell.run_cell(source, store_history=True, cell_id=cell_id)
        return capsys.readouterr().out

    return run


def test_check_tells_stub_wrong_and_right_apart(run):
    from course_lib.classroom.sources import setup_source, solved_source, stub_source

    lesson, exercise = lessons.load_lesson(1), some_exercise()
    run(setup_source(lesson))
    check = f'check("{exercise.name}")'
    assert "you have not run its cell yet" in run(check)
    run(stub_source(exercise))
    assert run(check).startswith("not attempted")
    wrong = exercise.wrongs[0]
    run(wrong.source)
    said = run(check)
    assert said.startswith(f"failed  {exercise.name}")
    assert f'hint("{exercise.name}")' in said
    run(solved_source(exercise))
    assert run(check).startswith(f"passed  {exercise.name}")
    assert run("check()").startswith(f"passed  {exercise.name}")
    assert progress.passed_names(progress.load(), 1) == {exercise.name}


def test_a_renamed_function_is_found_by_its_cell_and_not_replaced_by_an_older_one(run):
    from course_lib.classroom.build import slug
    from course_lib.classroom.sources import setup_source, solved_source

    exercise = some_exercise()
    name = exercise.name.rpartition(".")[2]
    run(setup_source(lessons.load_lesson(1)))
    run(solved_source(exercise), slug(exercise.name))
    run(solved_source(exercise).replace(name, "renamed"), slug(exercise.name))
    assert run(f'check("{exercise.name}")').startswith("failed")


def test_a_helper_in_another_cell_is_named(run):
    exercise = some_exercise()
    name = exercise.name.rpartition(".")[2]
    run("def my_helper(*args): return args")
    run(f"def {name}(*args, **kwargs):\n    return my_helper(*args)")
    assert "Your notebook has my_helper, but in another cell" in run(f'check("{exercise.name}")').replace(
        "\n", " "
    )


def test_hints_come_one_by_one_and_the_solution_after_them(run):
    exercise = some_exercise()
    name, count = exercise.name, len(exercise.hints)
    assert "untold" in run(f'solution("{name}")')
    for number in range(1, count + 1):
        assert run(f'hint("{name}")').startswith(f"Hint {number} of {count}")
    again = run(f'hint("{name}")')
    assert all(f"Hint {number} of {count}" in again for number in range(1, count + 1))
    short = name.rpartition(".")[2]
    assert f"def {short}" not in run(f'solution("{name}")')
    assert f"def {short}" in run(f'solution("{name}", anyway=True)')


def test_the_solution_shows_after_a_pass(run):
    exercise = some_exercise()
    with progress.edit() as kept:
        progress.record_try(kept, exercise.name, 1, passed=True)
    assert f"def {exercise.name.rpartition('.')[2]}" in run(f'solution("{exercise.name}")')


def test_answers_are_judged_at_once_with_the_reason(run):
    from course_lib.classroom.sandbox import Sandbox

    lesson = lessons.load_lesson(1)
    with Sandbox(1):
        for quiz in [e for e in lesson.exercises.values() if e.kind == "quiz"][:4]:
            assert run(f'answer("{quiz.name}", ...)').startswith("not answered")
            right = quiz.body.rstrip().rsplit("\n", 1)
            said = run("\n".join([*right[:-1], f'answer("{quiz.name}", {right[-1]})']))
            assert said.startswith(f"right  {quiz.name}"), said
            wrong = quiz.wrongs[0].source.rstrip().rsplit("\n", 1)
            said = run("\n".join([*wrong[:-1], f'answer("{quiz.name}", {wrong[-1]})']))
            assert said.startswith(f"wrong  {quiz.name}")
            assert quiz.wrongs[0].says.split()[1] in said
            assert run(f'answer("{quiz.name}", [1, 2])').startswith("wrong")
            assert run(f'answer("{quiz.name}", float("nan"))').startswith("wrong")


def test_a_drill_grades_and_asks_on(run):
    first = run('drill("shapes")')
    assert first.startswith("Question 1.")
    assert run('drill("shapes")') == first, "asking again asks the same"
    kept = progress.load()
    key = drills.question("shapes", kept["seed"], 0).answer
    said = run(f'drill("shapes", {key!r})')
    assert said.startswith("right")
    assert "Question 2." in said
    assert run('drill("shapes", (99, 98))').startswith("wrong")
    assert "is no answer" in run('drill("shapes", 1.5)')
    assert progress.load()["drills"]["shapes"] == {"asked": 2, "right": 1, "streak": 0, "best": 1}
    assert 'Did you mean "shapes"?' in run('drill("shape")')


def test_the_first_estimate_before_a_measurement_stands(run):
    assert "you made no estimate" in run('measured("tok/s", 61)')
    assert run('predict("tok/s", ...)').startswith("no estimate yet")
    assert "you say 30" in run('predict("tok/s", 30)')
    assert "you say 40" in run('predict("tok/s", 40)'), "until it is measured one may think again"
    assert "You said 40, measured 61" in run(
        'measured("tok/s", np.float32(61))' if False else 'measured("tok/s", 61)'
    )
    assert "your first estimate, 40, stands" in run('predict("tok/s", 61)')
    run('measured("tok/s", 70)')
    assert progress.load()["predictions"]["1:tok/s"]["measured"] == 61
    assert predictions.errors(progress.load()) == [math.log2(61 / 40)]


@pytest.mark.parametrize("call", ['check("{}x")', 'hint("{}x")', 'solution("{}x")', 'answer("{}x", 1)'])
def test_unknown_names_get_a_suggestion(run, call):
    name = some_exercise().name
    said = run(call.format(name)).replace("\n", " ")
    assert f'There is no exercise or question called "{name}x". Did you mean' in said
    assert name in said.partition("Did you mean")[2]


def test_outside_of_a_notebook_check_says_so(course, monkeypatch, capsys):
    monkeypatch.setattr(notebook, "_shell", lambda: None)
    notebook.check(some_exercise().name)
    assert "There is no notebook here" in capsys.readouterr().out


# The command line


@pytest.mark.parametrize("command", ["check-day", "reset-day"])
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "which day? For example: make"),
        ("0", "there is no day 0: the course has days 1 to 30"),
        ("31", "there is no day 31: the course has days 1 to 30"),
        ("-1", "there is no day"),
        ("five", "make {} 5"),
        ("Thirty", "make {} 30"),
        ("5.5", '"5.5" is no day'),
        ("banana; ls", '"banana; ls" is no day'),
    ],
)
def test_a_day_that_there_is_not_is_refused_in_a_sentence(course, monkeypatch, capsys, command, text, says):
    monkeypatch.setattr("sys.argv", ["course", command, "--", text])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    error = capsys.readouterr().err
    assert says.format(command) in error
    assert "Traceback" not in error


def test_a_day_may_be_written_as_people_do(course):
    day = lessons.available_days()[0]
    for text in (str(day), f" {day} ", f"day {day}", f"Day_{day:02d}"):
        assert cli.parse_day(text, "check-day") == day


# make start


def test_start_opens_the_first_unfinished_day_and_keeps_a_copy_before(course):
    from course_lib.classroom import start

    first, *others = lessons.available_days()
    assert start.choose_day() == first
    path = start.prepare(first)
    assert path.is_file(), "a missing notebook is put in place"
    copies = list((course / ".course" / "backups").rglob("lesson.ipynb"))
    assert [copy.read_bytes() for copy in copies] == [path.read_bytes()]
    start.prepare(first)
    assert len(list((course / ".course" / "backups").rglob("lesson.ipynb"))) == 1, (
        "before the first time only"
    )
    with progress.edit() as kept:
        progress.day_entry(kept, first)["passed_at"] = "2026-11-21T12:00:00"
    assert start.choose_day() == (others[0] if others else first)
    assert start.choose_day(first) == first


def test_jupyterlab_listens_on_this_machine_only_and_asks_nobody_for_news(course):
    from course_lib.classroom import start

    port = start.free_port()
    words = start.command(start.prepare(1), browser=False, port=port)
    assert "--ServerApp.ip=127.0.0.1" in words
    assert "--no-browser" in words
    assert not any("secret" in word for word in words)
    environment = start.environment("secret")
    folder = environment["JUPYTER_CONFIG_PATH"].split(":")[0]
    settings = json.loads((Path(folder) / "labconfig" / "default_setting_overrides.json").read_text())
    assert settings["@jupyterlab/apputils-extension:notification"]["fetchNews"] == "false"
    assert environment["JUPYTER_TOKEN"] == "secret"


def test_a_taken_port_is_passed_over():
    import socket

    from course_lib.classroom import start

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        assert start.free_port(port) != port
