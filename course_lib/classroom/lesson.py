"""The parser of `lesson.md`, the one source of a day.

A lesson is Markdown with a YAML front matter under the root key `jupyter:`. Fenced blocks whose language is
`python` are cells, and so are those in `cuda` and `metal` that carry a key; the first `key="value"` pair of
the info string says what kind of cell. Everything else is prose. A fence that is not understood is an error
at its line: jupytext, which reads the same format, turns it silently into a plain cell.
"""

import ast
import functools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from course_lib.classroom import kernels

SECTIONS = (
    "Where you are",
    "Warm-up",
    "Concept",
    "Math",
    "Code",
    "Exercises",
    "On your hardware",
    "Read the real thing",
    "Self-check",
    "References",
)

# What each kind of fence may carry: keys with a value, then flags.
_KEYS: dict[str, tuple[set[str], set[str]]] = {
    "code": ({"name", "sample"}, {"volatile", "solved", "predict"}),
    "exercise": ({"exercise", "repairs", "difficulty", "minutes", "forbid"}, {"core", "extra"}),
    "skeleton": ({"skeleton"}, set()),
    "hint": ({"hint"}, set()),
    "check": ({"check", "says", "timeout"}, set()),
    "wrong": ({"wrong", "says"}, set()),
    "warmup": ({"warmup", "minutes"}, set()),
    "quiz": ({"quiz", "kind", "rtol", "atol", "minutes"}, {"core", "extra"}),
    "drill": ({"drill", "minutes"}, set()),
}
_REQUIRED = {
    "exercise": {"difficulty", "minutes"},
    "check": {"says"},
    "wrong": {"says"},
    "warmup": {"minutes"},
    "quiz": {"kind", "minutes"},
}
_NUMBERS = {"difficulty": int, "minutes": int, "timeout": float, "rtol": float, "atol": float}
_KINDS = ("exercise", "skeleton", "hint", "check", "wrong", "warmup", "quiz", "drill")
_QUIZ_KINDS = ("number", "integer", "choice")
_FRONT = {"day": int, "title": str, "minutes": int, "summary": str, "artifact": str, "needs": str}

_TOKEN = re.compile(r'\s*(?:([A-Za-z_]\w*)=("(?:[^"\\]|\\.)*"|[-+.\w]+)|([A-Za-z_][\w-]*))(?=\s|$)')
_FENCE = re.compile(r"^( *)(`{3,}|~{3,})(.*)$")
_OPTION = re.compile(r"^[-*] \*\*([a-z])\.\*\* +(.*)$")
_PART_NAME = re.compile(r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$")


class LessonError(Exception):
    """A lesson that cannot be read or built; says where: `path:line: message`."""

    def __init__(self, path: Path | str, line: int, message: str):
        super().__init__(f"{path}:{line}: {message}")
        self.path, self.line, self.message = Path(path), line, message

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.line, self.message)


@dataclass(frozen=True)
class Check:
    """One graded check of an exercise: its source, and in a sentence what it proves. `timeout` in seconds."""

    exercise: str
    says: str
    source: str
    timeout: float
    line: int
    index: int


@dataclass(frozen=True)
class Wrong:
    """A plausible wrong solution (a whole exercise cell), or a typical wrong answer of a quiz, and what is
    wrong with it.
    """

    exercise: str
    says: str
    source: str
    line: int
    index: int


@dataclass
class Exercise:
    """Everything about one exercise. `number` counts within the day: exercises 1.., questions 1.., the
    warm-up 0.

    `part` is the part's public name (`tokenizer.merge_pair`), for a repair exercise that of the part it
    repairs, for a quiz None. `tolerance` of a quiz: `{"kind": "number", "rtol": 0.02}`. `options` of a
    choice: `{"a": "text", ...}`. `home` is the day whose lesson holds stub, hints, checks and wrongs: an
    earlier one for a warm-up, else the day itself. A kernel has no part but a `file`, in a `language`.
    """

    name: str
    kind: str
    day: int
    number: int
    difficulty: int
    minutes: int
    core: bool
    forbid: list[str]
    part: str | None
    body: str
    skeleton: str | None
    hints: list[str]
    checks: list[Check]
    wrongs: list[Wrong]
    line: int
    tolerance: dict[str, Any] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)
    home: int = 0
    path: Path = field(default_factory=Path)
    section: int = 6
    language: str = ""
    file: str = ""

    @property
    def is_repair(self) -> bool:
        """Whether a broken version is handed out, to be mended."""
        return self.kind == "repair" or (self.kind == "kernel" and self.file != self.name)


