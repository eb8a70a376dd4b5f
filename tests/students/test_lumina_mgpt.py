"""The Lumina-mGPT student: its tokens, cached decoding against teacher forcing, constraints, the loss, and its folders against transformers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from configs import smoke
from proxy_jax.models import parameters
from proxy_jax.models.layers import Compute
from proxy_jax.stages import random_weights, tuning
from proxy_jax.students import lumina_mgpt, vq
from proxy_jax.students.decoding import Sampling, guide
from proxy_jax.students.lumina_mgpt import LuminaMGPTStudent, generate
from proxy_jax.students.lumina_tokens import CODE, TEXT, Vocabulary, bucket_sizes, image_tokens, nearest_bucket, turn_length
from proxy_jax.training import lora
from proxy_jax.weights.golden import Case, lumina
from proxy_jax.weights.region import CheckpointError
from proxy_jax.weights.tensors import open_tensors

CODES, RESOLUTION = 24, 32
DDCONFIG = dict(z_channels=8, ch=32, ch_mult=(1, 1, 1), num_res_blocks=1, in_channels=3, out_ch=3, resolution=16, attn_resolutions=())
SIZES = dict(
    gpt=dict(vocab_size=CODES + 330, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, rope_theta=10000.0),
    vq=dict(embed_dim=6, n_embed=CODES, ddconfig=DDCONFIG),
)
SEEDED, GREEDY = Sampling(guidance_scale=3.0, top_k=0, temperature=9.0), Sampling(guidance_scale=1.0, top_k=0, temperature=0)
GRID = (2, 4)
LENGTH = GRID[0] * (GRID[1] + 1) + 1


def student_in(folder, **changes) -> LuminaMGPTStudent:
    files = dict(gpt=folder / "gpt", vq=folder / "vqgan.safetensors", text_tokenizer=folder / "text_tokenizer.json")
    settings = dict(resolution=RESOLUTION, class_dropout=0.0, dropout=0.0, z_loss=1e-5, compute=Compute(remat="none"))
    return LuminaMGPTStudent(**files | settings | changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lumina")
    random_weights.lumina_mgpt(SIZES, folder, seed=0)
    return folder


@pytest.fixture(scope="module")
def student(folder):
    return student_in(folder)


@pytest.fixture(scope="module")
def model(student):
    """The decoder with all values random, and wide-ranging logits."""
    model = student.load_model(lambda name: jnp.float32)
    rng = np.random.default_rng(1)
    values = {name: value + 0.1 * rng.normal(size=value.shape).astype(np.float32) for name, value in parameters.arrays(model).items()}
    return parameters.with_arrays(model, values | {"head.kernel": 3 * values["head.kernel"]})


@pytest.fixture(scope="module")
def text(student):
    return student.encode_prompts(["a dog", "a photo of sks dog in the snow", ""])


@functools.partial(parameters.jit, static_argnames=("vocabulary", "sampling", "num_tokens", "text_top_k"))
def draw(model, text, indices, **options):
    return generate(model, text, jax.random.key(7), indices, grid=GRID, collect_logits=True, **options)


@functools.partial(parameters.jit, static_argnames=("start",))
def teacher_forced(model, text, ids, mask, start):
    """Logits of ids [batch, n] after the prompt and the picture's start."""
    start = jnp.tile(jnp.asarray(start), (len(ids), 1))
    hidden = model.hidden_states(model.embed(jnp.concatenate([text["prompt"], start, ids[:, :-1]], 1)), mask)
    return model.logits(hidden[:, text["prompt"].shape[1] + 2 :])


def guided_logits(student, model, text, ids, scale):
    start = student.vocabulary.start(*GRID)
    conditional, unconditional = (teacher_forced(model, text, ids, mask, start) for mask in (text["prompt_mask"], text["prompt_mask"] & False))
    return guide(conditional, unconditional, scale), conditional


VOCABULARY = Vocabulary(begin_text=0, end_turn=1, begin_image=2, end_image=3, new_line=4, sizes=tuple(range(10, 20)), image=(33, 30, 32, 31))


def test_codes_are_named_in_letters():
    names = {
        "a": 0,
        "IMGIMGAZ": 7,
        "IMGIMGBZ": 4,
        **{f"IMGIMG{letter}Z": 10 + i for i, letter in enumerate("CDEFGHIJ")},
        "IMGIMGBAZ": 5,
        "IMGIMGZ": 9,
    }
    assert image_tokens(names) == (7, 4, *range(10, 18), 5)
    for wrong in ({"a": 0}, {"IMGIMGBZ": 1}, {name: names[name] for name in names if name != "IMGIMGFZ"}):
        with pytest.raises(CheckpointError, match="codes of pictures"):
            image_tokens(wrong)


