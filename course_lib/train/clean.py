"""What has to go before training: rubbish inside a document, and documents that are rubbish."""

import re
import unicodedata

# Characters that no reader sees: controls other than tab and line break, and marks of zero width.
INVISIBLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u200b\u2060\ufeff]")
COMMON = {"the", "be", "to", "of", "and", "that", "have", "with"}


def clean_text(text: str) -> str:
    """Return `text` in Unicode's form NFC, without invisible characters and superfluous white space.

    Two spellings of the same é, or a line that differs in its trailing blanks, would else be two texts.
    """
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
    text = INVISIBLE.sub("", text).replace("\u00a0", " ")
    text = re.sub(r"[ \t]+", " ", text)
    text = re.sub(r" ?\n ?", "\n", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def quality_problems(text: str) -> list[str]:
    """Why a web page is probably no prose; an empty list if nothing speaks against it.

    Source: the rules of Rae et al. (2021), "Scaling Language Models" (Gopher), appendix A.1.1.
    """
    words, lines = text.split(), [line.strip() for line in text.splitlines() if line.strip()]
    if not words:
        return ["it is empty"]
    found = []
    if not 50 <= len(words) <= 100_000:
        found.append(f"{len(words):,} words; 50 to 100,000 are usual")
    if not 3 <= (mean := sum(map(len, words)) / len(words)) <= 10:
        found.append(f"a word has {mean:.1f} characters on average; 3 to 10 are usual")
    if (text.count("#") + text.count("...") + text.count("…")) / len(words) > 0.1:
        found.append("more than a hash sign or ellipsis for ten words")
    if sum(line.startswith(("•", "-", "*")) for line in lines) > 0.9 * len(lines):
        found.append("nearly all lines are bullet points")
    if sum(line.endswith(("...", "…")) for line in lines) > 0.3 * len(lines):
        found.append("every third line breaks off")
    if sum(any(c.isalpha() for c in word) for word in words) < 0.8 * len(words):
        found.append("every fifth word has no letter")
    if len(COMMON & {word.lower().strip(".,;:!?") for word in words}) < 2:
        found.append("fewer than two of the commonest English words")
    return found
