"""Contrastive training: pictures with captions (CLIP and the generators' text encoders), and pictures of one subject with each other."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from proxy_jax.data.microworld.scenes import ASKED
from proxy_jax.data.prompts import without_token
from proxy_jax.metrics import encoders
from proxy_jax.metrics.encoders import MetricEncoders, Preprocessing
from proxy_jax.metrics.scores import normalise
from proxy_jax.models import parameters
from proxy_jax.models.clip import CLIP, CLIPConfig, CLIPText, CLIPTextConfig
from proxy_jax.models.layers import Dense
from proxy_jax.models.t5 import T5Config, T5Encoder
from proxy_jax.models.vit import ViT

INSTANCE_TEMPERATURE = 0.1
MAX_LOGIT_SCALE = 4.6052  # ln 100: CLIP's bound on its learned scale


def normalised(pictures: jax.Array, preprocessing: Preprocessing) -> jax.Array:
    """uint8 pictures of the preprocessing's size with its mean and deviation, float32."""
    mean, std = (jnp.asarray(values, jnp.float32) for values in (preprocessing.mean, preprocessing.std))
    return (pictures.astype(jnp.float32) / 255 - mean) / std


def contrast(left: jax.Array, right: jax.Array, same: jax.Array, scale: jax.Array | float) -> jax.Array:
    """The mean of both directions' cross entropies [rows] of telling which of right [rows, d] belong to each of left [rows, d], by cosine · scale.

    same [rows, rows]: whether the two belong together; a row's target is shared among all of them (equal captions are no negatives).
    Source: CLIP (arXiv 2103.00020), with several positives as in SupCon (arXiv 2004.11362, eq. 2).
    """

    def unit(x: jax.Array) -> jax.Array:
        return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-12)

    logits = unit(left.astype(jnp.float32)) @ unit(right.astype(jnp.float32)).T * scale
    targets = same / same.sum(-1, keepdims=True)
    rows = -(targets * jax.nn.log_softmax(logits, axis=1)).sum(1)
    columns = -(targets.T * jax.nn.log_softmax(logits, axis=0)).sum(0)
    return 0.5 * (rows + columns)


def clip_loss(model: CLIP, batch: Mapping[str, jax.Array], rng: jax.Array) -> jax.Array:
    """Batch: pictures (uint8), clip_ids and clip_mask of their captions, caption (equal numbers are equal captions)."""
    preprocessing = encoders.clip_default(model.config.vision_config.image_size)
    images = model.image_features(normalised(batch["pictures"], preprocessing))
    texts = model.text_features(batch["clip_ids"], batch["clip_mask"])
    scale = jnp.exp(jnp.minimum(model.logit_scale[...], MAX_LOGIT_SCALE))
    return contrast(images, texts, _same(batch["caption"]), scale)


def _same(captions: jax.Array) -> jax.Array:
    return (captions[:, None] == captions[None]).astype(jnp.float32)


def instance_loss(model: ViT, batch: Mapping[str, jax.Array], rng: jax.Array) -> jax.Array:
    """Batch: views [rows, 2, size, size, 3] uint8, two pictures of each row's subject; the class token is what tells them apart."""
    preprocessing = encoders.dreambench(model.config.image_size)
    first, second = (model(normalised(batch["views"][:, view], preprocessing))[:, 0] for view in range(2))
    return contrast(first, second, jnp.eye(len(first)), 1.0 / INSTANCE_TEMPERATURE)


class TextEncoders(nnx.Module):
    """SD3's three text encoders, each with a way into a space shared with pictures. Only the encoders are kept after training."""

    def __init__(self, first: CLIPConfig, second: CLIPTextConfig, third: T5Config, *, rngs: nnx.Rngs):
        self.clip = CLIP(first, rngs=rngs)
        self.second = CLIPText(second, rngs=rngs)
        self.t5 = T5Encoder(third, rngs=rngs)
        self.second_projection = Dense(second.projection_dim, first.projection_dim, bias=False, axes=("embed", "embed_out"), rngs=rngs)
        self.t5_projection = Dense(third.d_model, first.projection_dim, bias=False, axes=("embed", "embed_out"), rngs=rngs)

    def text_features(self, batch: Mapping[str, jax.Array]) -> list[jax.Array]:
        """One row a caption from each encoder: both CLIPs' projected end tokens and the mean of T5's states."""
        mask = batch["t5_mask"][..., None].astype(jnp.float32)
        states = self.t5(batch["t5_ids"], batch["t5_mask"])
        mean = (states * mask).sum(1) / mask.sum(1)
        second = self.second_projection(self.second(batch["clip_ids"]).text_embeds)
        return [self.clip.text_features(batch["clip_ids"]), second, self.t5_projection(mean)]


