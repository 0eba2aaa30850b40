"""PARTS=mine: wherever the library refers to a part it gets the learner's version, and nothing else changes.

Each test writes a small library package and a learner's part, and looks at them from a fresh process:
that is how the engine changes parts.
"""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from course_lib import parts
from course_lib.classroom import sources
from course_lib.classroom.lesson import available_days, load_lesson

REPOSITORY = Path(__file__).resolve().parents[2]
PYTHONPATH = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))

# Parts live inside course_lib only: the process that tries them puts the test's folder on its path.
PROLOGUE = """
import course_lib
course_lib.__path__.append({library!r})
"""


class Course:
    """A made-up room of the library, `course_lib.room`, and the learner's parts beside it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.library = folder / "library"
        self.library.mkdir()
        self.mine = folder / "mine"

    def room(self, source: str, name: str = "room") -> None:
        text = "from course_lib.parts import exercise\n" + textwrap.dedent(source)
        (self.library / f"{name}.py").write_text(text)

    def learner(self, name: str, cell: str, setup: str = "", module: str = "course_lib.room") -> None:
        os.environ["COURSE_MINE"], os.environ["COURSE_ROOT"] = str(self.mine), str(self.folder)
        try:
            parts.save_mine(
                f"room.{name}",
                textwrap.dedent(cell),
                key=f"{module}:{name}",
                day=1,
                setup=textwrap.dedent(setup),
            )
        finally:
            del os.environ["COURSE_MINE"], os.environ["COURSE_ROOT"]

    def run(self, script: str, mode: str = "mine") -> subprocess.CompletedProcess[str]:
        """Run a script in a fresh process with these parts."""
        path = self.folder / "script.py"
        path.write_text(PROLOGUE.format(library=str(self.library)) + textwrap.dedent(script))
        store = {
            "PARTS": mode,
            "COURSE_MINE": str(self.mine),
            "PYTHONPATH": PYTHONPATH,
        }
        return subprocess.run(
            [sys.executable, str(path)], env=os.environ | store, capture_output=True, text=True, timeout=60
        )

    def value(self, script: str, mode: str = "mine") -> str:
        done = self.run(script, mode)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return done.stdout.strip()


@pytest.fixture
def course(tmp_path):
    return Course(tmp_path)


ADD = """
@exercise(day=1)
def add(a, b):
    return a + b
"""
MY_ADD = """
def add(a, b):
    return 1000 + a + b
