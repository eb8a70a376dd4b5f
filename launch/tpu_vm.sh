#!/usr/bin/env bash
# A TPU slice by a queued resource of the Cloud TPU API (v4, v5e, v5p, v6e), all its workers, from creation to deletion:
#   bash launch/tpu_vm.sh --type v5e-8 --zone us-west4-a --spot -- --config configs/sdxl_llamagen.py --workdir runs/my_dog ...
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.sh
parse "type= zone= name= project= spot reserved keep delete" "$@"
needs type zone
accelerator "$type"
where=(--zone="$zone")
[ -z "$project" ] || where+=(--project="$project")
service=(gcloud compute tpus tpu-vm)
all=("${where[@]}" --worker=all) first=("${where[@]}" --worker=0)
ready=ACTIVE waiting="ACCEPTED CREATING WAITING_FOR_RESOURCES PROVISIONING"

create() {
  local command=(gcloud compute tpus queued-resources create "$name" --node-id="$name" "${where[@]}"
    --accelerator-type="$accelerator_type" --runtime-version="$runtime_version")
  [ -z "$spot" ] || command+=(--spot)
  [ -z "$reserved" ] || command+=(--reserved)
  run "${command[@]}"
}

state() {
  run gcloud compute tpus queued-resources describe "$name" "${where[@]}" --format='value(state.state)'
}

remove() {
  run gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
}

launch tpu
