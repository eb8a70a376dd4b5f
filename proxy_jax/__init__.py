"""Proxy-Tuning of autoregressive image models in JAX, native to TPUs."""

import os

# transformers serves for tokenizers only: that its own models would need torch is no news to the user.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
