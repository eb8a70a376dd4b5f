"""proxy_jax/data/microworld/vocabulary.py: a word of the captions is one token, and rare words are free to mean something."""

import numpy as np
import pytest
from transformers import AutoTokenizer

from proxy_jax.data import prompts
from proxy_jax.data.microworld import vocabulary
from proxy_jax.data.microworld.looks import CLASS_NOUNS, COLOURS, LIVE
from proxy_jax.data.microworld.scenes import draw_scene

LENGTH = 16
MAKERS = {"clip": vocabulary.clip_tokenizer, "t5": vocabulary.t5_tokenizer}


@pytest.fixture(scope="module")
def captions() -> list[str]:
    rng = np.random.default_rng(0)
    evaluation = [prompts.without_token(template, noun) for noun in CLASS_NOUNS for template in prompts.dreambench_prompts(noun in LIVE)]
    return sorted({draw_scene(rng).caption for _ in range(6000)} | set(evaluation))


@pytest.fixture(scope="module", params=MAKERS)
def tokenizer(request):
    return MAKERS[request.param](LENGTH)


def pieces(tokenizer, text: str) -> list[str]:
    return [token.replace("</w>", "").replace("▁", "") for token in tokenizer.tokenize(text)]


def test_every_word_of_a_caption_is_one_token(tokenizer, captions):
    for caption in captions:
        words = caption.lower().split() if tokenizer.tokenize("A") == tokenizer.tokenize("a") else caption.split()
        assert pieces(tokenizer, caption) == words


def test_rare_words_are_single_tokens_that_no_caption_holds(tokenizer, captions):
    used = {word for caption in captions for word in caption.lower().split()}
    ids = [tokenizer(word, add_special_tokens=False).input_ids for word in vocabulary.RARE_WORDS]
    assert all(len(own) == 1 for own in ids) and len({own[0] for own in ids}) == len(vocabulary.RARE_WORDS) == 8
    assert not used & set(vocabulary.RARE_WORDS) and tokenizer.unk_token_id not in [own[0] for own in ids if tokenizer.unk_token == "<unk>"]
    assert vocabulary.RARE_WORDS[0] == "sks"  # the paper's and DreamBooth's habit


def test_prompts_with_a_token_fit(tokenizer, captions):
    """The longest caption with a rare word and a colour named, with the marks of both tokenizers, is not cut."""
    evaluation = [prompts.fill(template, "sks", noun) for noun in CLASS_NOUNS for template in prompts.dreambench_prompts(noun in LIVE)]
    for text in [*captions, *evaluation]:
        whole = tokenizer(text, truncation=False).input_ids
        assert len(whole) <= LENGTH, text
        assert tokenizer(text, truncation=True, max_length=LENGTH).input_ids == whole


def test_marks_are_where_the_models_expect_them(tokenizer):
    ids = tokenizer("a dog", padding="max_length", max_length=LENGTH).input_ids
    assert len(ids) == LENGTH
    if "<|startoftext|>" in tokenizer.get_vocab():
        assert ids[0] == tokenizer.bos_token_id and ids[3] == tokenizer.eos_token_id == max(tokenizer.get_vocab().values())  # pooled at the largest
    else:
        assert ids[2] == tokenizer.eos_token_id == 1 and set(ids[3:]) == {tokenizer.pad_token_id} == {0}


def test_other_words_are_spelled(tokenizer):
    for text in ("hippopotamus", "zebra-2", "what's this?"):
        tokens = tokenizer.tokenize(text)
        assert len(tokens) > len(text.split()) and (tokenizer.unk_token == "<|endoftext|>" or tokenizer.unk_token not in tokens)
        assert "".join(pieces(tokenizer, text)) == text.replace(" ", "")
    assert tokenizer.tokenize("hippopotamus") != tokenizer.tokenize("hippopotamos")


def test_different_words_have_different_tokens(tokenizer):
    vocabulary_ids = tokenizer.get_vocab()
    assert sorted(vocabulary_ids.values()) == list(range(len(vocabulary_ids)))
    ids = {word: tuple(tokenizer(word, add_special_tokens=False).input_ids) for word in (*CLASS_NOUNS, *COLOURS)}
    assert len(set(ids.values())) == len(ids)


@pytest.mark.parametrize("kind", MAKERS)
def test_saved_tokenizers_read_the_same(kind, captions, tmp_path):
    made = MAKERS[kind](LENGTH)
    made.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.model_max_length == LENGTH and type(loaded) is type(made)
    texts = [*captions[::50], "a sks dog", "hippopotamus!"]
    assert loaded(texts).input_ids == made(texts).input_ids


def test_rare_word_goes_before_the_first_subject():
    rng, seen = np.random.default_rng(0), set()
    for caption, before, after in (
        ("a dog", "a", "dog"),
        ("an orange candle on the beach", "an orange", "candle on the beach"),
        ("a photo of a stuffed animal", "a photo of a", "stuffed animal"),
        ("a toy next to a can in the jungle", "a", "toy next to a can in the jungle"),
        ("a can next to a toy", "a", "can next to a toy"),
    ):
        for _ in range(30):
            words = vocabulary.with_rare_word(caption, rng).removeprefix(before + " ").split(" ", 1)
            assert words[1] == after
            seen.add(words[0])
    assert seen == set(vocabulary.RARE_WORDS) - set(vocabulary.SUBJECT_WORDS)


def test_rare_word_fits_every_caption(captions):
    rng = np.random.default_rng(0)
    for caption in captions:
        words = vocabulary.with_rare_word(caption, rng).split()
        rare = [word for word in words if word in vocabulary.RARE_WORDS]
        assert len(rare) == 1 and " ".join(word for word in words if word != rare[0]) == caption
        assert " ".join(words[words.index(rare[0]) + 1 :]).startswith(CLASS_NOUNS)
