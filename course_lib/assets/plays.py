"""Shakespeare's plays as plain dialogue: `NAME:` on a line, the speech below it, a blank line between
speeches.

The source is Markdown: `**NAME**` opens a speech, italics (`_…_` or `*…*`) are stage directions, `#` lines
are acts and scenes. Only what is spoken is kept. The result is pure ASCII, so that a character model has a
small alphabet.
"""

import re

SPEAKER = re.compile(r"\*\*(.+?)\*\*\s*")
# Italics may span lines but never a blank one. The third form is a direction that has lost its opening
# underscore.
ITALICS = re.compile(r"_([^_]*)_|(?<!\*)\*([^*]+)\*(?!\*)|^(\[[^\]_]*\])_", re.MULTILINE)
PLAIN = str.maketrans({"—": "--", "’": "'", "‘": "'", "“": '"', "”": '"'})
SLIPS = [  # where the edition's markup misleads: (as printed, as meant)
    ("Senators, & C ", "\n**Senators**\n"),
    ("SHALLOW & PAGE & & C", "SHALLOW & PAGE"),
    ("\nEnter FLAMINIUS.\n", "\n\n_Enter FLAMINIUS._\n"),
    ("_Burthen _[dispersedly, within_", "_Burthen, dispersedly, within_"),
    ("&amp;", "&"),
    ("& c.", "&c."),
    ("__", "_"),
]
NUMBERED = re.compile(r"\d+\. ")  # the order of a coronation, printed as a list: seen, not spoken


def dialogue(markdown: str) -> str:
    """Return the spoken text of one play.

    A stage direction goes; an editor's conjecture inside a line (`And _[Censorinus,]_ nobly named`) stays,
    without its brackets. A speech that a stage direction interrupts stays one speech. Words that nobody
    speaks are left out.
    """
    text = re.sub(r"\\(.)", r"\1", markdown.translate(PLAIN))
    for printed, meant in SLIPS:
        text = text.replace(printed, meant)
    text = re.sub(r"\n(?=\*\*)", "\n\n", text)  # a speaker's name always opens a paragraph
    speeches: list[tuple[str, list[str]]] = []
    for paragraph in re.split(r"\n[ \t]*\n", text):
        paragraph = paragraph.strip()
        if paragraph.startswith("#") or NUMBERED.match(paragraph):
            continue
        if named := SPEAKER.match(paragraph):
            name = re.sub(r":(?= |$)", "", named[1].strip())
            speeches.append((name, []))
            paragraph = paragraph[named.end() :]
        if speeches:
            speeches[-1][1].extend(_spoken(paragraph))
    return "".join(f"{name}:\n" + "\n".join(lines) + "\n\n" for name, lines in speeches if lines)


def _spoken(paragraph: str) -> list[str]:
    """Return the paragraph's lines that are spoken, stripped, without the italics."""

    def conjecture(found: re.Match[str]) -> str:
        inside = next(group for group in found.groups() if group is not None)
        before = paragraph[: found.start()].rpartition("\n")[2]
        after = paragraph[found.end() :].partition("\n")[0]
        return inside.strip("[] ") if inside.startswith("[") and (before + after).strip() else ""

    lines = (re.sub(r"[ \t]+", " ", line).strip() for line in ITALICS.sub(conjecture, paragraph).split("\n"))
    return [line for line in lines if line]