@dataclass(frozen=True)
class Block:
    """A piece of the lesson in document order, which becomes a cell or a part of one.

    `kind`: "prose", "code", "exercise", "warmup", "quiz", "drill". Skeletons, hints, checks and wrongs live
    in their `Exercise`. `name` is stable and unique in the day: cell ids derive from it. `flags` holds keys
    and flags of a code cell (`volatile`, `solved`, `predict`, `sample`). `section` is 0 before the first
    numbered heading.
    """

    kind: str
    name: str
    source: str
    line: int
    section: int
    flags: dict[str, Any] = field(default_factory=dict)


@dataclass
class Lesson:
    """A parsed day. `order` lists the exercises' names as they come; `together` the checks that run all
    parts at once.
    """

    day: int
    title: str
    minutes: int
    summary: str
    path: Path
    blocks: list[Block]
    exercises: dict[str, Exercise]
    order: list[str]
    together: list[Check] = field(default_factory=list)
    artifact: str | None = None
    needs: str | None = None  # of a bonus notebook: the package without which it cannot run
    sections: list[tuple[int, str, int]] = field(default_factory=list)


def root() -> Path:
    """The folder that holds days/, solutions/ and checks/: COURSE_ROOT, or where course_lib lies."""
    return Path(os.environ.get("COURSE_ROOT") or Path(__file__).resolve().parents[2])


def available_days(base: Path | None = None) -> list[int]:
    """The days that have a lesson, in order."""
    folders = ((base or root()) / "solutions").glob("day_[0-9][0-9]_*")
    return sorted(int(folder.name[4:6]) for folder in folders if (folder / "lesson.md").is_file())


def find_day(day: int, base: Path | None = None) -> Path:
    """The folder `solutions/day_NN_*` of a day. FileNotFoundError, with the days there are, if it has no
    lesson.
    """
    base = base or root()
    found = sorted(p for p in (base / "solutions").glob(f"day_{day:02d}_*") if (p / "lesson.md").is_file())
    if len(found) > 1:
        raise FileExistsError(f"day {day} has two folders: {', '.join(p.name for p in found)}; keep one")
    if not found:
        days = ", ".join(map(str, available_days(base))) or "none yet"
        raise FileNotFoundError(f"there is no lesson for day {day}; days with a lesson: {days}")
    return found[0]


def bonuses(folder: Path) -> list[Path]:
    """The sources of a day's bonus notebooks, `bonus_*.md` beside its lesson.md."""
    return sorted(folder.glob("bonus_*.md"))


def load_bonus(path: Path) -> Lesson:
    """Read a bonus notebook's source: a lesson with worked cells only, and a package that it needs.

    LessonError if it asks for anything to be filled in, or does not say what it needs.
    """
    bonus = load_lesson(path)
    for block in bonus.blocks:
        if block.kind not in ("prose", "code"):
            raise LessonError(
                path, block.line, f"{_article(block.kind)} in a bonus notebook: it is read and run"
            )
    if bonus.needs is None:
        raise LessonError(
            path, 2, "the front matter of a bonus notebook lacks 'needs': the package it is about"
        )
    return bonus