def test_a_picture_in_tokens():
    codes = np.asarray([[[0, 1, 2, 3], [3, 2, 1, 0]]])
    ids = VOCABULARY.picture(codes)
    assert ids.tolist() == [[2, 11, 12, 33, 30, 32, 31, 4, 31, 32, 30, 33, 4, 3, 1]]
    np.testing.assert_array_equal(VOCABULARY.codes(jnp.asarray(ids[:, 3:]), 2, 4), codes)
    assert VOCABULARY.frame(2, 4, 13).tolist() == [CODE] * 4 + [4] + [CODE] * 4 + [4, 3, TEXT, TEXT]
    assert VOCABULARY.frame(2, 4, 6).tolist() == [CODE] * 4 + [4, CODE]
    for rows, columns in ((3, 4), (2, 20), (0, 2)):
        with pytest.raises(ValueError, match=r"sides of 2, 4, \.\.\. 18 have size tokens"):
            VOCABULARY.start(rows, columns)


def test_sizes_of_pictures():
    for target, count in ((512, 49), (768, 73), (1024, 97)):
        sizes = bucket_sizes(target)
        assert len(sizes) == count and (target, target) in sizes and sizes[0][0] == 2 * target
        assert all(width * height <= target**2 and max(width, height) <= 4 * min(width, height) for width, height in sizes)
    assert nearest_bucket(1920, 1080, 768) == (1024, 576) and nearest_bucket(50, 50, 512) == (512, 512)


def test_a_prompt_in_tokens(student, text):
    vocabulary, tokenizer = student.vocabulary, student.text
    assert text["prompt"].shape == text["prompt_mask"].shape and text["prompt"].shape[1] % 32 == 0
    for row, caption in enumerate(["a dog", "a photo of sks dog in the snow", ""]):
        ids = text["prompt"][row][text["prompt_mask"][row]].tolist()
        assert (ids[0], ids[-1]) == (vocabulary.begin_text, vocabulary.end_turn)
        assert tokenizer.decode(ids[1:-1]) == f"Generate an image of 32x32 according to the following prompt:\n{caption}"
        assert text["prompt_mask"][row].tolist() == sorted(text["prompt_mask"][row].tolist()), "padding comes first"
    assert tokenizer.encode("dog<reserved08706>", add_special_tokens=False).ids[-1] == vocabulary.end_turn


def test_pictures_become_turns_and_back(student):
    images = np.random.default_rng(0).integers(0, 256, (3, RESOLUTION, RESOLUTION, 3), dtype=np.uint8)
    ids = student.encode_images(images)["tokens"]
    assert (ids.shape, ids.dtype) == ((3, 3 + 8 * 9 + 2), np.int32)
    codes = student.vocabulary.codes(jnp.asarray(ids[:, 3:]), 8, 8)
    np.testing.assert_array_equal(codes, student.tokenizer.encode(images.astype(np.float32) / 127.5 - 1))
    np.testing.assert_array_equal(student.vocabulary.picture(np.asarray(codes)), ids)


