#!/usr/bin/env bash
# Writes docs/tpu.md: what the configs for one's own subject need of TPU slices, by preflight; no TPU, weights or network are needed.
# usage: bash launch/preflight.sh [FOLDER]    FOLDER keeps the figures of compiled programs for the next time (runs/preflight)
# PYTHON: an interpreter that has proxy_jax[preflight]
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
folder=${1:-runs/preflight}
document=docs/tpu.md
partial=$document.partial

only="step|sample|generate|draw|decode"
full="--config.proxy_tuning.mode=full"
# rows N: batches of N pictures, for slices of more chips than the default batch can be split over
rows() { echo "--config.subject_tuning.training.batch_size=$1 --config.proxy_tuning.training.batch_size=$1"; }
cases=( # TOPOLOGY, or auto for the smallest slice that fits, and the run's own arguments
    "v5e:2x2 configs/sdxl_llamagen.py"
    "v5e:2x4 configs/sd3_lumina_mgpt.py"
    "v6e:2x2 configs/sd3_lumina_mgpt.py"
    "v5e:4x4 configs/sd3_lumina_mgpt.py $full $(rows 16)"
    "v6e:2x4 configs/sd35_lumina_mgpt.py:large"
    "v5p:2x2x1 configs/flux_lumina_mgpt.py"
    "v5e:4x4 configs/flux_lumina_mgpt.py"
    "v5e:16x16 configs/sd3_lumina_mgpt.py --stages=proxy_tuning $full $(rows 256)"
    "v5p:8x8x8 configs/sd3_lumina_mgpt.py --stages=proxy_tuning $full $(rows 512)"
    "v6e:2x2 configs/sdxl_lumina_mgpt.py"
    "v6e:2x2 configs/sd35_lumina_mgpt.py"
    "auto configs/sdxl_llamagen.py"
    "auto configs/sd3_llamagen.py"
    "auto configs/sd35_llamagen.py"
    "auto configs/flux_llamagen.py"
)

versions=$($PYTHON -c 'from importlib.metadata import version as v; print("jax", v("jax"), "and libtpu", v("libtpu"))')

cat > "$partial" <<END
# TPU slices: what fits, by preflight

Written by \`bash launch/preflight.sh\` with $versions: the training step of each stage, the denoising and decoding loops and the
picture decoders, compiled for slices that nobody had. No time here was measured on a TPU. Without \`--preflight_only\` the frozen encoders are
listed too: each runs by itself. \`--preflight auto\` takes the smallest slice that the programs listed fit on.

- *HBM*: arguments, outputs and temporaries as the compiler counts them, and the other models that lie in memory at the time.
- *FLOPs*: matrix products and convolutions of one run (a step, or a batch of pictures), on all chips, from the program before compilation,
  loops as often as they run. *moved*: operands and results of those products in a chip. *between chips*: what each collective hands a chip.
- *floors*: seconds at the chip's published peaks in bfloat16 (full float32 precision, which the autoencoders run in, counts sixfold) and of its
  memory; *pictures an hour* are at the higher of the two. Traffic between chips is in neither.
- Programs are compiled with XLA's least effort. What fits by less than a seventh may not at full effort: the first table's LlamaGen and VQModel,
  with \`--preflight_full\` added to its command, came out at 1.93, 3.75 and 2.00 GiB (here 2.05, 3.28 and 2.00).
- A program that an earlier stage of the same run has is listed there only. *compiled in*: when its figures were made, whatever else ran beside.
END
status=0
for case in "${cases[@]}"; do
    read -r topology config flags <<< "$case"
    command="python -m proxy_jax.main --config $config --preflight $topology --preflight_only '$only' --config.mesh.auto=True${flags:+ $flags}"
    # shellcheck disable=SC2016  # Markdown's fences
    printf '\n```\n%s\n```\n\n' "$command" >> "$partial"
    # shellcheck disable=SC2086  # flags are words
    $PYTHON -m proxy_jax.main --config "$config" --preflight "$topology" --preflight_only "$only" --config.mesh.auto=True --workdir "$folder" \
        $flags >> "$partial" || status=1
done
mv "$partial" "$document"
exit $status