def load_lesson(source: Path | str | int) -> Lesson:
    """Read a lesson by its day, its folder or its file. LessonError at file:line if anything is not
    understood.
    """
    path = find_day(source) / "lesson.md" if isinstance(source, int) else Path(source)
    if path.is_dir():
        path = path / "lesson.md"
    return _load(path.resolve(), path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _load(path: Path, _mtime: int) -> Lesson:
    lesson = _Parser(path).parse()
    for name, exercise in lesson.exercises.items():
        if exercise.kind == "warmup":
            lesson.exercises[name] = _warmup(lesson, exercise)
    return lesson


def _warmup(lesson: Lesson, exercise: Exercise) -> Exercise:
    """The warm-up with stub, hints, checks and wrongs of the earlier day that first asked for the part."""
    base = lesson.path.parent.parent.parent
    mark = f'exercise="{exercise.name}"'
    for day in available_days(base):
        path = find_day(day, base) / "lesson.md"
        if day < lesson.day and mark in path.read_text(encoding="utf-8"):
            earlier = _Parser(path).parse().exercises.get(exercise.name)
            if earlier is not None and earlier.kind == "part":
                return replace(
                    earlier,
                    kind="warmup",
                    day=lesson.day,
                    number=0,
                    minutes=exercise.minutes,
                    core=True,
                    line=exercise.line,
                    section=exercise.section,
                )
    raise LessonError(
        lesson.path,
        exercise.line,
        f"warm-up {exercise.name}: no day before day {lesson.day} asks for this part",
    )


@dataclass
class _Fence:
    line: int
    info: str
    body: str
    indent: int
    text: list[str]


class _Parser:
    """One pass over the lines; every complaint carries the line of the fence it is about."""

    def __init__(self, path: Path):
        self.path = path
        self.lines = path.read_text(encoding="utf-8").split("\n")
        self.section = 0
        self.counters: dict[str, int] = {}
        self.names: dict[str, int] = {}
        self.lesson = Lesson(0, "", 0, "", path, [], {}, [])
        # Hints, checks and the like may stand before the block of their exercise: attach them at the end.
        self.late: list[tuple[str, str, dict[str, Any], str, int]] = []

    def error(self, line: int, message: str) -> LessonError:
        return LessonError(self.path, line, message)

    def parse(self) -> Lesson:
        start = self.front_matter()
        prose: list[tuple[int, str]] = []
        for line, item in self.fences(start):
            if isinstance(item, str):
                if item.startswith(("## ", "### ")):
                    self.prose(prose)
                    prose = []
                prose.append((line, item))
                if item.startswith("## "):
                    self.heading(line, item)
            elif not self.is_ours(item):
                prose.extend((item.line + i, text) for i, text in enumerate(item.text))
            else:
                self.prose(prose)
                prose = []
                self.cell(item)
        self.prose(prose)
        self.attach()
        return self.lesson

    def front_matter(self) -> int:
        if not self.lines or self.lines[0].strip() != "---":
            raise self.error(1, "a lesson starts with a front matter between two lines of ---")
        try:
            end = next(i for i, text in enumerate(self.lines[1:], 1) if text.strip() == "---")
        except StopIteration:
            raise self.error(1, "the front matter is not closed with a line of ---") from None
        try:
            front = yaml.safe_load("\n".join(self.lines[1:end]))
        except yaml.YAMLError as problem:
            mark = getattr(problem, "problem_mark", None)
            reason = getattr(problem, "problem", None) or "not YAML"
            raise self.error((mark.line + 2) if mark else 1, f"front matter: {reason}") from None
        if (
            not isinstance(front, dict)
            or list(front) != ["jupyter"]
            or not isinstance(front["jupyter"], dict)
        ):
            raise self.error(
                2, "the front matter has one root key, `jupyter:`, with the day's fields below it"
            )
        fields = front["jupyter"]
        for key, value in fields.items():
            line = next((i for i, t in enumerate(self.lines[:end], 1) if t.strip().startswith(f"{key}:")), 2)
            if key not in _FRONT:
                raise self.error(
                    line, f"unknown field {key!r} in the front matter; known: {', '.join(_FRONT)}"
                )
            if not isinstance(value, _FRONT[key]) or isinstance(value, bool):
                raise self.error(line, f"front matter: {key} must be {_FRONT[key].__name__}, got {value!r}")
        for key in ("day", "title", "minutes", "summary"):
            if key not in fields:
                raise self.error(2, f"the front matter lacks {key!r}")
        if not 1 <= fields["day"] <= 30:
            raise self.error(2, f"front matter: day must be from 1 to 30, got {fields['day']}")
        for key, value in fields.items():
            setattr(self.lesson, key, value)
        return end + 1

    def fences(self, start: int) -> Iterator[tuple[int, str | _Fence]]:
        """Yield (line number, a line of prose or a whole fence)."""
        i = start
        while i < len(self.lines):
            text = self.lines[i]
            match = _FENCE.match(text)
            if not match or ("`" in match[3] and match[2][0] == "`"):
                yield i + 1, text
                i += 1
                continue
            indent, ticks, info = len(match[1]), match[2], match[3].strip()
            close = re.compile(rf"^ *{re.escape(ticks[0])}{{{len(ticks)},}} *$")
            end = next((j for j in range(i + 1, len(self.lines)) if close.match(self.lines[j])), None)
            if end is None:
                raise self.error(i + 1, f"this fence ({ticks}{info[:40]}) is never closed")
            body = "\n".join(self.lines[i + 1 : end])
            yield i + 1, _Fence(i + 1, info, body, indent, self.lines[i : end + 1])
            i = end + 1

    def is_ours(self, fence: _Fence) -> bool:
        language, _, rest = fence.info.partition(" ")
        kind = next((k for k in _KINDS if re.search(rf"(^|\s){k}\s*=", rest)), None)
        if language == "python" or kind is not None:
            if fence.indent:
                raise self.error(fence.line, "the fence of a cell starts in the first column, not indented")
            wanted = "text" if kind == "hint" else "python"
            kernel = kind in ("exercise", "skeleton", "wrong") and language in kernels.ENDINGS
            if language != wanted and not kernel:
                raise self.error(fence.line, f"a {kind} is written in a ```{wanted} block, not ```{language}")
            return True
        if language == "text" and rest:
            raise self.error(
                fence.line, f"unknown info string {fence.info!r}; a text block with a key is a hint"
            )
        return False

    def heading(self, line: int, text: str) -> None:
        match = re.match(r"^## (\d+)\. (.*\S)\s*$", text)
        if match:
            self.section = int(match[1])
            self.lesson.sections.append((self.section, match[2], line))

    def slug(self) -> str:
        name = SECTIONS[self.section - 1] if 1 <= self.section <= len(SECTIONS) else "Opening"
        return name.lower().replace(" ", "-")

    def auto_name(self, kind: str) -> str:
        prefix = f"{self.slug()}-{kind}"
        self.counters[prefix] = self.counters.get(prefix, 0) + 1
        return f"{prefix}-{self.counters[prefix]}"

    def add(self, kind: str, name: str, source: str, line: int, flags: dict[str, Any] | None = None) -> None:
        if name in self.names:
            raise self.error(line, f"the name {name!r} is taken by the block of line {self.names[name]}")
        self.names[name] = line
        self.lesson.blocks.append(Block(kind, name, source, line, self.section, flags or {}))

    def prose(self, lines: list[tuple[int, str]]) -> None:
        text = "\n".join(text for _, text in lines).strip("\n")
        if text.strip():
            line = next(number for number, text in lines if text.strip())
            self.add("prose", self.auto_name("text"), text, line)

    def info(self, fence: _Fence) -> tuple[str, dict[str, Any]]:
        """The kind of the block and its keys; a flag has the value True."""
        rest = fence.info.partition(" ")[2].strip()
        found: dict[str, Any] = {}
        at = 0
        while at < len(rest):
            match = _TOKEN.match(rest, at)
            if not match:
                raise self.error(
                    fence.line,
                    f"cannot read {rest[at:].strip()!r} in the info string: "
                    'write key="value", key=number or a flag',
                )
            key, value, flag = match.groups()
            if (key or flag) in found:
                raise self.error(fence.line, f"{key or flag!r} is given twice")
            if flag:
                found[flag] = True
            else:
                found[key] = self.value(fence.line, key, value)
            at = match.end()
        first = next(iter(found), None)
        kinds = [key for key in found if key in _KINDS]
        if len(kinds) > 1:
            raise self.error(fence.line, f"a block is of one kind, this one has {' and '.join(kinds)}")
        kind = kinds[0] if kinds else "code"
        if kinds and first != kind:
            raise self.error(fence.line, f"the block's kind comes first in its info string: {kind}=…")
        keys, flags = _KEYS[kind]
        for key, value in found.items():
            if value is True and key not in flags:
                wanted = f'; {key} needs a value: {key}="…"' if key in keys else ""
                raise self.error(
                    fence.line, f"unknown flag {key!r} for {_article(kind)}{wanted or _known(flags)}"
                )
            if value is not True and key not in keys:
                raise self.error(fence.line, f"unknown key {key!r} for {_article(kind)}{_known(keys)}")
        for key in sorted(_REQUIRED.get(kind, set()) - set(found)):
            raise self.error(fence.line, f"{_article(kind)} needs {key}=…")
        return kind, found

    def value(self, line: int, key: str, text: str) -> Any:
        if not text.startswith('"'):
            if key not in _NUMBERS:
                raise self.error(line, f'{key} is a text: write {key}="{text}"')
            try:
                number = _NUMBERS[key](text)
            except ValueError:
                raise self.error(line, f"{key} must be {_NUMBERS[key].__name__}, got {text}") from None
            if number < 0:
                raise self.error(line, f"{key} must not be negative, got {text}")
            return number
        if key in _NUMBERS:
            raise self.error(line, f"{key} is a number: write {key}={text[1:-1] or 1} without quotes")
        value = re.sub(r"\\(.)", r"\1", text[1:-1])
        if not value.strip():
            raise self.error(line, f"{key} is empty")
        return value

    def cell(self, fence: _Fence) -> None:
        kind, keys = self.info(fence)
        line, body = fence.line, fence.body.strip("\n")
        if fence.info.startswith("python") and kind != "exercise":
            self.python(body, line)
        if kind == "code":
            name = keys.pop("name", None) or self.auto_name("code")
            if "sample" in keys and "volatile" not in keys:
                raise self.error(line, "sample= labels the output of a volatile cell: add the flag volatile")
            if not body.strip():
                raise self.error(line, "an empty cell")
            if "predict" in keys:
                _predict_stub(body, self.error, line)
            self.add("code", name, body, line, keys)
        elif kind == "exercise":
            self.exercise(keys, body, line, fence.info.split()[0])
        elif kind == "warmup":
            if body:
                raise self.error(line, "a warm-up has no body: its cell is the part's source in course_lib")
            name = self.part_name(keys["warmup"], line)
            self.new_exercise(name, "warmup", line, minutes=keys["minutes"], part=name)
        elif kind == "quiz":
            self.quiz(keys, body, line)
        elif kind == "drill":
            if not body.strip():
                raise self.error(line, "a drill's cell is shown as written: give it a body")
            self.add("drill", keys["drill"], body, line, {"part": keys["drill"]})
        else:
            self.late.append((kind, keys[kind], keys, body, line))

    def python(self, body: str, line: int) -> ast.Module:
        try:
            return ast.parse(body)
        except SyntaxError as problem:
            raise self.error(line + (problem.lineno or 1), f"not valid Python: {problem.msg}") from None

    def part_name(self, name: str, line: int) -> str:
        if not _PART_NAME.match(name):
            raise self.error(line, f"{name!r} is no dotted name; parts are named like tokenizer.merge_pair")
        return name

    def local_name(self, name: str, line: int) -> str:
        prefix = f"day{self.lesson.day:02d}."
        if not (name.startswith(prefix) and _PART_NAME.match(name)):
            raise self.error(line, f"{name!r}: names of a lesson's own things start with {prefix}")
        return name

    def new_exercise(self, name: str, kind: str, line: int, **given: Any) -> None:
        if name in self.lesson.exercises:
            first = self.lesson.exercises[name].line
            raise self.error(line, f"{name} is asked for twice in this day (first in line {first})")
        group = {"repair": "part", "kernel": "part"}.get(kind, kind)
        self.counters[f"#{group}"] = self.counters.get(f"#{group}", 0) + 1
        defaults: dict[str, Any] = {
            "name": name,
            "kind": kind,
            "day": self.lesson.day,
            "number": 0 if kind == "warmup" else self.counters[f"#{group}"],
            "difficulty": 1,
            "minutes": 0,
            "core": True,
            "forbid": [],
            "part": None,
            "body": "",
            "skeleton": None,
            "hints": [],
            "checks": [],
            "wrongs": [],
            "line": line,
            "home": self.lesson.day,
            "path": self.path,
            "section": self.section,
        }
        self.lesson.exercises[name] = Exercise(**(defaults | given))
        self.lesson.order.append(name)
        self.add("exercise" if group == "part" else kind, name, "", line)

    def core(self, keys: dict[str, Any], line: int, default: bool | None) -> bool:
        if "core" in keys and "extra" in keys:
            raise self.error(line, "an exercise is core or extra, not both")
        if "core" not in keys and "extra" not in keys and default is None:
            raise self.error(line, "say whether the exercise is `core` or `extra`")
        return "extra" not in keys

    def exercise(self, keys: dict[str, Any], body: str, line: int, language: str) -> None:
        if not 1 <= keys["difficulty"] <= 5:
            raise self.error(line, f"difficulty is from 1 to 5, got {keys['difficulty']}")
        common = {
            "difficulty": keys["difficulty"],
            "minutes": keys["minutes"],
            "core": self.core(keys, line, None),
            "forbid": [name.strip() for name in keys.get("forbid", "").split(",") if name.strip()],
        }
        if language != "python":
            self.kernel(keys, body, line, language, common)
            return
        if "repairs" not in keys:
            if body.strip():
                raise self.error(
                    line, "an exercise has no body: its solved cell is the part's source in course_lib"
                )
            name = self.part_name(keys["exercise"], line)
            if name.startswith("day"):
                raise self.error(line, f"{name} is no part of course_lib; a repair exercise needs repairs=…")
            self.new_exercise(name, "part", line, part=name, **common)
            return
        tree = self.python(body, line)
        name = self.local_name(keys["exercise"], line)
        part = self.part_name(keys["repairs"], line)
        if not any(isinstance(node, ast.FunctionDef) and node.name == "failing_input" for node in tree.body):
            raise self.error(
                line, "the body of a repair exercise defines failing_input(), the input that shows the fault"
            )
        self.new_exercise(name, "repair", line, part=part, body=body, **common)

    def kernel(
        self, keys: dict[str, Any], body: str, line: int, language: str, common: dict[str, Any]
    ) -> None:
        """An exercise in CUDA or Metal: its answer is a file. A repair has a name of the lesson's own."""
        name, file = keys["exercise"], keys.get("repairs", keys["exercise"])
        if body.strip():
            raise self.error(line, "a kernel exercise has no body: its solved cell is the kernel's file")
        if not kernels.is_kernel_file(file) or not file.endswith(kernels.ENDINGS[language]):
            wanted = f"kernels_{language}/name{kernels.ENDINGS[language]}"
            raise self.error(line, f"{file!r} names no kernel: it is written {wanted}")
        if common["forbid"]:
            raise self.error(line, "forbid= is for Python: a kernel can call nothing of the library")
        if "repairs" in keys:
            self.local_name(name, line)
        self.new_exercise(name, "kernel", line, language=language, file=file, **common)

    def quiz(self, keys: dict[str, Any], body: str, line: int) -> None:
        name = self.local_name(keys["quiz"], line)
        kind = keys["kind"]
        if kind not in _QUIZ_KINDS:
            raise self.error(line, f"a quiz is of kind {', '.join(_QUIZ_KINDS)}; got {kind!r}")
        tolerance = {"kind": kind} | {key: keys[key] for key in ("rtol", "atol") if key in keys}
        if kind == "number" and len(tolerance) == 1:
            raise self.error(line, 'a quiz of kind "number" needs rtol=… or atol=…')
        if kind != "number" and len(tolerance) > 1:
            raise self.error(line, f'rtol and atol go with kind="number", not with kind="{kind}"')
        self.ends_in_expression(body, line, "a quiz")
        options = self.options() if kind == "choice" else {}
        if kind == "choice":
            if len(options) < 2:
                raise self.error(line, "a choice needs its options in the prose before it, as `- **a.** …`")
            answer = self.letter(body, line)
            if answer not in options:
                raise self.error(line, f"the answer {answer!r} is not among the options {', '.join(options)}")
        self.new_exercise(
            name,
            "quiz",
            line,
            minutes=keys["minutes"],
            core=self.core(keys, line, True),
            body=body,
            tolerance=tolerance,
            options=options,
        )

    def ends_in_expression(self, body: str, line: int, what: str) -> None:
        tree = self.python(body, line)
        if not tree.body or not isinstance(tree.body[-1], ast.Expr):
            raise self.error(line, f"{what}'s last line is an expression: its answer")

    def letter(self, body: str, line: int) -> str:
        last = ast.parse(body).body[-1]
        value = last.value if isinstance(last, ast.Expr) else None
        if not isinstance(value, ast.Constant) or not isinstance(value.value, str):
            raise self.error(line, 'the answer of a choice is a letter in quotes, such as "b"')
        return value.value

    def options(self) -> dict[str, str]:
        if not self.lesson.blocks or self.lesson.blocks[-1].kind != "prose":
            return {}
        options: dict[str, str] = {}
        for text in self.lesson.blocks[-1].source.split("\n"):
            match = _OPTION.match(text)
            if match:
                options[match[1]] = match[2]
            elif options and text.startswith("  ") and text.strip():
                last = list(options)[-1]
                options[last] += " " + text.strip()
        return options

    def attach(self) -> None:
        together = f"day{self.lesson.day:02d}.together"
        for kind, name, keys, body, line in self.late:
            if kind == "check" and name == together:
                checks = self.lesson.together
                checks.append(Check(name, keys["says"], body, keys.get("timeout", 10.0), line, len(checks)))
                continue
            exercise = self.lesson.exercises.get(name)
            if exercise is None:
                raise self.error(line, f"{_article(kind)} for {name}, which is no exercise of this day")
            if not body.strip():
                raise self.error(line, f"{_article(kind)} without a body")
            if exercise.kind == "warmup":
                raise self.error(
                    line, f"{name} is a warm-up here: its {kind}s come from the day that first asked for it"
                )
            if exercise.kind == "quiz" and kind in ("check", "skeleton"):
                raise self.error(line, f"{name} is a quiz: it has no {kind}")
            if kind == "hint":
                exercise.hints.append(body)
            elif kind == "check":
                checks = exercise.checks
                checks.append(Check(name, keys["says"], body, keys.get("timeout", 10.0), line, len(checks)))
            elif kind == "wrong":
                if exercise.kind == "quiz":
                    self.ends_in_expression(body, line, "a wrong answer")
                    if exercise.options and self.letter(body, line) not in exercise.options:
                        raise self.error(
                            line, f"{body.strip()} is not among the options {', '.join(exercise.options)}"
                        )
                wrongs = exercise.wrongs
                wrongs.append(Wrong(name, keys["says"], body, line, len(wrongs)))
            else:
                if exercise.skeleton is not None:
                    raise self.error(line, f"{name} has two skeletons")
                exercise.skeleton = body
        for exercise in self.lesson.exercises.values():
            if exercise.is_repair and exercise.skeleton is None:
                raise self.error(
                    exercise.line, f"{exercise.name} is a repair: it needs a skeleton, the broken version"
                )


def _article(kind: str) -> str:
    name = {"code": "worked example", "warmup": "warm-up", "wrong": "wrong solution"}.get(kind, kind)
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def _known(names: set[str]) -> str:
    return f"; known: {', '.join(sorted(names))}" if names else ""


def _predict_stub(body: str, error: Any, line: int) -> str:
    """The cell with the number of each `predict("label", number)` replaced by `...`."""
    lines = body.split("\n")
    calls = [
        node
        for node in ast.walk(ast.parse(body))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "predict"
    ]
    if not calls:
        raise error(line, 'a cell flagged `predict` calls predict("label", number)')
    for call in sorted(calls, key=lambda c: (c.lineno, c.col_offset), reverse=True):
        if len(call.args) != 2:
            raise error(line + call.lineno, "predict takes a label and a number")
        value = call.args[1]
        if value.lineno != value.end_lineno:
            raise error(line + value.lineno, "the number of a prediction stands on one line")
        # ast counts columns in UTF-8 bytes.
        text = lines[value.lineno - 1].encode()
        lines[value.lineno - 1] = (text[: value.col_offset] + b"..." + text[value.end_col_offset :]).decode()
    return "\n".join(lines)


def predict_stub(body: str) -> str:
    """The learner's version of a cell flagged `predict`: each predicted number is `...`."""

    def error(line: int, message: str) -> Exception:
        return ValueError(message)

    return _predict_stub(body, error, 0)
