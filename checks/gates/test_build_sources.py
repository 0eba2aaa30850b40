"""From the library's source to the text of cells: solutions, stubs, set-up cells."""

import ast
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from course_lib.classroom import sources, standard
from course_lib.classroom.lesson import Exercise, Lesson, LessonError, available_days, load_lesson
from course_lib.classroom.sources import SourceError

SMALL = Path(__file__).with_name("small_course")


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A function that writes modules of a made-up course_lib."""
    folder = tmp_path / "course_lib"

    def write(**modules: str) -> None:
        for name, text in modules.items():
            steps = name.replace("INIT", "@").split("__")
            path = folder.joinpath(*(step.replace("@", "__init__") for step in steps)).with_suffix(".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text).lstrip("\n"))
        for parent in folder.rglob("*/"):
            (parent / "__init__.py").touch()
        (folder / "__init__.py").touch()

    monkeypatch.setattr(sources, "LIBRARY", folder)
    return write


def exercise(name: str, kind: str = "part", **given: object) -> Exercise:
    fields: dict[str, object] = {
        "name": name,
        "kind": kind,
        "day": 5,
        "number": 2,
        "difficulty": 1,
        "minutes": 1,
        "core": True,
        "forbid": [],
        "part": None if kind == "quiz" else name,
        "body": "",
        "skeleton": None,
        "hints": [],
        "checks": [],
        "wrongs": [],
        "line": 7,
        "home": 5,
        "path": Path("lesson.md"),
    }
    return Exercise(**(fields | given))  # type: ignore[arg-type]


def lesson(*exercises: Exercise) -> Lesson:
    return Lesson(5, "t", 1, "s", Path("lesson.md"), [], {e.name: e for e in exercises}, [])


BPE = """
from functools import lru_cache
from course_lib.parts import exercise


@lru_cache
@exercise(day=5)
# a comment above the definition
def merge(ids, pair, new=(1,
                          2)):
    '''What it does.'''
    # why
    return ids  # at the end


class Box:
    @property
    @exercise(day=6)
    def size(self):
        '''How many.'''
        return 1

    @size.setter
    def size(self, value):
        self._size = value

    @exercise(day=5)
    async def wait(self):
        return super().wait()

    class Inner:
        @exercise(day=5)
        def deep(self):
            return 1


def kept(function):
    return function


@exercise(day=5)
@kept
def decorated():
    return 1
