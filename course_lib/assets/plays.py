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
    (
        "Do you hear, you minion? you'll let us in, I hope?  \nOF EPHESUS\n",
        "Do you hear, you minion? you'll let us in, I hope?\n",
    ),
    ("\nBoth  \nVarro's Servants And ours", "\n**Both Varro's Servants**\nAnd ours"),
    ("\nALL SERVING-MEN Here", "\n**ALL SERVING-MEN**\nHere"),
    ("\nSenators, & C ", "\n**Senators**\n"),
    ("\nCASSIO: Good", "\n**CASSIO**\nGood"),
    ("\nANTONIO: Let", "\n**ANTONIO**\nLet"),
    ("\nARIEL'S song.", "\n**ARIEL**"),
    ("\nMaster-Gunner Sirrah", "\n**Master-Gunner**\nSirrah"),
    ("\nTake, O, take those", "\n**Boy**\nTake, O, take those"),
    ("\nO blessed breeding sun", "\n**TIMON**\nO blessed breeding sun"),
    ("SHALLOW & PAGE & & C", "SHALLOW & PAGE"),
    ("\nEnter FLAMINIUS.\n", "\n\n_Enter FLAMINIUS._\n"),
    ("_Burthen _[dispersedly, within_", "_Burthen, dispersedly, within_"),
    ("&amp;", "&"),
    ("& c.", "&c."),
    ("__", "_"),
]
# A name that the edition broke in two: its first half ends the speech before.
BROKEN_NAME = re.compile(r"\n([A-Z][A-Z ]+|Ghosts?) *\n\n\*\*")
# An epilogue is spoken by whoever is named in it, or by nobody in particular.
EPILOGUE = re.compile(r"^#* *EPILOGUE *$", re.MULTILINE)
# What follows a heading is a place, until somebody is named. Numbered lines are a procession: seen only.
HEADING = re.compile(r"#|\*\*Scene |SCENE ")
PROCESSION = re.compile(r"\d+\. ")
UNSPOKEN = {"SONG.", "THE SONG.", "DUMB SHOW.", "SPOKEN BY PROSPERO", "LOVE'S LABOURS LOST", "CYMBELINE"}


def dialogue(markdown: str) -> str:
    """Return the spoken text of one play.

    A stage direction goes; an editor's conjecture inside a line (`And _[Censorinus,]_ nobly named`) stays,
    without its brackets. A speech that a stage direction interrupts stays one speech. Words that nobody
    speaks are left out.
    """
    text = re.sub(r"\\(.)", r"\1", markdown.translate(PLAIN))
    for printed, meant in SLIPS:
        text = text.replace(printed, meant)
    text = EPILOGUE.sub("**EPILOGUE**", BROKEN_NAME.sub(r"\n\n**\1 ", text))
    text = re.sub(r"\n(?=\*\*)", "\n\n", text)  # a speaker's name always opens a paragraph

    speeches: list[tuple[str, list[str]]] = []
    somebody_speaks = False
    for paragraph in re.split(r"\n[ \t]*\n", text):
        paragraph = paragraph.strip()
        if HEADING.match(paragraph):
            somebody_speaks = False
            continue
        if named := SPEAKER.match(paragraph):
            somebody_speaks = True
            speeches.append((re.sub(r":(?= |$)", "", named[1].strip()), []))
            paragraph = paragraph[named.end() :]
        if somebody_speaks and not PROCESSION.match(paragraph):
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
    return [line for line in lines if line and line not in UNSPOKEN]
