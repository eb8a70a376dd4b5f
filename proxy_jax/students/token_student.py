"""What students share: a decoder over codes of a VQ tokenizer, their files, and the learned features of subjects' tokens."""

import abc
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from flax import nnx

from proxy_jax.models.layers import Compute
from proxy_jax.models.vqgan import VQConfig, VQModel
from proxy_jax.students import subjects
from proxy_jax.weights.table import Part, Table, load
from proxy_jax.weights.tensors import open_tensors


@dataclasses.dataclass(kw_only=True)
class TokenStudent(abc.ABC):
    """An autoregressive checkpoint as a learner (see proxy_jax/stages/tuning.py for the protocol); prompts, loss and drawing are a family's own.

    gpt: the decoder's file or folder; vq: the image tokenizer's file; resolution: of the pictures, in pixels; class_dropout: the share of
    training examples without their prompt; dropout: of residual branches; tokens: of the subjects whose text features are learned too (Sun
    et al.'s two stages). Parts load when first needed.
    """

    gpt: Path
    vq: Path
    resolution: int
    class_dropout: float
    dropout: float
    compute: Compute
    tokens: tuple[str, ...] = ()

    crop: ClassVar[str] = "llamagen"
    lora_prefix: ClassVar[str] = "base_model.model"  # PEFT's
    model_class: ClassVar[type[nnx.Module]]
    names: ClassVar[Callable[[Any], Table]]  # the name table of a decoder's config
    vq_names: ClassVar[Callable[[VQConfig], Table]]

    @property
    @abc.abstractmethod
    def config(self) -> Any:
        """The decoder's sizes."""

    @property
    @abc.abstractmethod
    def vq_config(self) -> VQConfig:
        """The image tokenizer's sizes."""

    @property
    @abc.abstractmethod
    def pieces(self) -> Mapping[str, Sequence[int]]:
        """What the text tokenizer makes of each of `tokens`, inside a sentence."""

    @abc.abstractmethod
    def saved(self, folder: Path) -> Path:
        """Where the decoder's weights lie in a folder that `save_model` wrote."""

    @property
    def base(self) -> Path:
        """The decoder's base weights."""
        return self.gpt

    @property
    def table(self) -> Table:
        """The decoder's name table."""
        return self.names(self.config)

    def parts(self, model: nnx.Module) -> list[Part]:
        """The decoder alone: text is encoded by frozen models."""
        return [Part(model, self.table, self.lora_prefix)]

    def settings(self) -> dict[str, Any]:
        """What else of the checkpoint decides how the decoder is tuned and drawn from: its sizes."""
        return dataclasses.asdict(self.config)

    def learned(self) -> dict[str, Any]:
        """What `tokens` add to `encoders`."""
        return {"tokens": list(self.tokens)} if self.tokens else {}

    @functools.cached_property
    def tokenizer(self) -> VQModel:
        """The image tokenizer, in float32: codes flip under rounding."""
        config = self.vq_config
        return load(lambda: VQModel(config, rngs=nnx.Rngs(0)), self.vq_names(config), open_tensors(self.vq), source=str(self.vq))

    def load_model(self, dtype_of: Callable[[str], Any], tuned: Path | None = None) -> nnx.Module:
        """The decoder to tune or draw from; tuned: a folder that `save_model` wrote, in place of the base weights."""
        path, config = self.base if tuned is None else self.saved(tuned), self.config
        return load(
            lambda: self.model_class(config, compute=self.compute, rngs=nnx.Rngs(0)),
            self.table,
            open_tensors(path),
            dtype_of=dtype_of,
            source=str(path),
        )

    @abc.abstractmethod
    def save_model(self, model: nnx.Module, folder: Path) -> None:
        """Writes the whole decoder in its official layout."""

    @abc.abstractmethod
    def text_features(self, model: nnx.Module, text: Mapping[str, np.ndarray]) -> np.ndarray:
        """The features [n, slots, width] of the prompts in the columns `text` that tokens' learned ones stand in place of."""

    def learn_subjects(self, model: nnx.Module, text: Mapping[str, np.ndarray]) -> None:
        """Puts features of `tokens` to learn on the model: at first each piece's own, averaged over the prompts in the columns `text`.

        Raises ValueError if a token stands in none of them.
        """
        subjects.start(model, self.pieces, text["subject_rows"], self.text_features(model, text))

    def save_subjects(self, model: nnx.Module, folder: Path) -> None:
        """Writes the learned features of `tokens`, if there are any, into a file of their own."""
        if self.tokens:
            subjects.save(model, self.pieces, folder)

    def load_subjects(self, model: nnx.Module, folder: Path) -> None:
        """Puts the features that `save_subjects` wrote on the model."""
        if self.tokens:
            subjects.load(model, self.pieces, folder)


def of_config(fields: Any, tuning: Any, compute: Compute, locate: Callable[[str], Path], tokens: Sequence[str]) -> dict[str, Any]:
    """The fields of a TokenStudent that the config's `student` and `proxy_tuning` describe."""
    return dict(
        gpt=locate(fields.gpt),
        vq=locate(fields.vq),
        resolution=fields.resolution,
        class_dropout=tuning.class_dropout,
        dropout=tuning.dropout,
        compute=compute,
        tokens=tuple(tokens) if tuning.mode == "two_stage" else (),
    )
