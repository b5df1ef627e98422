"""What TeX writes with commands and ligatures, as Unicode."""

import unicodedata

_ACCENTS = {
    "`": "\u0300", "'": "\u0301", "^": "\u0302", "~": "\u0303", '"': "\u0308", "=": "\u0304", ".": "\u0307",
    "u": "\u0306", "v": "\u030c", "H": "\u030b", "c": "\u0327", "k": "\u0328", "r": "\u030a", "d": "\u0323",
    "b": "\u0331", "t": "\u0361",
}  # fmt: skip
SYMBOLS = {
    r"\ ": " ", r"\,": " ", r"\;": " ", r"\:": " ", r"\!": "", r"\/": "", r"\-": "", r"\@": "", r"\\": " ", "\\\n": " ",
    r"\&": "&", r"\%": "%", r"\$": "$", r"\#": "#", r"\_": "_", r"\{": "{", r"\}": "}", r"\quad": " ", r"\qquad": " ",
    r"\enspace": " ", r"\space": " ", r"\thinspace": " ", r"\newline": " ", r"\linebreak": " ", r"\hfill": " ",
    r"\ldots": "…", r"\dots": "…", r"\textellipsis": "…", r"\textbackslash": "\\", r"\textasciitilde": "~",
    r"\textasciicircum": "^", r"\textbar": "|", r"\textless": "<", r"\textgreater": ">", r"\textendash": "–",
    r"\textemdash": "—", r"\textquoteleft": "‘", r"\textquoteright": "’", r"\textquotedblleft": "“",
    r"\textquotedblright": "”", r"\textquotesingle": "'", r"\textdegree": "°", r"\textmu": "µ", r"\texttimes": "×",
    r"\textbullet": "•", r"\textperiodcentered": "·", r"\textregistered": "®", r"\texttrademark": "™", r"\S": "§",
    r"\P": "¶", r"\copyright": "©", r"\pounds": "£", r"\euro": "€", r"\dag": "†", r"\ddag": "‡", r"\TeX": "TeX",
    r"\LaTeX": "LaTeX", r"\ss": "ß", r"\ae": "æ", r"\AE": "Æ", r"\oe": "œ", r"\OE": "Œ", r"\o": "ø", r"\O": "Ø",
    r"\l": "ł", r"\L": "Ł", r"\aa": "å", r"\AA": "Å", r"\i": "ı", r"\j": "ȷ", r"\dh": "ð", r"\th": "þ",
    r"\checkmark": "✓",
    r"\cmark": "✓", r"\xmark": "✗", r"\slash": "/", r"\lbrack": "[", r"\rbrack": "]", r"\guillemotleft": "«",
    r"\guillemotright": "»", r"\par": "\n\n", r"\ddots": "…", r"\vdots": "…", r"\cdots": "…",
}  # fmt: skip
_LIGATURES = {"---": "—", "--": "–", "``": "“", "''": "”", "`": "‘", "'": "’", "!‘": "¡", "?‘": "¿"}


def is_accent(command: str) -> bool:
    r"""Return whether a command such as `\'` puts an accent on the letter that follows."""
    return command[1:] in _ACCENTS


def accented(command: str, letters: str) -> str:
    r"""Return `é` for `\'` and `e`; the rest of the letters follow as they are."""
    letters = letters.replace("ı", "i").replace("ȷ", "j")
    return (
        unicodedata.normalize("NFC", letters[:1] + _ACCENTS[command[1:]] + letters[1:]) if letters.strip() else letters
    )


def ligatures(text: str) -> str:
    """Return a text with its dashes and quotes as TeX sets them."""
    for written, meant in _LIGATURES.items():
        text = text.replace(written, meant)
    return text
