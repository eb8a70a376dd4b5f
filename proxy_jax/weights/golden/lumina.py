"""Golden kinds and manifests of Lumina-mGPT: the Chameleon decoder, its image tokenizer, decoding. Official images are NCHW; ours are NHWC."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from proxy_jax.models import decoder, parameters
from proxy_jax.models.chameleon import Chameleon, ChameleonConfig, positions_of
from proxy_jax.models.decoder import segments_of
from proxy_jax.models.vqgan import VQModel
from proxy_jax.students import vq
from proxy_jax.students.decoding import Sampling
from proxy_jax.students.lumina_mgpt import generate
from proxy_jax.students.lumina_tokens import CODES_PER_CELL, MOST_CELLS, Vocabulary, bucket_sizes, image_tokens, nearest_bucket
from proxy_jax.students.next_token import next_token_loss
from proxy_jax.weights import chameleon, chameleon_vqgan
from proxy_jax.weights.golden import Case, Comparison, Describe, Run, nchw, nhwc
from proxy_jax.weights.hub import config_from
from proxy_jax.weights.table import load
from proxy_jax.weights.tensors import open_tensors

LOGITS_TOLERANCE = 2e-5
LOSS_TOLERANCE = 1e-5
LATENT_TOLERANCE = 2e-5
PIXEL_TOLERANCE = 1e-4
SCORE_TOLERANCE = 1e-4
MASKED = -1e9  # the score of a token that cannot be chosen
SIZES = "crop_size_lists_wh"
DISTANCE_TOLERANCE = 1e-4  # a difference of sums of squares, computed in another order
TABLE_TOLERANCE = 1e-6


def load_decoder(case: Case) -> Chameleon:
    """The case's decoder."""
    tensors = open_tensors(case.weights)
    config = chameleon.read_config(case.config, tensors)
    return load(lambda: Chameleon(config, rngs=nnx.Rngs(0)), chameleon.table(config), tensors, source=str(case.weights))