def test_pictures_of_other_shapes_keep_theirs_in_one_batch(folder, model, tmp_path, monkeypatch):
    """Each is cut to the nearest size, its own prompt asks for that size, and padding takes no part in its loss."""
    student, batches = student_in(folder, resolution=64), []
    sizes = {"a dog": (200, 100), "a cat": (50, 210), "a cow": (60, 30)}
    cut = {"a dog": (64, 32), "a cat": (32, 128), "a cow": (64, 32)}
    originals = [Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in sizes.values()]
    monkeypatch.setattr(tuning, "fit", lambda model, loss, found, **options: batches.append(next(found)) or model)
    stage = smoke.get_config("sd3,lumina_mgpt").proxy_tuning
    stage.training.batch_size = 3
    pictures, prompts, _ = tuning.cropped(student, originals, list(sizes), stage, seed=0)
    assert [picture.shape[1::-1] for picture in pictures] == list(cut.values())
    halved = originals[0].resize((100, 50), Image.Resampling.BOX)
    np.testing.assert_array_equal(pictures[0], halved.resize((64, 32), Image.Resampling.BICUBIC))
    tuning.tune(student, pictures, prompts, stage=stage, batch_size=2, seed=0, folder=tmp_path, cache=tmp_path / "cache")

    (batch,), vocabulary, turns = batches, student.vocabulary, {}
    assert batch["tokens"].shape == (3, turn_length(128 // 4, 32 // 4))
    for number, turn in enumerate(batch["tokens"]):
        request = student.text.decode(batch["prompt"][number][batch["prompt_mask"][number]][1:-1].tolist())
        prompt = request.splitlines()[-1]
        width, height = cut[prompt]
        assert request == f"Generate an image of {width}x{height} according to the following prompt:\n{prompt}"
        codes = vq.encode(student.tokenizer, np.stack([pictures[prompts.index(prompt)]] * 2))[:1]
        (turns[number],) = vocabulary.picture(np.asarray(codes))
        np.testing.assert_array_equal(turn, np.pad(turns[number], (0, len(turn) - len(turns[number])), constant_values=vocabulary.begin_text))
    number = min(turns, key=lambda number: len(turns[number]))
    row = {name: values[number : number + 1] for name, values in batch.items()} | {"row_index": np.zeros(1, int)}
    losses = [student.loss(model, row | {"tokens": tokens}, jax.random.key(0)) for tokens in (row["tokens"], turns[number][None])]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_cached_decoding_equals_teacher_forcing(student, model, text):
    ids, logits = draw(model, text, jnp.arange(3), vocabulary=student.vocabulary, sampling=SEEDED)
    expected, _ = guided_logits(student, model, text, ids, 3.0)
    possible = np.isfinite(logits)
    codes = student.vocabulary.frame(*GRID, LENGTH) == CODE
    assert (possible.sum(-1) == np.where(codes, CODES, 1)).all()
    np.testing.assert_allclose(np.where(possible, logits, 0), np.where(possible, expected, 0), atol=1e-4)
    assert len({tuple(row) for row in np.asarray(ids).tolist()}) == 3
    plain, _ = draw(model, text, jnp.arange(3), vocabulary=student.vocabulary, sampling=GREEDY)
    _, conditional = guided_logits(student, model, text, plain, 1.0)
    best = np.where(possible, conditional, -np.inf).argmax(-1)
    np.testing.assert_array_equal(plain, best)


def test_constraints_hold_over_200_samples_and_text_follows(student, model, text):
    """Image codes of the five likeliest, lines and ends in their places, then text: of the one likeliest, unguided."""
    vocabulary, more = student.vocabulary, 3
    rows = {name: np.repeat(values, 67, axis=0)[:200] for name, values in text.items()}
    options = dict(vocabulary=vocabulary, sampling=Sampling(guidance_scale=4.0, top_k=5, temperature=9.0), num_tokens=LENGTH + more, text_top_k=1)
    ids, logits = (np.asarray(array) for array in draw(model, rows, jnp.arange(200), **options))
    frame = vocabulary.frame(*GRID, LENGTH + more)
    for position, only in enumerate(frame):
        if only >= 0:
            assert (ids[:, position] == only).all()
        elif only == CODE:
            assert set(ids[:, position]) <= set(vocabulary.image) and len(set(ids[:, position])) >= 5
    kept = np.isfinite(logits).sum(-1)
    assert (kept == np.where(frame == CODE, 5, 1)).all()
    guided, conditional = (np.asarray(array) for array in guided_logits(student, model, rows, jnp.asarray(ids), 4.0))
    np.testing.assert_array_equal(ids[:, LENGTH:], conditional[:, LENGTH:].argmax(-1))
    among = np.sort(guided[:, :4][..., list(vocabulary.image)], axis=-1)[..., -5]
    assert (np.take_along_axis(guided[:, :4], ids[:, :4, None], -1)[..., 0] >= among - 1e-4).all()


@pytest.mark.parametrize("sampling", [SEEDED, GREEDY], ids=["seeded", "greedy"])
def test_a_prompt_alone_gives_its_tokens_in_a_batch(student, model, text, sampling):
    options = dict(vocabulary=student.vocabulary, sampling=sampling)
    together, _ = draw(model, text, jnp.asarray([5, 6, 7]), **options)
    for row, caption in enumerate(["a dog", "a photo of sks dog in the snow", ""]):
        alone, _ = draw(model, student.encode_prompts([caption]), jnp.asarray([5 + row]), **options)
        np.testing.assert_array_equal(alone[0], together[row])


def test_pictures_are_drawn_from_their_numbers(student, model, text):
    def drawn(rows, numbers):
        columns = {name: values[rows] for name, values in text.items()}
        return student.draw(model, columns, {}, 3, np.asarray(numbers), {"guidance_scale": 3.0, "top_k": 10})

    pictures = drawn([0, 1], [4, 9])
    assert pictures.shape == (2, RESOLUTION, RESOLUTION, 3) and pictures.dtype == np.uint8
    np.testing.assert_array_equal(drawn([1, 0], [9, 4])[::-1], pictures)
    assert not np.array_equal(pictures[0], pictures[1])


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_loss_is_the_turns_cross_entropy_and_without_the_prompt_the_pictures(folder, student, model, text, rate):
    answer = student.vocabulary.picture(np.random.default_rng(0).integers(0, CODES, (3, *GRID)))
    mask = text["prompt_mask"] & (rate == 0)
    batch = text | {"tokens": jnp.asarray(answer), "row_index": jnp.arange(3)}
    hidden = model.hidden_states(model.embed(jnp.concatenate([text["prompt"], answer[:, :-1]], 1)), mask)
    logits = model.logits(hidden[:, text["prompt"].shape[1] - 1 :])
    partition = jax.nn.logsumexp(logits, -1)
    losses = partition - jnp.take_along_axis(logits, answer[..., None], -1)[..., 0] + 0.01 * partition**2
    ours = student_in(folder, class_dropout=rate, z_loss=0.01).loss(model, batch, jax.random.key(0))
    np.testing.assert_allclose(ours, losses[:, int(rate) :].mean(-1), rtol=1e-5)
    if rate:  # nothing is left of the prompt
        other = batch | {"prompt": jnp.asarray(text["prompt"] * 0 + 5)}
        np.testing.assert_allclose(student_in(folder, class_dropout=1.0, z_loss=0.01).loss(model, other, jax.random.key(0)), ours, rtol=1e-5)


def test_a_subjects_embedding_is_learned_in_its_places(folder, model, tmp_path):
    student = student_in(folder, tokens=("sks",))
    prompts = ["a photo of sks dog", "a dog"]
    text = student.encode_prompts(prompts)
    pieces = student.pieces["sks"]
    assert student.text.decode(pieces) == " sks"
    assert [text["prompt"][0][text["subject_rows"][0] == number].tolist() for number in (1, 2, 3, 4)] == [[piece] for piece in pieces]
    assert not text["subject_rows"][1].any()
    own = parameters.with_arrays(model, {})
    student.learn_subjects(own, text)
    np.testing.assert_array_equal(own.subject_embed[...], np.asarray(model.token_embed.embedding[...])[pieces])
    batch = text | {"tokens": jnp.asarray(student.vocabulary.picture(np.zeros((2, *GRID), int))), "row_index": jnp.arange(2)}
    before = student.loss(model, batch, jax.random.key(0))
    np.testing.assert_allclose(student.loss(own, batch, jax.random.key(0)), before, rtol=1e-6)
    own = parameters.with_arrays(own, {"subject_embed": own.subject_embed[...] + 1.0})
    after = student.loss(own, batch, jax.random.key(0))
    assert abs(after - before)[0] > 1e-3 and abs(after - before)[1] < 1e-5
    student.save_model(own, tmp_path)
    student.save_subjects(own, tmp_path)
    again = student.load_model(lambda name: jnp.float32, tuned=tmp_path)
    student.load_subjects(again, tmp_path)
    for name, value in parameters.arrays(own).items():
        np.testing.assert_array_equal(parameters.arrays(again)[name], value)


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """A folder with a random ChameleonForConditionalGeneration, gpt, and what reads a folder of such."""
    torch = pytest.importorskip("torch", reason="the oracle needs torch")
    import transformers

    torch.manual_seed(0)
    vq_config = dict(base_channels=32, channel_multiplier=[1, 1], num_res_blocks=1, latent_channels=8, embed_dim=8, num_embeddings=4, resolution=16)
    names = {"<image>": 20, "<racm3:break>": 21, "<eoss>": 22} | {f"IMGIMG{letter}Z": 4 + i for i, letter in enumerate("ABCD")}
    sizes = dict(vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2)
    oracle = transformers.ChameleonForConditionalGeneration(transformers.ChameleonConfig(**sizes, vq_config=vq_config, vocabulary_map=names))
    with torch.no_grad():
        for parameter in oracle.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    folder = tmp_path_factory.mktemp("official")
    oracle.save_pretrained(folder / "gpt")
    (folder / "gpt" / "tokenizer.json").write_text("{}")
    return folder, lambda path: transformers.ChameleonForConditionalGeneration.from_pretrained(path, output_loading_info=True)


def test_a_tuned_student_loads_in_transformers(official, tmp_path):
    folder, read = official
    student = student_in(folder)
    student.save_model(student.load_model(lambda name: jnp.float32), tmp_path)
    assert (tmp_path / "tokenizer.json").is_file()
    (back, info), (oracle, _) = read(tmp_path), read(folder / "gpt")
    assert not any(info.values()), info
    for name, tensor in oracle.state_dict().items():
        assert tensor.equal(back.state_dict()[name]), name


@pytest.mark.filterwarnings("error:Found missing adapter keys")
def test_peft_and_we_read_each_others_adapters(official, tmp_path):
    """PeftModel.from_pretrained on our folder, on every projection; ours on what save_pretrained of a PeftModel wrote, alphas by pattern."""
    import torch

    peft = pytest.importorskip("peft", reason="the oracle is PEFT")
    folder, read = official
    student, ids = student_in(folder), np.arange(4, 16)[None]

    def states(model) -> np.ndarray:
        if isinstance(model, torch.nn.Module):
            with torch.no_grad():
                return model.eval().base_model.model.model(input_ids=torch.from_numpy(ids)).last_hidden_state.numpy()
        return np.asarray(model.hidden_states(model.embed(jnp.asarray(ids)), jnp.ones_like(ids)))

    def base():
        return student.load_model(lambda name: jnp.float32)

    ours = base()
    lora.attach(ours, r"blocks\.(q|k|v|o|gate|up|down)", 2, 3.0, jax.random.key(0))
    values = parameters.arrays(ours, lora.is_lora)
    ours = parameters.with_arrays(ours, {name: value + 0.1 for name, value in values.items()})
    lora.save(student.parts(ours), tmp_path / "ours" / lora.file_name(student.lora_prefix))
    names = set(open_tensors(tmp_path / "ours" / "adapter_model.safetensors").shapes())
    assert len(names) == 2 * 2 * 7 and "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight" in names
    theirs = peft.PeftModel.from_pretrained(read(folder / "gpt")[0], tmp_path / "ours")
    np.testing.assert_allclose(states(ours), states(theirs), atol=2e-5)
    assert np.abs(states(ours) - states(base())).max() > 1e-2

    torch.manual_seed(1)
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "down_proj"], alpha_pattern={"down_proj": 2}, init_lora_weights=False)
    theirs = peft.get_peft_model(read(folder / "gpt")[0], config)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = base()
    paths = lora.load(student.parts(ours), tmp_path / "theirs" / lora.file_name(student.lora_prefix))
    assert paths == ["blocks.down", "blocks.q"]
    np.testing.assert_allclose(states(ours), states(theirs), atol=2e-5)
    assert np.abs(states(ours) - states(base())).max() > 1e-2