"""


def test_a_solution_is_the_librarys_text_without_the_mark(library):
    library(tok__bpe=BPE)
    assert sources.part_source("tok.bpe.merge") == textwrap.dedent(
        """
        def merge(ids, pair, new=(1,
                                  2)):
            '''What it does.'''
            # why
            return ids  # at the end
        """
    ).strip("\n")


def test_a_decorator_below_the_mark_belongs_to_the_exercise(library):
    library(tok__bpe=BPE)
    assert sources.part_source("tok.bpe.decorated").startswith("@kept\ndef decorated")


def test_a_method_is_a_function_under_its_class(library):
    library(tok__bpe=BPE)
    assert sources.part_source("tok.bpe.Box.size") == (
        "@method_of(Box)\ndef size(self):\n    '''How many.'''\n    return 1"
    )
    assert sources.part_source("tok.bpe.Box.wait").startswith("@method_of(Box)\nasync def wait(self):")
    assert sources.part_source("tok.bpe.Box.Inner.deep").startswith("@method_of(Inner)\ndef deep")


@pytest.mark.parametrize(
    "init",
    [
        "from course_lib.tok.bpe import merge",
        "from .bpe import merge",
        "from course_lib.tok.again import merge",
        "from course_lib.tok.again import other as merge",
        "try:\n    from .bpe import merge\nexcept ImportError:\n    merge = None",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .bpe import merge",
    ],
)
def test_re_exports_are_followed(library, init):
    library(tok__bpe=BPE, tok__again="from .bpe import merge\nfrom .bpe import merge as other\n")
    library(tok__INIT=init)
    assert sources.part_key("tok.merge") == "course_lib.tok.bpe:merge"
    assert sources.public_name("course_lib.tok.bpe:merge") == "tok.merge"
    assert sources.part_key("tok.bpe.Box.size") == "course_lib.tok.bpe:Box.size"


def test_imports_in_a_circle_end(library):
    library(a="from course_lib.b import f", b="from course_lib.a import f")
    with pytest.raises(SourceError, match=r"course_lib has no a\.f"):
        sources.locate("a.f")


def test_a_part_that_is_not_there_is_an_error_at_the_exercise(library):
    library(tok="x = 1\n")
    with pytest.raises(LessonError, match=r"lesson\.md:7: course_lib has no tok\.nothing"):
        sources.solved_source(exercise("tok.nothing"))


def test_rooms_that_export_lazily_are_looked_up_live():
    script = "from course_lib.classroom import sources; print(sources.part_key('lazy_room.part'))"
    code = (
        "import sys, types\n"
        "import course_lib.numerics\n"
        "room = types.ModuleType('course_lib.lazy_room')\n"
        "room.__getattr__ = lambda name: course_lib.numerics.softmax\n"
        "sys.modules['course_lib.lazy_room'] = room\n" + script
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, timeout=60
    )
    assert done.stdout.strip() == "course_lib.numerics:softmax", done.stderr


def test_the_stub_keeps_signature_and_docstring(library):
    library(tok__bpe=BPE)
    assert sources.stub_source(exercise("tok.bpe.merge")) == textwrap.dedent(
        """
        def merge(ids, pair, new=(1,
                                  2)):
            '''What it does.'''
            raise NotImplementedError("day 5, exercise 2: merge")
        """
    ).strip("\n")


def test_every_method_of_a_class_is_emptied(library):
    library(
        tok='''
        from course_lib.parts import exercise
        @exercise(day=5)
        class Box:
            """A box."""

            LIMIT = 3

            def __init__(self, x: int) -> None:
                # secret
                self.x = x

            @property
            def size(self) -> int:
                """Its size."""
                total = 0
                for i in range(self.x):
                    total += i
                return total
        '''
    )
    stub = sources.stub_source(exercise("tok.Box"))
    assert "secret" not in stub
    assert "total" not in stub
    assert stub.count("raise NotImplementedError") == 2
    assert '"""Its size."""\n        raise NotImplementedError("day 5, exercise 2: Box.size")' in stub
    ast.parse(stub)


def test_a_warm_ups_stub_says_so(library):
    library(tok__bpe=BPE)
    stub = sources.stub_source(exercise("tok.bpe.merge", kind="warmup", number=0))
    assert '"day 5, warm-up: merge"' in stub


def test_a_part_on_one_line_has_no_stub(library):
    library(tok="from course_lib.parts import exercise\n@exercise(day=5)\ndef f(x): return x\n")
    with pytest.raises(LessonError, match="f is written on one line"):
        sources.stub_source(exercise("tok.f"))


SKELETONS = [
    ("def merge(ids, pair, new=(1, 2)):\n    raise NotImplementedError", None),
    (
        "def merge(ids, pair):\n    raise NotImplementedError",
        "the skeleton of merge reads `def merge(ids, pair)`",
    ),
    ("def merge(ids, pair, new=(1, 3)):\n    ...", "the library's `def merge"),
    ("def merge(ids, pair, new=(1, 2)) -> list:\n    ...", "-> list"),
    ("async def merge(ids, pair, new=(1, 2)):\n    ...", "of another kind"),
    ("@other\ndef merge(ids, pair, new=(1, 2)):\n    ...", "@other"),
    ("def merges(ids, pair, new=(1, 2)):\n    ...", "does not define merge"),
]


@pytest.mark.parametrize(("skeleton", "words"), SKELETONS)
def test_a_skeleton_has_the_librarys_signature(library, skeleton, words):
    library(tok__bpe=BPE)
    asked = exercise("tok.bpe.merge", skeleton=skeleton)
    if words is None:
        assert sources.stub_source(asked) == skeleton
    else:
        with pytest.raises(LessonError) as caught:
            sources.stub_source(asked)
        assert words in caught.value.message


def test_a_skeleton_of_a_class_has_its_public_methods(library):
    library(
        tok="""
        from course_lib.parts import exercise
        @exercise(day=5)
        class Box:
            def __init__(self, x): self.x = x
            def open(self, key=None): return 1
            def _hidden(self): return 2
        """
    )
    whole = (
        "class Box:\n    def __init__(self, x):\n        ...\n    def open(self, key=None):\n        ...\n"
    )
    assert sources.stub_source(exercise("tok.Box", skeleton=whole)) == whole
    with pytest.raises(LessonError, match="lacks the method open"):
        sources.stub_source(exercise("tok.Box", skeleton=whole[: whole.index("    def open")]))
    with pytest.raises(LessonError, match=r"Box\.open reads"):
        sources.stub_source(exercise("tok.Box", skeleton=whole.replace("key=None", "key")))


def test_a_repair_is_the_mended_part_and_the_failing_input(library):
    library(tok__bpe=BPE)
    body = "def failing_input():\n    return (1,)"
    broken = "def merge(ids, pair, new=(1, 2)):\n    return None"
    skeleton = f"{broken}\n\n\ndef failing_input():\n    raise NotImplementedError"
    mend = exercise("day05.mend", kind="repair", part="tok.bpe.merge", body=body, skeleton=skeleton)
    assert sources.solved_source(mend) == sources.part_source("tok.bpe.merge") + "\n\n\n" + body
    assert sources.stub_source(mend) == skeleton
    mend.skeleton = broken
    with pytest.raises(LessonError, match="does not define failing_input"):
        sources.stub_source(mend)


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("1 + 1", 'answer("q", 1 + 1)'),
        ("x = 2\nx * 3", 'x = 2\nanswer("q", x * 3)'),
        ("f(\n    1,\n    2,\n)  # sum", 'answer("q", f(\n    1,\n    2,\n))  # sum'),
        ('"größe — b"  # ü', 'answer("q", "größe — b")  # ü'),
        ("x = 1; x", 'x = 1; answer("q", x)'),
        ("(1 +\n 2)", 'answer("q", (1 +\n 2))'),
        ("sum(i for i in range(3))\n\n# done", 'answer("q", sum(i for i in range(3)))\n\n# done'),
    ],
)
def test_the_last_expression_of_a_quiz_is_its_answer(body, wanted):
    wrapped = sources.wrap_answer("q", body)
    assert wrapped == wanted
    given: list[object] = []
    exec(wrapped, {"answer": lambda name, value: given.append((name, value)), "f": lambda a, b: a + b})
    assert len(given) == 1


def test_a_quizs_stub_leaves_the_answer_open():
    assert sources.stub_source(exercise("day05.q", kind="quiz")) == 'answer("day05.q", ...)'


@pytest.mark.parametrize(
    ("cell", "free"),
    [
        ("x = np.zeros(3)\ny = x", {"np"}),
        ("def f(a: Array, b=DEFAULT) -> Out:\n    c = a\n    return g(c)", {"Array", "DEFAULT", "Out", "g"}),
        ("def f():\n    return [i for i in range(n) if i]", {"n"}),
        (
            "class A(Base):\n    x: Kind = 1\n    def f(self):\n        return A, self.x, y",
            {"Base", "Kind", "y"},
        ),
        ("import os\nfrom a import b as c\nos, c, b", {"b"}),
        ("def f():\n    import math\n    return math.pi", set()),
        ("def f():\n    def g():\n        return h()\n    return g", {"h"}),
        ("def f(x):\n    try:\n        pass\n    except Odd as e:\n        print(e)", {"Odd"}),
        ("lambda a: a + b", {"b"}),
        ("def f():\n    global seen\n    seen = 1\ndef g():\n    return seen", set()),
        ("def f(x: 'Later'):\n    return x", set()),
        ("@deco\ndef f():\n    pass", {"deco"}),
        ("def f[T](x: T) -> T:\n    return x" if sys.version_info >= (3, 12) else "1", set()),
        ("from __future__ import annotations\ndef f(x: Lazy): ...", {"Lazy"}),
        ("match x:\n    case Point(a=b):\n        b", {"x", "Point"}),
    ],
)
def test_free_names(cell, free):
    assert sources.free_names(cell) == free


ROOM = """
import os.path
from typing import TYPE_CHECKING
import numpy as np
from numpy import linalg, random as rnd
from course_lib.parts import exercise