def text_encoders_loss(model: TextEncoders, batch: Mapping[str, jax.Array], rng: jax.Array) -> jax.Array:
    """The mean of the three encoders' contrastive losses with one picture tower; batch: as clip_loss, and t5_ids, t5_mask."""
    preprocessing = encoders.clip_default(model.clip.config.vision_config.image_size)
    images = model.clip.image_features(normalised(batch["pictures"], preprocessing))
    scale = jnp.exp(jnp.minimum(model.clip.logit_scale[...], MAX_LOGIT_SCALE))
    same = _same(batch["caption"])
    return sum(contrast(images, texts, same, scale) for texts in model.text_features(batch)) / 3


@parameters.jit
def _image_features(model: TextEncoders, pictures: jax.Array) -> jax.Array:
    preprocessing = encoders.clip_default(model.clip.config.vision_config.image_size)
    return model.clip.image_features(normalised(pictures, preprocessing))


@parameters.jit
def _text_features(model: TextEncoders, batch: Mapping[str, jax.Array]) -> list[jax.Array]:
    return model.text_features(batch)


def text_scores(model: TextEncoders, tokenizers: Mapping[str, Any], held_out: Any, length: int) -> dict[str, float]:
    """For each text encoder the share of the held-out subjects' pictures (a dataset.HeldOut) whose own caption is nearest of the subject's 25."""
    images, right = normalise(np.asarray(_image_features(model, held_out.pictures))), []
    for subject in range(int(held_out.subjects.max()) + 1):
        rows = np.flatnonzero(held_out.subjects == subject)
        captions = [without_token(held_out.templates[row], held_out.scenes[row].identity.class_noun) for row in rows]
        texts = _text_features(model, token_columns(captions, tokenizers, length))
        right.append([(images[rows] @ normalise(np.asarray(own)).T).argmax(1) == np.arange(len(rows)) for own in texts])
    names = ("text_encoder", "text_encoder_2", "text_encoder_3")
    return {f"{name}_captions": float(np.mean([own[i] for own in right])) for i, name in enumerate(names)}


def token_columns(captions: Sequence[str], tokenizers: Mapping[str, Any], length: int) -> dict[str, np.ndarray]:
    """The captions' tokens by each tokenizer, "<name>_ids" and "<name>_mask" [n, length] int32."""
    options = dict(padding="max_length", max_length=length, truncation=True, return_attention_mask=True, return_tensors="np")
    found = {}
    for name, tokenizer in tokenizers.items():
        batch = tokenizer(list(captions), **options)
        found |= {f"{name}_ids": batch["input_ids"].astype(np.int32), f"{name}_mask": batch["attention_mask"].astype(np.int32)}
    return found


def metric_scores(metric: MetricEncoders, held_out: Any, photos: np.ndarray) -> dict[str, float]:
    """How well the metric encoders know the held-out subjects (a dataset.HeldOut) and their prompts.

    dino_retrieval: the share of pictures whose nearest subject, by the mean embedding of its photos [subjects, n, size, size, 3], is
    their own, over the prompts that leave the body's colour as it is; clip_retrieval: that of clip's image tower; clip_captions: the
    share of pictures whose own caption is the nearest of its subject's 25.
    """
    keeps_colour = np.array([not ASKED[template].primary for template in held_out.templates])
    scores = {}
    for name, embed in (("dino", metric.dino), ("clip", metric.clip_image)):
        references = np.stack([normalise(embed(list(own)).mean(0, keepdims=True))[0] for own in photos])
        nearest = (embed(list(held_out.pictures)) @ references.T).argmax(1)
        scores[f"{name}_retrieval"] = float((nearest == held_out.subjects)[keeps_colour].mean())
    images, right = metric.clip_image(list(held_out.pictures)), []
    for subject in range(len(photos)):
        rows = np.flatnonzero(held_out.subjects == subject)
        captions = [without_token(held_out.templates[row], held_out.scenes[row].identity.class_noun) for row in rows]
        right += list((images[rows] @ metric.clip_text(captions).T).argmax(1) == np.arange(len(rows)))
    return scores | {"clip_captions": float(np.mean(right))}
