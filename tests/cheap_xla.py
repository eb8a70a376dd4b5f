"""What makes XLA compile for CPUs in less time: its older emitters, and narrow vectors."""

import os
import platform

import jax

FLAGS = "--xla_cpu_use_fusion_emitters=false" + " --xla_cpu_max_isa=AVX" * (platform.machine() in ("x86_64", "AMD64"))


def use_here() -> None:
    """XLA reads XLA_FLAGS once, when it first compiles. libtpu reads them too, and ends the process over flags that are not its own."""
    with_them = os.environ.get("XLA_FLAGS")
    os.environ["XLA_FLAGS"] = f"{with_them or ''} {FLAGS}"
    jax.block_until_ready(jax.jit(lambda: 0)())
    if with_them is None:
        del os.environ["XLA_FLAGS"]
    else:
        os.environ["XLA_FLAGS"] = with_them
