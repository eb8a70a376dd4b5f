"""Every field of a run with its default. Other configs are diffs on this one.

Sources of the defaults: "diffusers" = the DreamBooth example scripts and pipelines; "LlamaGen" = its released scripts;
"ours" = the paper does not say (it gives no steps, learning rates, ranks, batch sizes or sampler settings).
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict


def training(**changes) -> ConfigDict:
    """The training fields that stages 1 and 3 share, with `changes`."""
    config = ConfigDict(
        dict(
            steps=500,  # diffusers: 500 for SDXL and SD3 DreamBooth LoRA
            batch_size=4,  # rows a step, over all devices; with prior preservation half of them are class images
            accumulation=1,  # each step's batch is run in this many pieces
            learning_rate=1e-4,
            schedule="constant",  # constant | linear | cosine, after the warm-up
            warmup_steps=0,
            beta1=0.9,
            beta2=0.999,
            epsilon=1e-8,
            weight_decay=1e-4,  # diffusers; on tensors of two and more dimensions
            clip_norm=1.0,  # of the whole gradient; 0: off
            ema_decay=0.0,  # 0: off
            checkpoint_every=100,
            keep_checkpoints=2,
            log_every=10,
            preview_every=0,  # sample grid at fixed seeds every so many steps; 0: never
        )
    )
    config.update(changes)
    return config


def subject_tuning() -> ConfigDict:
    """Stage 1. The LoRA goes on the joint attention's projections (diffusers); its rank is ours."""
    return ConfigDict(
        dict(
            source="photos",  # photos | proxies: those of the field `proxies` (the paper's control, a diffusion model tuned on proxies)
            mode="lora",  # lora | full
            lora=ConfigDict(
                dict(
                    rank=16,
                    alpha=16.0,
                    pattern=r"(blocks|dual_blocks|last_block)\.attention\.(img|txt)_(q|k|v|o)",
                    base="compute",  # how the frozen kernels are held: compute (in compute.dtype) | int8 (with a scale an output channel)
                    # Adapters on CLIP text encoders too, e.g. blocks\.(q|k|v|o), which is diffusers' with --train_text_encoder; "": frozen (its
                    # default). Needed too where `supervisor.lora` has such adapters
                    text_encoders="",
                    text_encoder_learning_rate=5e-6,  # diffusers; with the schedule of `training`
                )
            ),
            # How `subject.token` is read by CLIP text encoders: as the rare word that it is, or as new tokens whose embeddings are learned in the
            # first steps, beside the adapters (pivotal tuning; it needs mode lora). They start from the class noun's. T5 reads the word:
            # of FLUX.1 only the pooled text has the new tokens
            embedding=ConfigDict(
                dict(
                    tokens=0,  # how many new tokens; 0: the rare word. diffusers (--train_text_encoder_ti) takes 2
                    learning_rate=3e-4,  # Replicate's cog-sdxl; with the schedule of `training`
                    fraction=0.5,  # of the steps (diffusers)
                )
            ),
            prompt="a photo of {token} {class_noun}",  # diffusers
            weighting="logit_normal",  # SD3, FLUX: logit_normal | none | sigma_sqrt | cosmap | mode (diffusers)
            precondition_outputs=True,  # SD3, diffusers: regress the clean latents
            snr_gamma=0.0,  # SDXL: of min-SNR weighting (Hang et al., arXiv 2303.09556, take 5); 0: off (diffusers)
            # Prior preservation, on class images drawn once (diffusers: 100 of them, the pipeline's steps and guidance). weight 0: off
            prior=ConfigDict(dict(weight=1.0, num_images=100, prompt="a photo of {class_noun}", steps=28, guidance_scale=7.0)),
            augment="none",  # none | paper (flip, ±5° rotation, 0.9-1.0 crop)
            augment_variants=1,  # how many augmented copies of each photo are encoded
            encode_batch_size=8,  # of the frozen encoders, and of drawing class images
            training=training(learning_rate=4e-4, preview_every=0),
        )
    )


