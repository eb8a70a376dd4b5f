"""Autoregressive students: one file a family, each with a `make`; a new family adds its line here."""

from proxy_jax.students import llamagen, lumina_mgpt
from proxy_jax.students.caption_cleaning import clean_caption

FAMILIES = {"llamagen": llamagen.make, "lumina_mgpt": lumina_mgpt.make}
# What is left of a prompt when the family's text encoder gets it, where that is not all of it.
READS = {"llamagen": clean_caption}
