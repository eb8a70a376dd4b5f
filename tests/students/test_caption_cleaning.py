"""Caption cleaning: the golden pairs of LlamaGen's own code, cases of our own, and diffusers' copy of the same cleaning as an oracle."""

import html
import json
import random
import sys
import types
from pathlib import Path

import pytest

from proxy_jax.students.caption_cleaning import clean_caption, clean_once

CASES = {
    "A Photo of <person>": "a photo of person",
    "a%20red+car": "a red car",
    "see http://foo.com/a-b and mail me@site.org now": "see and mail me now",
    "<b>bold</b> and <script>var x = 1;</script>plain<!-- note -->": "bold and plain",
    "by @some_user today": "by today",
    "a 漢字 かな sign": "a かな sign",
    "a «one» “two” ‘three’ b": 'a "one" "two" \'three\' b',
    "em\u2014dash \u2013 en": "em-dash - en",
    "a_b-c_d-e": "a b c d e",
    "a-b_c-d": "a-b_c-d",  # three joiners only
    "salt &amp; pepper": "salt pepper",
    "tom &amp;amp; jerry": "tom ; jerry",
    "server 10.0.0.127 down": "server down",
    "item #12 and #12345 and #1234 and 9876543": "item and and 1234 and",
    "photo.JPG of a cat": "of a cat",
    "png images of cats": "of cats",
    "worldwide free shipping now": "now",
    "free download free": "",
    "click on this link": "link",
    "sofa, page 3, 10x20 and 1.5×2": "sofa, , and",
    "ab1234 xyz12abc 12ab34 a1b2c3": "",
    "wait... what": "wait what",
    "***wow***": "wow",
    "one,two.three/four": "one, two. three four",
    "caf\u00c3\u00a9": "caf\u00e3",  # lower-cased before it is mended, so it stays broken
    "schön &lt;b&gt; &#65;": "schön a",
    "'- quoted -'": "quoted",
    "": "",
}


@pytest.mark.parametrize(("text", "expected"), CASES.items())
def test_own_cases(text, expected):
    assert clean_caption(text) == expected


def test_golden_pairs(shared: Path):
    pairs = json.loads((shared / "golden" / "t5_caption_cleaning" / "pairs.json").read_text())
    assert [(pair["input"], clean_once(pair["input"]), clean_caption(pair["input"])) for pair in pairs] == [
        (pair["input"], pair["cleaned_once"], pair["cleaned"]) for pair in pairs
    ]


PIECES = (
    "a cat| |<b>|</b>|<br/>|<p class='x'>|&amp;|&quot;|&lt;|&copy|&#150;|&foo;|<!-- c -->|<script>var x</script>|https://a.com/b.png|http:x"
    "|www:|www.foo.org/x|foo.it|@nick|user@mail.com|<person>|#12|#1234|#12345|123456|10.0.0.1|3:45 |\\n|file.JPG|.png|''|\"\"|...|..|漢|か|—|«q»|`|-"
    "|_|a-b-c-d-e|jc6640|jc6640vc|6640vc231|j2d1a2a|free shipping|download free|click for info|png images|page 12|10x20|3х4| : |:|,|a,b|a.b|/|(x)|*|~"
    "|½|%20|+|\n|ÃƒÂ©|â€™|ﬁ|İ|'quoted'|;|'|\"|&lt;b&gt;|&amp;amp;lt;|<|a < b|<3|<![CDATA[x]]>|<!doctype html>|x²|٣٤٥٦٧٨"
).split("|")


class StrippingHtml(types.SimpleNamespace):
    """The html module for diffusers' copy, which lacks the strip that LlamaGen has after its second unescape."""

    calls = 0

    def unescape(self, text: str) -> str:
        self.calls += 1
        text = html.unescape(text)
        return text.strip() if self.calls % 2 == 0 else text


def test_random_captions_match_the_official_cleaning(monkeypatch):
    pytest.importorskip("torch", reason="diffusers' pipelines need torch")
    pytest.importorskip("bs4", reason="the official cleaning needs Beautiful Soup")
    from diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha import PixArtAlphaPipeline

    monkeypatch.setattr(sys.modules[PixArtAlphaPipeline.__module__], "html", StrippingHtml())
    official = types.SimpleNamespace(bad_punct_regex=PixArtAlphaPipeline.bad_punct_regex)
    draw = random.Random(0)
    for _ in range(2000):
        text = "".join(draw.choice(PIECES) + draw.choice(("", "", " ")) for _ in range(draw.randint(1, 8)))
        expected = PixArtAlphaPipeline._clean_caption(official, text)
        assert clean_once(text) == expected, text
        assert clean_caption(text) == PixArtAlphaPipeline._clean_caption(official, expected), text
