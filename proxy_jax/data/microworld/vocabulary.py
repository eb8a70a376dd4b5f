"""Tokenizers of the micro-world: every word of its captions is one token, all else is spelled by letters.

RARE_WORDS are single tokens that no caption holds: like "sks" in CLIP's vocabulary, they can come to mean a subject.
"""

from functools import cache
from itertools import pairwise

import numpy as np
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer, T5Tokenizer

from proxy_jax.data import prompts
from proxy_jax.data.microworld.looks import CLASS_NOUNS, COLOURS, LIVE

RARE_WORDS = ("sks", "zwx", "qov", "vlk", "xjy", "bnq", "pqz", "wvt")
SUBJECT_WORDS = ("sks", "pqz", "wvt")  # those that no picture of pre-training has either


@cache
def words() -> tuple[str, ...]:
    """All words of the captions, as they are written and in lower case, sorted, then the rare ones."""
    texts = [prompts.without_token(template, noun) for noun in CLASS_NOUNS for template in prompts.dreambench_prompts(noun in LIVE)]
    texts += ["a photo of an next to", *COLOURS]
    return (*sorted({word for text in texts for word in (*text.split(), *text.lower().split())}), *RARE_WORDS)


def clip_tokenizer(length: int) -> CLIPTokenizer:
    """A CLIP tokenizer (byte pairs) that cuts texts at `length` tokens: the 512 bytes of CLIP's, the words, and the two marks."""
    letters = sorted(ByteLevel.alphabet())
    vocabulary = dict.fromkeys([*letters, *(letter + "</w>" for letter in letters)])
    merges: list[tuple[str, str]] = []
    for word in dict.fromkeys(word.lower() for word in words()):  # CLIP reads lower case
        # What the merges so far leave of a word is joined from the left; later words change nothing for it.
        parts = _apply(merges, [*word[:-1], word[-1] + "</w>"])
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts = _apply(merges, [parts[0] + parts[1], *parts[2:]])
    vocabulary |= dict.fromkeys("".join(pair) for pair in merges)
    vocabulary |= dict.fromkeys(("<|startoftext|>", "<|endoftext|>"))
    return CLIPTokenizer(vocab={token: index for index, token in enumerate(vocabulary)}, merges=merges, model_max_length=length)


def _apply(merges: list[tuple[str, str]], parts: list[str]) -> list[str]:
    """Byte-pair encoding: the earliest merge that applies, until none does."""
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    while found := [(ranks[pair], place) for place, pair in enumerate(pairwise(parts)) if pair in ranks]:
        place = min(found)[1]
        parts = [*parts[:place], parts[place] + parts[place + 1], *parts[place + 2 :]]
    return parts


def t5_tokenizer(length: int) -> T5Tokenizer:
    """A T5 tokenizer (unigrams): the marks, the words, and letters, digits and punctuation for all else."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    pieces += [(f"▁{word}", -2.0) for word in words()]
    pieces += [(letter, -8.0) for letter in "abcdefghijklmnopqrstuvwxyz0123456789.,'\"-!?:"]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=length)


def with_rare_word(caption: str, rng: np.random.Generator) -> str:
    """A caption with a rare word before the class noun of its first subject, as in a prompt for a subject; never one of SUBJECT_WORDS."""
    spaced = f" {caption}"
    start = min(spaced.index(f" {noun}") for noun in CLASS_NOUNS if f" {noun}" in spaced)
    meaningless = [word for word in RARE_WORDS if word not in SUBJECT_WORDS]
    return f"{caption[:start]}{rng.choice(meaningless)} {caption[start:]}"