@jax.jit
def _states(model: Chameleon, ids: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    x, length = model.embed(ids), ids.shape[1]
    graph, state = nnx.split(model.blocks)
    first = nnx.merge(graph, jax.tree.map(lambda array: array[:1], state))
    rope = model.rope(positions_of(mask, length))
    hidden = model.hidden_states(x, mask)
    return {
        "hidden_after_embed": x,
        "hidden_after_layer1": decoder.run(first, x, rope, segments_of(mask, length), compute=model.compute),
        "hidden_final_normed": hidden,
        "logits": model.logits(hidden),
    }


def chameleon_lm(case: Case) -> list[Comparison]:
    """Logits of right- and left-padded sequences, states on the way, rotary tables, losses."""
    model, io = load_decoder(case), case.io
    valid, valid_left = io["attention_mask"].astype(bool), io["attention_mask_left"].astype(bool)
    right = _states(model, io["input_ids"], np.ones_like(valid))  # padding after a sequence changes nothing in it
    left = _states(model, io["input_ids_left"], valid_left)
    rope = model.rope(jnp.arange(io["rope_cos"].shape[1])[None])
    hidden, targets = right["hidden_final_normed"][:, :-1], io["labels"][:, 1:]
    supervised, weight = targets != -100, case.config["z_loss_weight"]
    plain, both, whole = (next_token_loss(hidden, model.head, targets, z_loss=z)[supervised].mean() for z in (0.0, weight, 1.0))
    losses = {"c_loss": plain, "z_loss": whole - plain, "total_loss": both}
    return [
        *(Comparison(name, array[valid], io[name][valid], LOGITS_TOLERANCE) for name, array in right.items()),
        Comparison("logits_left", left["logits"][valid_left], io["logits_left"][valid_left], LOGITS_TOLERANCE),
        *(Comparison(f"rope_{name}", jnp.tile(rope[..., i], 2), io[f"rope_{name}"], TABLE_TOLERANCE) for i, name in enumerate(("cos", "sin"))),
        *(Comparison(name, loss, io[name], LOSS_TOLERANCE) for name, loss in losses.items()),
    ]


def chameleon_vqgan_case(case: Case) -> list[Comparison]:
    """The image tokenizer: latents, indices (exactly), codes, decoding."""
    config, io = chameleon_vqgan.config_of(case.config), case.io
    model = load(lambda: VQModel(config, rngs=nnx.Rngs(0)), chameleon_vqgan.table(config), open_tensors(case.weights), source=str(case.weights))

    @jax.jit
    def encode(model: VQModel, images: jax.Array) -> tuple[jax.Array, ...]:
        latents = model.latents(images)
        distances = jnp.square(latents[..., None, :] - model.codebook.vectors()).sum(-1)
        nearest = jnp.sort(distances, axis=-1).reshape(-1, config.codebook_size)
        return latents, *model.quantize(latents), nearest[:, 1] - nearest[:, 0]

    latents, indices, codes, margin = encode(model, nhwc(io["image"]))
    decode = jax.jit(VQModel.decode)
    pixels = {"recon": decode(model, indices), "codes_decoded": decode(model, io["codes_in"])}
    values = {"latent_pre_quant": nchw(latents), "quantized": nchw(codes)}
    table = np.asarray(image_tokens(case.config["synthetic_vocab"]))
    return [
        Comparison("indices", np.asarray(indices), io["indices"], 0.0),
        Comparison("img2bpe_table", table, io["img2bpe_table"], 0.0),
        Comparison("indices_bpe", table[indices], io["indices_bpe"], 0.0),
        Comparison("margin", np.asarray(margin), io["margin"], DISTANCE_TOLERANCE),
        *(Comparison(name, ours, io[name], LATENT_TOLERANCE) for name, ours in values.items()),
        *(Comparison(name, nchw(ours), io[name], PIXEL_TOLERANCE) for name, ours in pixels.items()),
        Comparison("codes_decoded_uint8", vq.decode(model, io["codes_in"], truncate=True), io["codes_decoded_uint8"], 1),
    ]


@functools.partial(parameters.jit, static_argnames=("vocabulary", "grid", "sampling", "text_top_k", "num_tokens"))
def _greedy(model: Chameleon, prompt: jax.Array, **options) -> tuple[jax.Array, jax.Array]:
    text = {"prompt": prompt, "prompt_mask": jnp.ones(prompt.shape, bool)}
    return generate(model, text, jax.random.key(0), jnp.arange(len(prompt)), collect_logits=True, **options)


def lumina_generate(case: Case) -> list[Comparison]:
    """Greedy decoding with and without guidance: tokens, and the scores they were chosen by; the sizes of pictures and which is chosen."""
    model, config, io = load_decoder(case), case.config, case.io
    special = config["special"]
    first, last = special["image_token_range_inclusive"]
    vocabulary = Vocabulary(
        begin_text=int(io["prompt_ids"][0, 0]),
        end_turn=special["sep"],
        begin_image=special["begin_image"],
        end_image=special["end_image"],
        new_line=special["new_line"],
        sizes=tuple(special["size_token_base"] + cells for cells in range(MOST_CELLS + 1)),
        image=tuple(range(first, last + 1)),
    )
    grid = CODES_PER_CELL * config["h_grids"], CODES_PER_CELL * config["w_grids"]
    start = np.asarray([vocabulary.start(*grid)])
    out = [Comparison("start of the picture", start, io["prompt_ids"][:, -start.size :], 0)]
    for suffix, scale in (("cfg3", 3.0), ("cfg1", 1.0)):
        sampling = Sampling(guidance_scale=scale, top_k=config["image_top_k"], temperature=0)
        options = dict(vocabulary=vocabulary, grid=grid, sampling=sampling, text_top_k=config["text_top_k"], num_tokens=int(io["n_new"]))
        tokens, scores = (np.asarray(array)[0] for array in _greedy(model, io["prompt_ids"][:, : -start.size], **options))
        kept = np.isfinite(scores).sum(-1)
        scores = np.where(np.isfinite(scores), scores, MASKED)
        scores = np.where((kept == 1)[:, None] & (scores > MASKED), 0, scores)  # a forced token's score is 0 there
        out += [
            Comparison(f"tokens_{suffix}", tokens, io[f"tokens_{suffix}"], 0),
            Comparison(f"kept_count_{suffix}", kept, io[f"kept_count_{suffix}"], 0),
            Comparison(
                f"chosen_score_{suffix}", np.take_along_axis(scores, tokens[:, None], -1)[:, 0], io[f"chosen_score_{suffix}"], SCORE_TOLERANCE
            ),
        ]
        if f"top5_ids_{suffix}" in io:
            ids, best = np.argsort(-scores, axis=-1)[:, :5], -np.sort(-scores, axis=-1)[:, :5]
            possible = io[f"top5_scores_{suffix}"] > MASKED  # which of the others come first means nothing
            out.append(Comparison(f"top5_ids_{suffix}", np.where(possible, ids, 0), np.where(possible, io[f"top5_ids_{suffix}"], 0), 0))
            out.append(Comparison(f"top5_scores_{suffix}", best, io[f"top5_scores_{suffix}"], SCORE_TOLERANCE))
    out += [Comparison(f"sizes at {target}", np.asarray(bucket_sizes(int(target))), np.asarray(sizes), 0) for target, sizes in config[SIZES].items()]
    for name, size in config["chosen_crop_wh"].items():
        width, height, target = map(int, re.split("[x@]", name))
        out.append(Comparison(f"size for {name}", np.asarray(nearest_bucket(width, height, target)), np.asarray(size), 0))
    return out


def _describe(official: dict):
    config = config_from(ChameleonConfig, official | {"qk_norm_rows": official["model_parallel_size"]})
    return lambda: Chameleon(config, rngs=nnx.Rngs(0)), chameleon.table(config)


def _describe_vqgan(official: dict):
    config = chameleon_vqgan.config_of(official)
    return lambda: VQModel(config, rngs=nnx.Rngs(0)), chameleon_vqgan.table(config)


KINDS: dict[str, Run] = {"chameleon_lm": chameleon_lm, "chameleon_vqgan": chameleon_vqgan_case, "lumina_generate": lumina_generate}
MANIFESTS: dict[str, Describe] = {r"lumina_mgpt_.*": _describe, r"chameleon_vqgan": _describe_vqgan}
