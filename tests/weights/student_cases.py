"""Golden cases of the students at other sizes: LlamaGen made of transformers' Llama layers, Lumina-mGPT of its Chameleon.

What is around the layers is written anew, in PyTorch and without a cache: rotary tables, masks, guidance, which tokens may follow.
"""

import pytest

torch = pytest.importorskip("torch", reason="the cases are made by transformers' models, which need torch ([test] extra)")


def draws(*shape: int):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


LLAMAGEN = dict(dim=40, n_layer=2, n_head=2, multiple_of=8, vocab_size=30, block_size=9, norm_eps=1e-5, rope_base=1000.0)
GRID, HEAD = 3, 20  # of LLAMAGEN: the side of the token grid, a head's width


class LlamaGen:
    """LlamaGen out of transformers' Llama layers, which turn halves where LlamaGen turns pairs. embed: conditions -> [batch, slots, dim]."""

    def __init__(self, slots: int, embed):
        from transformers.models.llama.modeling_llama import LlamaConfig, LlamaDecoderLayer, LlamaRMSNorm

        c = LLAMAGEN
        sizes = dict(hidden_size=c["dim"], intermediate_size=112, num_attention_heads=c["n_head"], num_key_value_heads=c["n_head"])
        config = LlamaConfig(**sizes, rms_norm_eps=c["norm_eps"], attn_implementation="eager")
        self.slots, self.embed = slots, embed
        self.tokens, self.head = torch.nn.Embedding(c["vocab_size"], c["dim"]), torch.nn.Linear(c["dim"], c["vocab_size"], bias=False)
        self.layers, self.norm = [LlamaDecoderLayer(config, number) for number in range(c["n_layer"])], LlamaRMSNorm(c["dim"], c["norm_eps"])
        torch.manual_seed(0)
        with torch.no_grad():
            for module in (self.tokens, self.head, self.norm, *self.layers):
                for parameter in module.parameters():
                    parameter.copy_(0.3 * torch.randn(parameter.shape) + (parameter.ndim == 1))

    def state_dict(self) -> dict:
        """Under the official names."""

        def pairs(weight):
            return weight.view(LLAMAGEN["n_head"], 2, HEAD // 2, -1).transpose(1, 2).reshape(weight.shape)

        found = {"tok_embeddings.weight": self.tokens.weight, "norm.weight": self.norm.weight, "output.weight": self.head.weight}
        for number, layer in enumerate(self.layers):
            attention, mlp = layer.self_attn, layer.mlp
            wqkv = torch.cat([pairs(attention.q_proj.weight), pairs(attention.k_proj.weight), attention.v_proj.weight])
            parts = {"attention.wqkv": wqkv, "attention.wo": attention.o_proj.weight, "attention_norm": layer.input_layernorm.weight}
            parts |= {"ffn_norm": layer.post_attention_layernorm.weight, "feed_forward.w1": mlp.gate_proj.weight}
            parts |= {"feed_forward.w2": mlp.down_proj.weight, "feed_forward.w3": mlp.up_proj.weight}
            found |= {f"layers.{number}.{name}.weight": value for name, value in parts.items()}
        return found

    def angles(self):
        """Of the image's places, [9, HEAD / 2]: half of them by the row, half by the column."""
        frequencies = LLAMAGEN["rope_base"] ** -(torch.arange(5) * 2 / (HEAD // 2))
        row, column = (torch.arange(GRID**2) // GRID)[:, None], (torch.arange(GRID**2) % GRID)[:, None]
        return torch.cat([row * frequencies, column * frequencies], dim=1)

    def mask(self, visible):
        """[batch, slots + 9, slots + 9], True: attends; visible [batch, slots]."""
        length = self.slots + GRID**2
        mask = torch.ones(len(visible), length, length, dtype=torch.bool).tril()
        mask[:, :, : self.slots] &= visible.bool()[:, None]
        return mask | torch.eye(length, dtype=torch.bool)

    def logits(self, condition, visible, tokens):
        """[batch, slots + n, vocab] for the first n tokens [batch, n]."""
        x = torch.cat([self.embed(condition), self.tokens(tokens)], dim=1)
        length = x.shape[1]
        table = [torch.cat([torch.zeros(self.slots, HEAD), turn(self.angles()).tile(2)])[None, :length] for turn in (torch.cos, torch.sin)]
        hidden = torch.where(self.mask(visible)[:, None, :length, :length], 0.0, -1e30)
        for layer in self.layers:
            x = layer(x, attention_mask=hidden, position_embeddings=table)
        return self.head(self.norm(x))

    def freqs_cis(self):
        angles = self.angles()
        return torch.cat([torch.zeros(self.slots, HEAD // 2, 2), torch.stack([angles.cos(), angles.sin()], dim=-1)])

    def greedy(self, condition, unconditional, visible, scale: float, suffix: str) -> dict:
        """Tokens [batch, 9] and the guided logits [9, batch, vocab] that they are the best of."""
        tokens, steps = torch.zeros(len(visible), 0, dtype=torch.long), []
        for _ in range(GRID**2):
            logits, without = (self.logits(x, visible, tokens)[:, -1] for x in (condition, unconditional))
            steps.append(without + scale * (logits - without))
            tokens = torch.cat([tokens, steps[-1].argmax(-1, keepdim=True)], dim=1)
        return {f"tokens_{suffix}": tokens, f"step_logits_{suffix}": torch.stack(steps)}


def drawn_tokens(batch: int):
    return torch.randint(LLAMAGEN["vocab_size"], (batch, GRID**2), generator=torch.Generator().manual_seed(1))


def entropy(logits, tokens):
    return torch.nn.functional.cross_entropy(logits[:, -(GRID**2) :].transpose(1, 2), tokens, reduction="none")


def llamagen_gpt_t2i():
    slots, width = 6, 12
    first, second = draws(LLAMAGEN["dim"], width) * 0.5, draws(LLAMAGEN["dim"], LLAMAGEN["dim"]) * 0.5
    model = LlamaGen(slots, lambda caption: torch.nn.functional.gelu(caption @ first.T, approximate="tanh") @ second.T)
    uncond = draws(slots, width)
    own = {"cls_embedding.cap_proj.fc1.weight": first, "cls_embedding.cap_proj.fc2.weight": second, "cls_embedding.uncond_embedding": uncond}
    tokens, valid, drop = drawn_tokens(3), torch.tensor([1, 1, 0]), torch.tensor([0, 1, 0])
    visible = torch.arange(slots) >= torch.tensor([4, 0, 0])[:, None]  # the last is an unreadable example, whose mask is plainly causal
    caption = torch.where(visible[..., None] & (valid == 1)[:, None, None], draws(3, slots, width), 0.0)
    logits, without = (model.logits(condition, visible, tokens[:, :-1]) for condition in (caption, uncond.expand(3, -1, -1)))
    dropped = torch.where(drop.bool()[:, None, None], without, logits)
    losses = [(entropy(scores, tokens) * valid[:, None]).sum() / (valid.sum() * GRID**2) for scores in (logits, dropped)]
    io = dict(caption_leftpad=caption, emb_mask=visible, image_tokens=tokens, valid=valid, drop_ids=drop, logits=logits, logits_uncond=without)
    io |= dict(freqs_cis=model.freqs_cis(), attn_mask=model.mask(visible), cond_embeddings=model.embed(caption))
    io |= dict(loss_valid=losses[0], loss_with_drop=losses[1], loss_no_valid=entropy(logits, tokens).mean())
    return LLAMAGEN | dict(model_type="t2i", caption_dim=width, cls_token_num=slots), model.state_dict() | own, io


def llamagen_gpt_c2i():
    classes = 5
    table = draws(classes + 1, LLAMAGEN["dim"])
    model = LlamaGen(1, lambda label: table[label][:, None])
    labels, none, tokens, visible = torch.tensor([3, 0]), torch.tensor([classes] * 2), drawn_tokens(2), torch.ones(2, 1)
    logits, without = (model.logits(label, visible, tokens[:, :-1]) for label in (labels, none))
    io = dict(labels=labels, image_tokens=tokens, logits=logits, logits_uncond=without, loss=entropy(logits, tokens).mean())
    io |= dict(freqs_cis=model.freqs_cis()) | model.greedy(labels, none, visible, 4.0, "cfg4") | model.greedy(labels, none, visible, 1.0, "cfg1")
    config = LLAMAGEN | dict(model_type="c2i", num_classes=classes, cls_token_num=1)
    return config, model.state_dict() | {"cls_embedding.embedding_table.weight": table}, io


def chameleon():
    """transformers' with its own row of norms for each head; a function from ids and mask to its states, embeddings first, normed last."""
    import transformers

    config = dict(vocab_size=150, hidden_size=40, intermediate_size=56, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=2)
    vq_config = dict(base_channels=32, channel_multiplier=[1], num_res_blocks=1, latent_channels=8, embed_dim=8, num_embeddings=4, resolution=16)
    names = {"<image>": 20, "<racm3:break>": 21, "<eoss>": 22} | {f"IMGIMG{letter}Z": 4 + i for i, letter in enumerate("ABCD")}
    rope = dict(rope_parameters=dict(rope_type="default", rope_theta=500.0))
    torch.manual_seed(0)
    model = transformers.ChameleonForConditionalGeneration(transformers.ChameleonConfig(**config, **rope, vq_config=vq_config, vocabulary_map=names))
    with torch.no_grad():
        for parameter in model.eval().parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape) + (parameter.ndim == 1))

    def states(ids, mask=None):
        mask = torch.ones_like(ids) if mask is None else mask
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        out = model.model(input_ids=ids, attention_mask=mask, position_ids=positions, output_hidden_states=True)
        return [*out.hidden_states[:2], out.last_hidden_state]

    return config | dict(rope_theta=500.0, rms_norm_eps=1e-5, model_parallel_size=2, swin_norm=False, z_loss_weight=1e-3), model, states


def decoder_of(model) -> dict:
    return {name: tensor for name, tensor in model.state_dict().items() if ".vqmodel." not in name}


def chameleon_lm():
    config, model, states = chameleon()
    lengths, length, prompt = torch.tensor([9, 13]), 13, 4
    ids = torch.randint(4, 150, (2, length), generator=torch.Generator().manual_seed(2))
    mask = (torch.arange(length) < lengths[:, None]).int()
    ids = ids * mask
    left, mask_left = (torch.stack([row.roll(length - int(n)) for row, n in zip(array, lengths, strict=True)]) for array in (ids, mask))
    labels = torch.where((mask == 1) & (torch.arange(length) >= prompt), ids, -100)
    embedded, first, normed = states(ids, mask)
    logits = model.lm_head(normed)
    supervised = labels[:, 1:] != -100
    c_loss = torch.nn.functional.cross_entropy(logits[:, :-1][supervised], labels[:, 1:][supervised])
    z_loss = logits[:, :-1][supervised].logsumexp(-1).square().mean()
    cos, sin = model.model.rotary_emb(embedded, torch.arange(8)[None])
    io = dict(input_ids=ids, attention_mask=mask, labels=labels, input_ids_left=left, attention_mask_left=mask_left, logits=logits)
    io |= dict(hidden_after_embed=embedded, hidden_after_layer1=first, hidden_final_normed=normed, rope_cos=cos, rope_sin=sin)
    io |= dict(logits_left=model.lm_head(states(left, mask_left)[-1]), c_loss=c_loss, z_loss=z_loss, total_loss=c_loss + 1e-3 * z_loss)
    return config, decoder_of(model), io


def lumina_generate():
    """A picture of 4 × 2 codes and text after it, token by token by the official rules."""
    config, model, states = chameleon()
    sep, end_image, begin_image, new_line, sizes, first, last = 3, 4, 5, 6, 80, 10, 41
    config |= dict(h_grids=2, w_grids=1, image_top_k=7, text_top_k=4, crop_size_lists_wh={}, chosen_crop_wh={})
    special = dict(begin_image=begin_image, end_image=end_image, new_line=new_line, size_token_base=sizes, sep=sep)
    prompt, rows, columns, count = [0, 60, 61, 62, sep, begin_image, sizes + 2, sizes + 1], 4, 2 + 1, 4 * 3 + 1 + 3
    is_code = (torch.arange(150) >= first) & (torch.arange(150) <= last)

    def last_logits(ids):
        return model.lm_head(states(torch.tensor([ids]))[-1])[0, -1]

    def scores(ids, scale):
        after = len(ids) - len(prompt)
        logits = last_logits(ids)
        if after > rows * columns:
            return keep(logits, config["text_top_k"])
        without = last_logits(ids[len(prompt) - 3 :])
        logits = scale * (logits - without) + without
        forced = end_image if after == rows * columns else new_line if (after + 1) % columns == 0 else None
        if forced is not None:
            return torch.where(torch.arange(150) == forced, 0.0, -torch.inf)
        return keep(torch.where(is_code, logits, -torch.inf), config["image_top_k"])

    def keep(logits, count):
        return torch.where(logits < logits.topk(count).values[-1], -torch.inf, logits)

    io = dict(prompt_ids=torch.tensor([prompt]), n_new=torch.tensor(count))
    for suffix, scale in (("cfg3", 3.0), ("cfg1", 1.0)):
        ids, steps = list(prompt), []
        for _ in range(count):
            steps.append(scores(ids, scale))
            ids.append(int(steps[-1].argmax()))
        steps, tokens = torch.stack(steps), torch.tensor(ids[len(prompt) :])
        best = steps.clamp(min=-1e9).topk(5)
        io |= {f"tokens_{suffix}": tokens, f"kept_count_{suffix}": steps.isfinite().sum(-1), f"chosen_score_{suffix}": steps.max(-1).values}
        io |= {f"top5_ids_{suffix}": best.indices, f"top5_scores_{suffix}": best.values}
    return config | dict(special=special | dict(image_token_range_inclusive=[first, last])), decoder_of(model), io


STUDENTS = [llamagen_gpt_t2i, llamagen_gpt_c2i, chameleon_lm, lumina_generate]