"""

# Ways in which a module can refer to a part: its source, and an expression that must show the learner's.
REFERENCES = {
    "the name itself": ("", "room.add(1, 2)"),
    "a partial": ("from functools import partial\nadd_one = partial(add, 1)", "room.add_one(2)"),
    "a table": ("TABLE = {'add': add}", "room.TABLE['add'](1, 2)"),
    "a list of functions": ("ALL = [add, max]", "room.ALL[0](1, 2)"),
    "a default argument": ("def twice(a, b, f=add):\n    return f(a, b)", "room.twice(1, 2)"),
    "a keyword default": ("def twice(a, b, *, f=add):\n    return f(a, b)", "room.twice(1, 2)"),
    "a caller below": ("def caller(a, b):\n    return add(a, b)", "room.caller(1, 2)"),
    "an alias": ("plus = add", "room.plus(1, 2)"),
    "a class attribute": ("class Box:\n    op = staticmethod(add)", "room.Box.op(1, 2)"),
    "a method that was a function": ("class Box(int):\n    plus = add", "room.Box(1).plus(2)"),
    "a closure": ("def make(f):\n    return lambda a, b: f(a, b)\nmade = make(add)", "room.made(1, 2)"),
    "a lambda": ("call = lambda a, b: add(a, b)", "room.call(1, 2)"),
    "a cache around it": (
        "from functools import lru_cache\ncached = lru_cache(add)",
        "room.cached(1, 2)",
    ),
    "singledispatch": (
        "from functools import singledispatch\ndispatch = singledispatch(add)",
        "room.dispatch(1, 2)",
    ),
    "a dataclass default": (
        "from dataclasses import dataclass\n"
        "from collections.abc import Callable\n"
        "@dataclass\n"
        "class Op:\n"
        "    f: Callable = add",
        "room.Op().f(1, 2)",
    ),
    "an enum member": (
        "from enum import Enum\nfrom functools import partial\nclass Op(Enum):\n    ADD = partial(add)",
        "(room.Op.ADD.value if hasattr(room.Op.ADD, 'value') else room.Op.ADD)(1, 2)",
    ),
    "a value computed at import": ("RESULT = add(1, 2)", "room.RESULT"),
    "another module's import": ("", "other.from_room(1, 2)"),
    "an import inside a function": ("", "other.late(1, 2)"),
    "itself, recursively": ("", "room.add(1, 2)"),
}


@pytest.mark.parametrize("way", REFERENCES)
def test_every_reference_follows(course, way):
    source, expression = REFERENCES[way]
    course.room(ADD + source)
    course.room(
        """
        from course_lib.room import add as from_room


        def late(a, b):
            from course_lib.room import add

            return add(a, b)
        """,
        "other",
    )
    course.learner("add", MY_ADD)
    script = f"from course_lib import room, other\nprint({expression})"
    assert course.value(script) == "1003"
    assert course.value(script, mode="reference") == "3"


def test_the_mark_costs_nothing_with_the_reference(course):
    course.room(ADD)
    course.learner("add", MY_ADD)
    script = """
    from course_lib import parts, room
    part = parts.REGISTRY["course_lib.room:add"]
    print(part.obj is room.add, part.day, parts.owner(part.key), room.add.__qualname__)
    print(part.reference is room.add, hasattr(room.add, "__wrapped__"))
    """
    assert course.value(script, "reference") == "True 1 reference add\nTrue False"


def test_owner_tells_whose_part_runs(course):
    course.room(ADD + ADD.replace("add", "more"))
    course.learner("add", MY_ADD)
    script = """
    from course_lib import parts, room
    print(parts.owner("course_lib.room:add"), parts.owner("course_lib.room:more"))
    part = parts.REGISTRY["course_lib.room:add"]
    print(part.reference(1, 2), part.obj(1, 2))
    """
    assert course.value(script) == "yours reference\n3 1003"


def test_owner_of_an_unknown_part_is_an_error():
    with pytest.raises(KeyError, match="no registered part"):
        parts.owner("course_lib.nowhere:nothing")


def test_parts_mode_refuses_what_it_does_not_know(monkeypatch):
    monkeypatch.setenv("PARTS", "both")
    with pytest.raises(ValueError, match="PARTS=both: expected PARTS=reference"):
        parts.parts_mode()


def test_names_defined_below_the_part_are_found_at_the_end_of_the_import(course):
    course.room(ADD + "LATER = 7\n\n\ndef helper(x):\n    return x * LATER\n")
    course.learner("add", "def add(a, b):\n    return helper(a) + b")
    assert course.value("from course_lib import room\nprint(room.add(1, 2))") == "9"


def test_the_learner_cannot_overwrite_the_module(course):
    course.room("def helper(x):\n    return x\n\n" + ADD + "\ndef uses(x):\n    return helper(x)\n")
    course.learner(
        "add", "def helper(x):\n    return -x\n\n\ndef add(a, b):\n    return helper(a) + helper(b)"
    )
    assert course.value("from course_lib import room\nprint(room.add(1, 2), room.uses(5))") == "-3 5"


def test_the_set_up_cell_may_import_from_the_very_module(course):
    course.room(ADD + "\ndef below(x):\n    return 10 * x\n")
    course.learner(
        "add",
        "def add(a, b):\n    return below(a) + b",
        setup="from course_lib.classroom import answer, check\nfrom course_lib.room import below\n",
    )
    script = "import sys\nfrom course_lib import room\n"
    script += "print(room.add(1, 2), 'course_lib.classroom' in sys.modules)"
    assert course.value(script) == "12 False"


@pytest.mark.parametrize("uses", [False, True])
def test_a_later_days_set_up_cell_may_import_from_a_room_above(course, uses):
    """A warm-up keeps the cell of its new day, whose rooms import this one: they are not there yet."""
    course.room(ADD)
    course.room("from course_lib.room import add\n\n\ndef upper(x):\n    return x\n", name="above")
    body = "upper(a) + b" if uses else "1000 + a + b"
    course.learner("add", f"def add(a, b):\n    return {body}", setup="from course_lib.above import upper\n")
    done = course.run(f"from course_lib import above\nprint(above.add(1, 2) if not {uses} else 0)")
    assert ("cannot import name 'upper'" in done.stderr) == uses
    assert done.stdout.strip() == ("0" if uses else "1003")


def test_the_librarys_decorators_stay_around_the_learners_object(course):
    course.room(
        """
        from functools import lru_cache

        @lru_cache(maxsize=None)
        @exercise(day=1)
        def slow(x):
            return x


        class Box:
            @staticmethod
            @exercise(day=1)
            def make(x):
                return x

            @property
            @exercise(day=1)
            def size(self):
                return 1

            @classmethod
            @exercise(day=1)
            def named(cls, x):
                return cls.__name__ + x
        """
    )
    course.learner("slow", "def slow(x):\n    return -x")
    course.learner("Box.make", "@method_of(Box)\ndef make(x):\n    return 2 * x")
    course.learner("Box.size", "@method_of(Box)\ndef size(self):\n    return 42")
    course.learner("Box.named", "@method_of(Box)\ndef named(cls, x):\n    return x + cls.__name__")
    script = """
    from course_lib import room
    print(room.slow(3), room.slow.cache_info().misses, room.Box.make(4), room.Box().size, room.Box.named("a"))
    """
    assert course.value(script) == "-3 1 8 42 aBox"


def test_methods_have_super_and_private_names(course):
    course.room(
        """
        class Base:
            def hello(self):
                return "base"


        class Child(Base):
            def __init__(self):
                self.__secret = "secret"

            @exercise(day=1)
            def hello(self):
                return "reference"

            @exercise(day=1)
            def other(self):
                return __class__.__name__


        class Grandchild(Child):
            def hello(self):
                return "grand " + super().hello()


        MADE = Child().hello()
        """
    )
    course.learner(
        "Child.hello",
        """
        @method_of(Child)
        def hello(self):
            return super().hello() + " " + self.__secret
        """,
    )
    course.learner("Child.other", "@method_of(Child)\ndef other(self):\n    return __class__.__name__ + '!'")
    script = """
    import pickle
    from course_lib import room
    child = room.Child()
    print(child.hello(), "|", room.Grandchild().hello(), "|", child.other(), "|", room.MADE)
    print(room.Child.hello.__qualname__, room.Child.hello.__module__)
    print([name for name in vars(room.Child) if "owner" in name])
    """
    first, second, third = course.value(script).split("\n")
    assert first == "base secret | grand base secret | Child! | base secret"
    assert second == "Child.hello course_lib.room"
    assert third == "[]"


def test_a_dataclass_with_slots_is_built_twice_and_keeps_super(course):
    course.room(
        """
        from dataclasses import dataclass


        class Base:
            def name(self):
                return "base"


        @dataclass(slots=True)
        class Point(Base):
            x: int

            @exercise(day=1)
            def name(self):
                return "point"
        """
    )
    course.learner(
        "Point.name", "@method_of(Point)\ndef name(self):\n    return super().name() + str(self.x)"
    )
    assert course.value("from course_lib import room\nprint(room.Point(3).name())") == "base3"


def test_a_class_is_replaced_for_its_subclasses_too(course):
    course.room(
        """
        from dataclasses import dataclass


        @exercise(day=1)
        class Value:
            def __init__(self, data):
                self.data = data

            def double(self):
                return Value(self.data * 2)


        class Special(Value):
            pass


        @dataclass
        @exercise(day=1)
        class Pair:
            a: int
            b: int = 2
        """
    )
    course.learner(
        "Value",
        """
        class Helper:
            def go(self, x):
                return x + 100


        class Value:
            def __init__(self, data):
                self.data = data

            def double(self):
                return Value(Helper().go(self.data))
        """,
    )
    course.learner(
        "Pair",
        "class Pair:\n    a: int\n    b: int = 5\n\n    def total(self):\n        return self.a + self.b",
    )
    script = """
    import copy, pickle
    from course_lib import room
    value = pickle.loads(pickle.dumps(room.Special(1)))
    pair = room.Pair(1)
    print(value.double().data, isinstance(value.double(), room.Value), pair.total(), pair == room.Pair(1))
    print(pickle.loads(pickle.dumps(pair)), copy.deepcopy(room.Value(3)).data)
    print(pickle.loads(pickle.dumps(room.Value)))
    """
    assert course.value(script) == ("101 True 6 True\nPair(a=1, b=5) 3\n<class 'course_lib.room.Value'>")


def test_worker_processes_inherit_the_learners_parts(course):
    course.room(ADD)
    course.learner("add", MY_ADD)
    script = f"""
    import multiprocessing as mp
    from functools import partial

    def start():
        import course_lib
        if {str(course.library)!r} not in course_lib.__path__:
            course_lib.__path__.append({str(course.library)!r})

    if __name__ == "__main__":
        from course_lib import room
        for method in ("spawn", "fork", "forkserver"):
            with mp.get_context(method).Pool(1, initializer=start) as pool:
                print(pool.apply(partial(room.add, 1), (2,)), end=" ")
    """
    assert course.value(script) == "1003 1003 1003"


def test_tracebacks_and_source_point_into_the_learners_file(course):
    course.room(ADD)
    course.learner("add", "def add(a, b):\n    # mine\n    return a / 0")
    script = """
    import inspect, traceback
    from course_lib import room
    try:
        room.add(1, 2)
    except ZeroDivisionError:
        print("room.add.py" in traceback.format_exc(), "return a / 0" in traceback.format_exc())
    print("# mine" in inspect.getsource(room.add))
    """
    assert course.value(script) == "True True\nTrue"


def test_future_annotations_of_the_module_hold_for_the_cell(course):
    (course.library / "room.py").write_text(
        "from __future__ import annotations\nfrom course_lib.parts import exercise\n"
        "@exercise(day=1)\ndef add(a: Unknown, b) -> Unknown:\n    return 1\n"
    )
    course.learner("add", "def add(a: Unknown, b) -> Unknown:\n    return 2")
    assert course.value("from course_lib import room\nprint(room.add(1, 2))") == "2"


BROKEN = {
    "a syntax error": ("def add(a, b):\n    return a +\n", "SyntaxError"),
    "a name that is missing": ("add = undefined_name\n", "NameError"),
    "a missing definition": ("def plus(a, b):\n    return 1\n", "defines no add"),
    "another kind of thing": ("class add:\n    pass\n", "the library's is a function"),
    "a number": ("add = 3\n", "the library's is a function"),
    "an exit": ("import sys\nsys.exit(3)\n", "SystemExit"),
    "a package that is not there": (
        "import no_such_package\n\ndef add(a, b):\n    return 1\n",
        "no_such_package",
    ),
    "a method of nothing": ("@method_of(Box)\ndef add(a, b):\n    return 1\n", "is not a method"),
    "bytes that are no text": (None, "UnicodeDecodeError"),
    "a file that is gone": ("", "FileNotFoundError"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_part_never_breaks_the_engine(course, fault):
    text, reason = BROKEN[fault]
    course.room(ADD + "\nTABLE = {'add': add}\n")
    course.learner("add", MY_ADD)
    path = course.mine / "room.add.py"
    if fault == "a file that is gone":
        path.unlink()
    elif text is None:
        path.write_bytes(b"\xff\xfe\x00def")
    else:
        path.write_text(text)
    done = course.run(
        "from course_lib import parts, room\n"
        "print(room.TABLE['add'](1, 2), parts.owner('course_lib.room:add'))"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "3 reference"
    (line,) = done.stderr.strip().split("\n")
    assert "your room.add does not load" in line
    assert reason in line
    assert "the reference is used instead" in line


@pytest.mark.parametrize("index", ["", "not json", "[]", '{"room.add": 3}', '{"room.add": {"file": "x.py"}}'])
def test_a_broken_index_never_breaks_the_engine(course, index):
    course.room(ADD)
    course.learner("add", MY_ADD)
    (course.mine / "index.json").write_text(index)
    done = course.run("from course_lib import room\nprint(room.add(1, 2))")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "3"
    assert done.stderr.count("\n") <= 1


def test_saving_keeps_a_copy_of_what_it_replaces(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_MINE", str(tmp_path / "mine"))
    monkeypatch.setenv("COURSE_ROOT", str(tmp_path))
    for text in ("return 1", "return 2", "return 2", "return 3"):
        path = parts.save_mine("room.add", f"def add(a, b):\n    {text}", key="course_lib.room:add", day=1)
    assert "return 3" in path.read_text()
    copies = sorted((tmp_path / ".course" / "backups").iterdir())
    assert [c.read_text().strip()[-8:] for c in copies] == ["return 1", "return 2"]
    index = json.loads((tmp_path / "mine" / "index.json").read_text())
    assert index["room.add"]["key"] == "course_lib.room:add"


def test_saving_refuses_what_is_no_python(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_MINE", str(tmp_path / "mine"))
    with pytest.raises(SyntaxError):
        parts.save_mine("room.add", "def add(a, b:", key="course_lib.room:add", day=1)
    assert not (tmp_path / "mine").exists()


def test_saving_over_a_broken_index_keeps_a_copy_of_it(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_MINE", str(tmp_path / "mine"))
    monkeypatch.setenv("COURSE_ROOT", str(tmp_path))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "index.json").write_text("half a fi")
    parts.save_mine("room.add", "def add(a, b):\n    return 1", key="course_lib.room:add", day=1)
    (copy,) = (tmp_path / ".course" / "backups").iterdir()
    assert copy.read_text() == "half a fi"


def test_a_method_shown_as_a_function_is_attached_to_its_class():
    class Base:
        def hello(self):
            return "base"

    class Child(Base):
        def __init__(self):
            self.__secret = "x"

        def hello(self):
            return "reference"

        @property
        def size(self):
            return 1

        @staticmethod
        def make(x):
            return x

    @parts.method_of(Child)
    def hello(self):
        return super().hello() + self.__secret  # type: ignore[misc]

    @parts.method_of(Child)
    def size(self):
        return 2

    @parts.method_of(Child)
    def make(x):
        return -x

    assert Child().hello() == "basex"
    assert Child().size == 2
    assert Child.make(3) == Child().make(3) == -3
    assert hello(Child()) == "basex"


@pytest.mark.parametrize("day", available_days())
def test_every_part_of_a_day_can_be_the_learners(day, tmp_path):
    """Its solved cells, kept as a learner's, take the library's places; each is said to be theirs."""
    lesson = load_lesson(day)
    asked = [e for e in lesson.exercises.values() if e.kind == "part" and e.part]
    keys = [sources.part_key(e.part or "") for e in asked]
    os.environ["COURSE_MINE"] = str(tmp_path)
    try:
        for exercise, key in zip(asked, keys, strict=True):
            cell, setup = sources.solved_source(exercise), sources.setup_source(lesson)
            parts.save_mine(exercise.name, cell, key=key, day=day, setup=setup)
    finally:
        del os.environ["COURSE_MINE"]
    script = f"""
