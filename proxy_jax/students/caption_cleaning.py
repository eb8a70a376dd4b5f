"""The cleaning that LlamaGen's captions go through before T5's tokenizer (language/t5.py; the rules were written for web alt texts).

The same text must reach T5 in training and in sampling, so every rule is kept in the official order, quirks included.
"""

import html
import re
from collections.abc import Iterable
from html.entities import html5
from html.parser import HTMLParser
from urllib.parse import unquote_plus

import ftfy

Rule = tuple[re.Pattern[str], str]

FILE_TYPES = "(?:png|jpe?g|bmp|webp|eps|pdf|apk|mp4)"
LETTER = "[a-zA-Z]"
DOMAIN = r"[a-zA-Z0-9.-]+\.(?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)"
START = r"(?:/{1,3}|[a-zA-Z0-9%])"
DASHES = (
    "\u002d\u058a\u05be\u1400\u1806\u2010\u2011\u2012\u2013\u2014\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0\ufe31\ufe32\ufe58\ufe63\uff0d"
)
HIDDEN_TEXT = frozenset({"script", "style", "template", "rt", "rp"})  # elements whose text a page does not show as its own


def _rules(*pairs: tuple[str, str]) -> tuple[Rule, ...]:
    return tuple((re.compile(pattern), replacement) for pattern, replacement in pairs)


LINKS = _rules(
    ("<person>", "person"),
    (rf"\b(?:https?:{START}|{DOMAIN})", ""),
    (rf"\b(?:www:{START}|{DOMAIN})", ""),
)
CHARACTERS = _rules(
    (r"@\w+\b", ""),  # @nick
    ("[\u31c0-\u9fff]+", ""),  # CJK; kana stays
    (f"[{re.escape(DASHES)}]+", "-"),
    ("[`´«»“”¨]", '"'),
    ("[‘’]", "'"),
    ("&quot;?", ""),
    ("&amp", ""),
    (r"\d{1,3}(?:\.\d{1,3}){3}", " "),  # IP addresses
    (r"\d:\d\d\s+$", ""),  # article numbers
    (r"\\n", " "),  # the two characters \ and n
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"\S+\.{FILE_TYPES}", ""),  # file names
    ("[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    (r"[#®•©™&@·º½¾¿¡§~)(\]\[}{|\\/*]+", " "),
    (r"\s+\.\s+", " "),
)
JOINERS = re.compile("[-_]")  # more than 3: a caption-spelled-like-this
PHRASES = _rules(
    (rf"\b{LETTER}{{1,3}}\d{{3,15}}\b", ""),  # jc6640
    (rf"\b{LETTER}+\d+{LETTER}+\b", ""),  # jc6640vc
    (rf"\b\d+{LETTER}+\d+\b", ""),  # 6640vc231
    (r"(?:worldwide\s+)?(?:free\s+)?shipping", ""),
    (r"(?:free\s)?download(?:\sfree)?", ""),
    (r"\bclick\s(?:for|on)\s\w+", ""),
    (rf"\b{FILE_TYPES}(?:\simages?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (rf"\b\d*{LETTER}+\d+{LETTER}+\d+[a-zA-Z\d]*\b", " "),  # j2d1a2a
    (r"\b\d+\.?\d*[x\u0445\u00d7]\d+\.?\d*\b", ""),  # 10x20, with the Latin x, the Cyrillic one or the sign
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
    ("^[\"'](.+)[\"']$", r"\1"),
    ("^['_,:;-]", ""),
    ("['_,:+-]$", ""),
    (r"^\.\S+$", ""),
)


class _Text(HTMLParser):
    """Collects the text of HTML, tolerant of anything; character references are decoded one by one, unknown ones lose their semicolon."""

    def __init__(self):
        super().__init__(convert_charrefs=False)
        self.pieces: list[str] = []
        self.hidden: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """From here on text is hidden, if this element hides it."""
        if tag in HIDDEN_TEXT:
            self.hidden.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """An element closed at once holds no text."""

    def handle_endtag(self, tag: str) -> None:
        """Closes the element, and those in it that were left open."""
        if tag in self.hidden:
            del self.hidden[self.hidden.index(tag) :]

    def handle_data(self, data: str) -> None:
        """Keeps text that is not hidden."""
        if not self.hidden:
            self.pieces.append(data)

    def handle_charref(self, name: str) -> None:
        """A character by number, "&#233;"."""
        self.handle_data(html.unescape(f"&#{name};"))

    def handle_entityref(self, name: str) -> None:
        """A character by name, "&eacute;"; one that does not exist stays as it is."""
        self.handle_data(html5[f"{name};"] if f"{name};" in html5 else f"&{name}")

    def unknown_decl(self, data: str) -> None:
        """The text of a CDATA section; other declarations hold none."""
        if data.upper().startswith("CDATA["):
            self.handle_data(data[len("CDATA[") :])


def _text_of_html(markup: str) -> str:
    parser = _Text()
    parser.feed(markup)
    parser.close()
    return "".join(parser.pieces)


def _apply(rules: Iterable[Rule], text: str) -> str:
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text


def clean_once(text: str) -> str:
    """One pass of the cleaning; the result is lower case, apart from what character references hid."""
    text = _apply(LINKS, unquote_plus(text).strip().lower())
    text = _apply(CHARACTERS, _text_of_html(text))
    if len(JOINERS.findall(text)) > 3:
        text = JOINERS.sub(" ", text)
    text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    return _apply(PHRASES, text).strip()


def clean_caption(text: str) -> str:
    """A caption as LlamaGen feeds it to T5: cleaned twice, since the official code runs its cleaning on its own result."""
    return clean_once(clean_once(text))
