"""What makes XLA compile for CPUs in less time, in this process and in those that tests start: its older emitters, and narrow vectors."""

import os
import platform
from pathlib import Path

import jax

CACHE = Path(__file__).resolve().parent.parent / ".jax_cache"
# XLA ends the process, without a word, over a flag that it does not know; since jax 0.11 it has the newer emitters alone.
OLDER_EMITTERS = ["--xla_cpu_use_fusion_emitters=false"] if jax.__version_info__ < (0, 11) else []
FLAGS = " ".join([*OLDER_EMITTERS, *(["--xla_cpu_max_isa=AVX"] if platform.machine() in ("x86_64", "AMD64") else [])])


def use_here() -> None:
    """XLA reads XLA_FLAGS once, when it first compiles. libtpu reads them too, and ends the process over flags that are not its own."""
    with_them = os.environ.get("XLA_FLAGS")
    os.environ["XLA_FLAGS"] = f"{with_them or ''} {FLAGS}"
    jax.block_until_ready(jax.jit(lambda: 0)())
    if with_them is None:
        del os.environ["XLA_FLAGS"]
    else:
        os.environ["XLA_FLAGS"] = with_them
    jax.config.update("jax_compilation_cache_dir", str(CACHE))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def environment(devices: int = 1) -> dict[str, str]:
    """The variables of a process that has so many virtual CPU devices; it must not compile for TPUs (use_here)."""
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(CACHE),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
        "XLA_FLAGS": f"{FLAGS} --xla_force_host_platform_device_count={devices}",
    }