import importlib
from course_lib import parts
from course_lib.classroom import sources
from course_lib.classroom.lesson import available_days, load_lesson
for key in {keys}:
    importlib.import_module(key.partition(":")[0])
    part = parts.REGISTRY[key]
    print(parts.owner(key), part.obj is not part.reference)
"""
    store = {"PARTS": "mine", "COURSE_MINE": str(tmp_path), "PYTHONPATH": PYTHONPATH}
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | store, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "yours True\n" * len(keys), done.stderr
    assert done.stderr == ""


def test_a_real_part_runs_in_the_real_library(tmp_path):
    """The numerics room, with the learner's softmax in a store of its own."""
    store = {"PARTS": "mine", "COURSE_MINE": str(tmp_path), "PYTHONPATH": PYTHONPATH}
    cell = "def softmax(x, axis=-1):\n    return np.full_like(x, 0.125)\n"
    setup = "import numpy as np\nfrom course_lib.numerics import at_least_float32\n"
    script = f"""
from course_lib import parts
from course_lib.classroom import sources
from course_lib.classroom.lesson import available_days, load_lesson
parts.save_mine("numerics.softmax", {cell!r}, key="course_lib.numerics:softmax", day=1, setup={setup!r})
import numpy as np
from course_lib import numerics
print(numerics.softmax(np.zeros(2)).tolist(), parts.owner("course_lib.numerics:softmax"))
print(parts.owner("course_lib.numerics:logsumexp"))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | store, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split("\n")[:2] == ["[0.125, 0.125] yours", "reference"], done.stderr
    assert done.stderr == ""
