"""Autoregressive students: one file a family, each with a `make`; a new family adds its line here."""

from proxy_jax.students import llamagen
from proxy_jax.students.caption_cleaning import clean_caption

FAMILIES = {"llamagen": llamagen.make}
# What is left of a prompt when the family's text encoder gets it.
READS = {"llamagen": clean_caption}
