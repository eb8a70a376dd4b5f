"""Diffusion supervisors: one file a family, each with a `make`; a new family adds its line here."""

from proxy_jax.supervisors import flux, sd3, sdxl

FAMILIES = {"sd3": sd3.make, "sdxl": sdxl.make, "flux": flux.make}
