"""proxy_jax/data/prompts.py against DreamBench's own file, and the filling of templates."""

import re

import pytest

from proxy_jax.data import prompts


def test_all_fifty_prompts_are_dreambenchs(shared):
    text = (shared / "dreambench" / "prompts_and_classes.txt").read_text()
    objects, live = text.split("Live Subject Prompts")
    for part, ours in ((objects, prompts.dreambench_prompts(live=False)), (live, prompts.dreambench_prompts(live=True))):
        official = [line.replace("{0}", "{token}").replace("{1}", "{class_noun}") for line in re.findall(r"^'(.*)'\.format", part, re.MULTILINE)]
        assert len(official) == 25
        assert list(ours) == official


def test_subjects_are_dreambenchs(shared):
    text = (shared / "dreambench" / "prompts_and_classes.txt").read_text()
    rows = re.findall(r"^(\w+),([\w ]+)$", text, re.MULTILINE)
    official = {name: noun for name, noun in rows if name != "subject_name"}
    assert {name: subject.class_noun for name, subject in prompts.SUBJECTS.items()} == official
    assert {path.name for path in (shared / "dreambench").iterdir() if path.is_dir()} == set(prompts.SUBJECTS)


def test_nine_subjects_are_live():
    live = [name for name, subject in prompts.SUBJECTS.items() if subject.live]
    assert live == ["cat", "cat2", "dog", "dog2", "dog3", "dog5", "dog6", "dog7", "dog8"]
    assert len(prompts.SUBJECTS) == 30 and not prompts.SUBJECTS["backpack_dog"].live


def test_paper9_is_four_live_and_five_objects():
    chosen = [prompts.SUBJECTS[name].live for name in prompts.PAPER9]
    assert len(set(prompts.PAPER9)) == 9 and sum(chosen) == 4


def test_every_prompt_is_distinct_and_names_the_subject():
    for live in (True, False):
        templates = prompts.dreambench_prompts(live)
        assert len(set(templates)) == 25 and all("{token} {class_noun}" in template for template in templates)
    assert len(set(prompts.dreambench_prompts(True)) & set(prompts.dreambench_prompts(False))) == 15


def test_fill_and_without_token():
    template = prompts.dreambench_prompts(live=True)[0]
    assert prompts.fill(template, "sks", "dog") == "a sks dog in the jungle"
    assert prompts.without_token(template, "dog") == "a dog in the jungle"
    assert prompts.without_token(prompts.PAPER_TEMPLATE, "stuffed animal") == "a stuffed animal"
    assert prompts.fill("a photo of {class_noun}", "sks", "dog") == "a photo of dog"
    assert prompts.without_token("{token} {class_noun}, red", "dog") == "dog, red"


@pytest.mark.parametrize("template", ["a sks dog", "a {token}", "a {token} {class_noun} {place}", "a {} {class_noun}", "a {token {class_noun}"])
def test_bad_templates_are_refused(template):
    with pytest.raises(prompts.PromptError):
        prompts.fill(template, "sks", "dog")
