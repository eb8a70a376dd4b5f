"""CLIP's tensor names (transformers' CLIPTextModel, CLIPTextModelWithProjection and CLIPModel)."""

from proxy_jax.models.clip import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from proxy_jax.weights.table import Entry, Table, conv, embed, layers, linear, norm, param

POSITION_IDS = r"(.*\.)?embeddings\.position_ids"  # 0, 1, 2, ...: a buffer in older exports


def text_table(config: CLIPTextConfig, *, projection: bool = True) -> Table:
    """The name table of a `CLIPText`; without `projection` the file's text_projection is passed over.

    transformers 5 saves a CLIPTextModel without the "text_model." that published files have: both are read.
    """
    head = linear("text_projection", "projection", bias=False) if projection else []
    ignored = (POSITION_IDS,) if projection else (POSITION_IDS, r"text_projection\.weight")
    return Table(
        (*_text(config, "text_model.", ""), *head),
        ignored=ignored,
        renames=((r"^(?=embeddings\.|encoder\.|final_layer_norm\.)", "text_model."),),
        original=(("{}", "{}"),),
    )


def table(config: CLIPConfig) -> Table:
    """The name table of a `CLIP`, both towers."""
    entries = [
        *_text(config.text_config, "text_model.", "text."),
        *linear("text_projection", "text.projection", bias=False),
        *_vision(config.vision_config),
        *linear("visual_projection", "vision_projection", bias=False),
        *param("logit_scale", "logit_scale"),
    ]
    return Table(tuple(entries), ignored=(POSITION_IDS,))


def _text(config: CLIPTextConfig, official: str, ours: str) -> list[Entry]:
    return [
        *embed(f"{official}embeddings.token_embedding", f"{ours}token_embed"),
        *embed(f"{official}embeddings.position_embedding", f"{ours}position_embed"),
        *_blocks(config.num_hidden_layers, official, ours),
        *norm(f"{official}final_layer_norm", f"{ours}norm"),
    ]


def _vision(config: CLIPVisionConfig) -> list[Entry]:
    return [
        *param("vision_model.embeddings.class_embedding", "vision.class_embed"),
        *conv("vision_model.embeddings.patch_embedding", "vision.patch", bias=False),
        *embed("vision_model.embeddings.position_embedding", "vision.position_embed"),
        *norm("vision_model.pre_layrnorm", "vision.pre_norm"),  # spelled so in every file
        *_blocks(config.num_hidden_layers, "vision_model.", "vision."),
        *norm("vision_model.post_layernorm", "vision.post_norm"),
    ]


def _blocks(num_layers: int, official: str, ours: str) -> list[Entry]:
    layer, block = official + "encoder.layers.{l}.", f"{ours}blocks."
    entries = [
        *norm(f"{layer}layer_norm1", f"{block}attention_norm"),
        *(e for name in "qkv" for e in linear(f"{layer}self_attn.{name}_proj", f"{block}{name}")),
        *linear(f"{layer}self_attn.out_proj", f"{block}o"),
        *norm(f"{layer}layer_norm2", f"{block}mlp_norm"),
        *linear(f"{layer}mlp.fc1", f"{block}fc1"),
        *linear(f"{layer}mlp.fc2", f"{block}fc2"),
    ]
    return layers(range(num_layers), entries)