def test_checkpoints_that_do_not_fit_are_refused(folder, tmp_path):
    tuning = ConfigDict(dict(class_dropout=0.1, dropout=0.0, z_loss=1e-5, mode="lora"))

    files = dict(gpt=str(folder / "gpt"), vq=str(folder / "vqgan.safetensors"), text_tokenizer=str(folder / "text_tokenizer.json"), resolution=32)

    def made(**changes):
        return lumina_mgpt.make(ConfigDict(files | changes), tuning, Compute(), type(folder), ("sks",))

    assert made().tokens == ()
    for resolution in (40, 288):
        with pytest.raises(CheckpointError, match=rf"student.resolution is {resolution}; Lumina-mGPT draws multiples of 32 up to 256"):
            made(resolution=resolution)
    random_weights.chameleon_tokenizer(CODES + 1).save(str(tmp_path / "more.json"))
    with pytest.raises(CheckpointError, match=rf"vqgan.safetensors has {CODES} codes, but .*more.json names {CODES + 1}"):
        made(text_tokenizer=str(tmp_path / "more.json"))
    (tmp_path / "other.json").write_text((folder / "text_tokenizer.json").read_text().replace("<eoss>", "<oess>"))
    with pytest.raises(CheckpointError, match="the vocabulary is not Chameleon's: it lacks <eoss>"):
        made(text_tokenizer=str(tmp_path / "other.json"))
    with pytest.raises(CheckpointError, match="no file"):
        made(text_tokenizer=str(tmp_path / "absent.json"))


def test_golden(shared):
    comparisons = lumina.KINDS["lumina_generate"](Case(shared / "golden" / "lumina_generate"))
    assert {"tokens_cfg3", "kept_count_cfg1", "top5_scores_cfg3", "size for 1920x1080@768", "sizes at 1024"} <= {c.name for c in comparisons}
    assert [f"{c.name} {c.error:.1e}" for c in comparisons if not c.passed] == []