def proxy_tuning() -> ConfigDict:
    """Stage 3. The LoRA goes on every projection of the decoder; it and its rank are ours."""
    return ConfigDict(
        dict(
            source="proxies",  # proxies | photos: the paper's direct-tuning baseline
            num_proxies=0,  # only the first so many of a proxy set; 0: all
            proxy_prompts=(),  # only the proxies of these of proxy_generation.prompts; (): all
            # lora | full | two_stage: the token's text features first (`embedding`), then all weights (`training`), as Sun et al.,
            # arXiv 2504.13162, who take 70 steps at 5e-6 for the second
            mode="lora",
            lora=ConfigDict(dict(rank=16, alpha=16.0, pattern=r"blocks\.(q|k|v|o|gate|up|down)", base="compute")),  # base: as in stage 1
            prompt="a photo of {token} {class_noun}",  # of photos; proxies carry their own
            # Prior preservation as in stage 1, on class images of the untuned student. weight 0: off (ours)
            prior=ConfigDict(
                dict(weight=0.0, num_images=100, prompt="a photo of {class_noun}", guidance_scale=7.5, top_k=1000, top_p=1.0, temperature=1.0)
            ),
            augment="none",
            augment_variants=1,
            class_dropout=0.1,  # LlamaGen's, and what Lumina-mGPT's paper tells
            dropout=0.0,  # LlamaGen pre-trains with 0.1, Lumina-mGPT with 0.05; ours for adapters
            z_loss=1e-5,  # lumina_mgpt: weight of the squared logarithm of the softmax's normaliser (its training script)
            encode_batch_size=8,
            embedding=training(steps=1500, learning_rate=1e-2, weight_decay=0.0),  # Sun et al.; no decay: ours
            training=training(steps=1000, beta2=0.95, weight_decay=0.05),  # LlamaGen's AdamW, our steps
        )
    )


def evaluation() -> ConfigDict:
    return ConfigDict(
        dict(
            arms=("supervisor", "student"),  # also: untuned_supervisor, untuned_student
            images_per_prompt=4,
            num_prompts=25,
            batch_size=8,
            supervisor=ConfigDict(dict(steps=28, guidance_scale=7.0)),
            student=ConfigDict(dict(guidance_scale=7.5, top_k=1000, top_p=1.0, temperature=1.0)),  # LlamaGen t2i
            dino="facebook/dino-vits16",
            clip="openai/clip-vit-base-patch32",
            probes="",  # of the micro-world: a folder with the probe that reads identity and context from its pictures
            direct="",  # the workdir of a finished run with proxy_tuning.source=photos: its student is one more arm, direct_student
        )
    )


def pretraining() -> ConfigDict:
    """The field `pretraining` of the configs that train a micro checkpoint on pictures of the micro-world (configs/micro/)."""
    return ConfigDict(
        dict(
            recipe="vq",  # vq | kl | text_encoders | metrics | probes | sd3 | sdxl | student
            model=ConfigDict(),  # its sizes, in the fields of its official config.json
            # Finished checkpoints. start: what it begins as (of vq and kl an AutoencoderKL, of generators one of their own; "": random
            # weights). vq, vae: of probes, what half of its pictures go through. encoders: of supervisors, the pipeline with their frozen
            # parts. probes: of the generators, what scores them ("": they are not scored)
            parts=ConfigDict(dict(start="", vq="", vae="", encoders="", probes="")),
            publish="",  # a folder to copy the finished weights and the card to, as they lie among the checkpoints
            pictures=50_000,  # of the pre-training set
            pictures_cache="runs/micro/pictures",  # where they are kept: the recipes share them
            resolution=48,
            empty_captions=0.1,  # supervisors: the share of pictures without a caption, for guidance
            shift=1.0,  # sd3: the timestep shift; 3 is SD3's at 1024 px
            unquantised=training(),  # vq: steps before there is a codebook
            training=training(),
        )
    )