if TYPE_CHECKING:
    from pathlib import Path
try:
    import fast
except ImportError:
    fast = None

LIMIT: int = 3
A, B = 1, 2


def _helper(x):
    return x


@exercise(day=5)
def first(x: "Path"):
    return np.abs(x) + LIMIT + A


@exercise(day=5)
def second(x):
    return first(_helper(x)), os.path.join("a"), rnd, linalg, fast


@exercise(day=5)
def lost(x):
    return nowhere(x)
"""


def test_the_set_up_cell_brings_what_the_cells_need(library):
    library(room=ROOM)
    day = lesson(exercise("room.first"), exercise("room.second"))
    assert sources.setup_source(day) == textwrap.dedent(
        """
        import os.path

        import numpy as np
        from numpy import linalg, random as rnd

        from course_lib.classroom import answer, check, drill, hint, measured, predict, solution
        from course_lib.room import A, LIMIT, _helper, fast
        """
    ).strip("\n")


def test_a_part_used_above_its_own_exercise_comes_from_the_library(library):
    library(room=ROOM)
    day = lesson(exercise("room.second"), exercise("room.first"))
    assert "import A, LIMIT, _helper, fast, first" in sources.setup_source(day)
    # … but a learner's part is never graded with its own reference in reach.
    assert "first" not in sources.check_setup_source(day, "room.first")


def test_grading_one_part_brings_the_librarys_others(library):
    library(room=ROOM)
    day = lesson(exercise("room.first"), exercise("room.second"), exercise("day05.q", kind="quiz", body="1"))
    assert "first" not in sources.check_setup_source(day, "room.first")
    assert "second" in sources.check_setup_source(day, "room.first")
    assert "first, second" in sources.check_setup_source(day, "day05.q")
    assert "classroom" not in sources.check_setup_source(day, "room.first")


def test_a_name_that_is_defined_nowhere_is_an_error(library):
    library(room=ROOM)
    with pytest.raises(
        LessonError, match=r"lesson\.md:7: room\.lost uses the name 'nowhere'.*defined nowhere"
    ):
        sources.setup_source(lesson(exercise("room.lost")))


def test_one_name_has_one_meaning_in_a_day(library):
    mark = "from course_lib.parts import exercise\n@exercise(day=5)\n"
    library(
        a=f"from math import sqrt\n{mark}def f():\n    return sqrt\n",
        b=f"from cmath import sqrt\n{mark}def g():\n    return sqrt\n",
    )
    with pytest.raises(LessonError, match=r"'sqrt' means cmath\.sqrt in b\.g and math\.sqrt in a\.f"):
        sources.setup_source(lesson(exercise("a.f"), exercise("b.g")))


def test_methods_bring_their_class_and_the_decorator(library):
    library(tok__bpe=BPE)
    setup = sources.setup_source(lesson(exercise("tok.bpe.Box.size")))
    assert "from course_lib.parts import method_of" in setup
    assert "from course_lib.tok.bpe import Box" in setup


def test_a_modules_future_holds_in_the_set_up_cell(library):
    library(
        room="from __future__ import annotations\nfrom course_lib.parts import exercise\nimport math\n"
        "@exercise(day=5)\ndef f(x: math.inf):\n    return x\n"
    )
    setup = sources.setup_source(lesson(exercise("room.f")))
    assert setup.startswith("from __future__ import annotations\n\nimport math\n")


def test_long_imports_are_broken(library):
    names = [f"a_rather_long_name_of_a_helper_{i}" for i in range(6)]
    values = "\n".join(f"{name} = 1" for name in names)
    part = f"@exercise(day=5)\ndef f():\n    return {' + '.join(names)}\n"
    library(room=f"from course_lib.parts import exercise\n{values}\n\n{part}")
    setup = sources.setup_source(lesson(exercise("room.f")))
    assert max(map(len, setup.split("\n"))) <= 100
    assert set(names) <= sources.defined_names(setup)


def test_parts_of_a_later_day_are_found_through_helpers(library):
    library(
        low="from course_lib.parts import exercise\n@exercise(day=3)\ndef early():\n    return helper()\n\n"
        "def helper():\n    from course_lib.high import late as renamed\n    return between()\n\n"
        "from course_lib.high import late\ndef between():\n    return late()\n",
        high="from course_lib.parts import exercise\n@exercise(day=9)\ndef late():\n    return 1\n",
    )
    assert list(standard.later_parts(sources.locate("low.early"), 3)) == [("high.late", 9)]
    assert list(standard.later_parts(sources.locate("low.early"), 9)) == []
    check = "from course_lib.low import early\nfrom course_lib.low import NOTHING\nearly()"
    assert list(standard.later_imports(check, 5)) == [("high.late", 9)]


def marked_parts() -> list[str]:
    found = []
    for path in sorted(sources.LIBRARY.rglob("*.py")):
        relative = path.relative_to(sources.LIBRARY.parent).with_suffix("")
        if "@exercise" not in path.read_text() or relative.parts[1] in ("classroom", "mine", "parts"):
            continue
        name = ".".join(part for part in relative.parts if part != "__init__")
        module = sources.read_module(name)
        assert module is not None

        def collect(body: list[ast.stmt], prefix: str, name: str = name) -> None:
            for node in body:
                if isinstance(node, sources.Definition):
                    if sources._mark(node) is not None:
                        found.append(f"{name}:{prefix}{node.name}")
                    if isinstance(node, ast.ClassDef):
                        collect(node.body, f"{prefix}{node.name}.")

        collect(module.tree.body, "")
    return found


@pytest.mark.parametrize("key", marked_parts())
def test_no_part_of_the_library_uses_a_later_days(key):
    """The days' own import contract: what a learner writes on a day rests on that day and earlier ones."""
    name = sources.public_name(key)
    located = sources.locate(name)
    assert located.key == key
    day = sources.marked_day(located)
    assert day is not None
    assert 1 <= day <= 30
    assert list(standard.later_parts(located, day)) == []


@pytest.mark.parametrize("day", available_days())
def test_solutions_have_the_librarys_syntax_tree(day):
    lesson = load_lesson(day)
    for asked in lesson.exercises.values():
        if asked.kind in ("part", "warmup"):
            (cell,) = ast.parse(sources.solved_source(asked)).body
            assert isinstance(cell, sources.Definition)
            library = sources.locate(asked.part or "").node
            # A method's docstring loses its indentation with the method: compare it as a reader sees it.
            assert ast.get_docstring(cell) == ast.get_docstring(library)
            assert [ast.dump(node) for node in cell.body[1:]] == [ast.dump(node) for node in library.body[1:]]
