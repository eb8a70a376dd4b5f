"""Autoregressive students: one file a family, each with a `make`; a new family adds its line here."""

from proxy_jax.students import llamagen

FAMILIES = {"llamagen": llamagen.make}