def experiment() -> ConfigDict:
    """The field `experiment` of the configs that compare many runs over subjects (configs/micro/dreambench.py)."""
    return ConfigDict(
        dict(
            subjects=(),  # DreamBench's names
            photos="",  # the folder of their folders
            results="{workdir}/results",  # where each run's scores are kept
            supervisor="",  # a name for the supervisor: its results have a folder of that name. Of two supervisors one at least needs one
            document="",  # a folder that gets the tables and figures too
            shared=ConfigDict(),  # changes of the run that tunes the supervisor and draws the proxies
            # (name, changes of the run that uses them) each, in their order; changes: a nested dict of fields. One of the name "oracle" learns
            # from renderings of the true subject in the place of proxies (the micro-world's subjects alone)
            arms=(),
            together=0,  # one more arm: so many subjects in one student
            tokens=(),  # of the others among them
            reference="supervisor",  # the arm that all others' gains are shown on
            main_arm="proxy",  # the arm that the curve over the number of proxies is about; "": none
            main_score="identity_context",  # the one that is tested
            primary=(),  # (arm, the arm it is held against) each: what is claimed, of which each must hold
            contrasts=(),  # further pairs, corrected for their number
            further_tests=0,  # and for so many that another experiment makes on the same subjects
            # The account of weak-to-strong, of the micro-world only: arms tuned on proxies whose errors are held against those of the proxies
            account_arms=(),
            account_pictures=200,  # of each: the first so many proxies
        )
    )


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.stages = ("subject_tuning", "proxy_generation", "proxy_tuning", "evaluation")
    # "{workdir}" in the path of photos or of a checkpoint stands for the run's --workdir.
    config.subject = ConfigDict(
        dict(
            photos="",  # a folder of 1 or more photos
            dreambench="",  # in its place a subject of DreamBench, "FOLDER/SUBJECT": it brings its class noun and live
            class_noun="",  # "dog", "backpack", ...
            token="sks",  # the rare word that comes to mean the subject (diffusers)
            live=False,  # a pet or person: DreamBench's live-subject prompts; else its object prompts
        )
    )
    # The proxy set of whatever stage has the source "proxies", as another run wrote it; "": stage 3 takes this run's own.
    config.proxies = ""  # e.g. runs/other/proxy_generation/dataset
    # More subjects for the same student, tuned together with the run's own: "token=zwx,class_noun=cat,photos=FOLDER" (or proxies=FOLDER) each.
    config.subjects = ()
    # -1: the devices that remain. Several TPU slices are joined by data alone. auto: the sizes are chosen from the number of devices, the
    # batches and the models (sharding.auto_sizes). With auto, or weights split over fsdp, stages 2 and 4, which only draw, have sizes of their
    # own (sharding.drawing_sizes).
    config.mesh = ConfigDict(dict(data=-1, fsdp=1, tensor=1, auto=False))
    # remat: "full" computes layers again in the backward pass, "dots" all but their matrix products, "none" keeps all. unroll: on a CPU,
    # layers are straight code and no loop.
    config.compute = ConfigDict(dict(dtype="bfloat16", remat="full", unroll=False))

    config.supervisor = ConfigDict(
        dict(
            family="sd3",
            checkpoint="stabilityai/stable-diffusion-3-medium-diffusers",  # folder or hub id in the diffusers layout
            resolution=512,  # diffusers: SD3 DreamBooth LoRA
            max_sequence_length=77,  # SD3, FLUX: T5 tokens (diffusers' training scripts)
            t5=True,  # SD3: False puts zeros in place of T5's features
            # A LoRA that has learned the subject elsewhere, by diffusers or kohya's sd-scripts: file or folder, or hub id/file. Stage 1 then trains
            # nothing. "": stage 1 trains
            lora="",
            vae_tile=0,  # pictures are decoded in tiles of so many pixels, for memory (diffusers' tiled decoding; its default is 512); 0: whole
            sampler="euler",  # SDXL: euler (the published scheduler) | ddim
        )
    )
    config.student = ConfigDict(
        dict(
            family="llamagen",
            gpt="peizesun/llamagen_t2i/t2i_XL_stage1_256.pt",  # the decoder: file, or hub id/file; of lumina_mgpt a folder, or hub id
            vq="peizesun/llamagen_t2i/vq_ds16_t2i.pt",  # the image tokenizer
            text_encoder="google/flan-t5-xl",  # llamagen: folder or hub id in the transformers layout
            text_tokenizer="",  # lumina_mgpt: file, or hub id/file
            resolution=256,
        )
    )

    config.subject_tuning = subject_tuning()
    config.proxy_generation = ConfigDict(
        dict(
            num_images=1000,  # the paper, second hand
            prompts=("a {token} {class_noun}",),  # the paper's one template, second hand
            batch_size=8,
            steps=28,  # diffusers' SD3 pipeline
            guidance_scale=7.0,
        )
    )
    config.proxy_tuning = proxy_tuning()
    config.evaluation = evaluation()
    return config.lock()


