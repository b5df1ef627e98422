"""Makes other people's words plain: nothing in them may move a cursor, turn the writing direction, or hide."""

import re

# Controls but tab and newline, zero-width and bidi marks, the byte-order mark, and the tags that spell hidden text.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\U000e0000-\U000e007f]")


def plain_text(text: str) -> str:
    """Return a source's words without what cannot be seen; lone surrogates are replaced."""
    return _UNSEEN.sub("", text.encode("utf-8", "replace").decode("utf-8").replace("\r\n", "\n")).strip()


def plain_line(text: str, *, limit: int = 300) -> str:
    """Return a source's words as one line."""
    return " ".join(plain_text(text).split())[:limit]
