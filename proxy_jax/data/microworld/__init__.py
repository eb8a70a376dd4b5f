"""The micro-world: pictures of subjects in DreamBench's contexts, drawn by a program that knows their truth.

python -m proxy_jax.data.microworld --sheet out.png
"""