def choose(table: Mapping[str, Any], name: str, what: str) -> Any:
    """table[name], for the argument of a config. Raises ValueError, saying what there is."""
    if name not in table:
        raise ValueError(f"{what} is {name!r}; there are {', '.join(table)}")
    return table[name]


def sdxl(config: ConfigDict) -> None:
    """Makes SDXL the supervisor: diffusers' settings of its DreamBooth LoRA (script and README) and its pipeline's steps and guidance."""
    config.supervisor.update(family="sdxl", checkpoint="stabilityai/stable-diffusion-xl-base-1.0", resolution=1024)
    config.subject_tuning.lora.pattern = r".*\.(self|cross)_attention\.(q|k|v|o)"
    config.subject_tuning.training.learning_rate = 1e-4
    for drawing in (config.subject_tuning.prior, config.proxy_generation, config.evaluation.supervisor):
        drawing.update(steps=50, guidance_scale=5.0)


# Of each size of SD3.5: the steps and guidance of its model card
SD35 = {"medium": dict(steps=40, guidance_scale=4.5), "large": dict(steps=28, guidance_scale=3.5)}


def sd35(config: ConfigDict, size: str = "medium") -> None:
    """Makes SD3.5 (a key of SD35) the supervisor: SD3's settings of diffusers' DreamBooth LoRA script, and its model card's steps and guidance."""
    drawn = choose(SD35, size, "the size of SD3.5")
    config.supervisor.checkpoint = f"stabilityai/stable-diffusion-3.5-{size}"
    for drawing in (config.subject_tuning.prior, config.proxy_generation, config.evaluation.supervisor):
        drawing.update(drawn)


def flux(config: ConfigDict) -> None:
    """Makes FLUX.1-dev the supervisor: diffusers' settings of its DreamBooth LoRA script and its pipeline's steps and guidance."""
    config.supervisor.update(family="flux", checkpoint="black-forest-labs/FLUX.1-dev", max_sequence_length=512)
    config.subject_tuning.lora.pattern = r"double_blocks\.(img|txt)\.(qkv\.[qkv]|o|mlp\.fc[12])|single_blocks\.qkv\.[qkv]"
    config.subject_tuning.update(weighting="none")
    config.subject_tuning.training.learning_rate = 1e-4
    for drawing in (config.subject_tuning.prior, config.proxy_generation, config.evaluation.supervisor):
        drawing.update(steps=28, guidance_scale=3.5)


def lumina_mgpt(config: ConfigDict) -> None:
    """Makes Lumina-mGPT 7B at 768 px the student: its README's sampling, its training script's weight decay and clipping (all else is ours)."""
    tokenizers = "Alpha-VLLM/Chameleon_7B_mGPT/original_tokenizers"
    config.student.update(family="lumina_mgpt", gpt="Alpha-VLLM/Lumina-mGPT-7B-768", resolution=768)
    config.student.update(vq=f"{tokenizers}/vqgan.ckpt", text_tokenizer=f"{tokenizers}/text_tokenizer.json")
    config.proxy_tuning.training.update(weight_decay=0.1, clip_norm=4.0)
    for drawing in (config.proxy_tuning.prior, config.evaluation.student):
        drawing.update(guidance_scale=4.0, top_k=2000)
