#!/usr/bin/env bash
# A TPU machine of Compute Engine (v5p-8, v6e-1, v6e-4, v6e-8), from creation to deletion:
#   bash launch/tpu_compute_engine.sh --type v6e-8 --zone us-east5-a --spot -- --config configs/sdxl_llamagen.py --workdir runs/my_dog ...
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.sh
parse "type= zone= name= project= spot reservation= keep delete" "$@"
needs type zone
accelerator "$type"
[ -n "$machine_type" ] || die "Compute Engine does not rent $type; launch/tpu_vm.sh does"
((hosts == 1)) || die "$type has $hosts hosts, which Compute Engine rents as an instance group; take launch/tpu_vm.sh or launch/gke.sh"
where=(--zone="$zone")
[ -z "$project" ] || where+=(--project="$project")
service=(gcloud compute)
all=("${where[@]}") first=("${where[@]}")
ready=RUNNING waiting="PENDING PROVISIONING STAGING REPAIRING"

create() {
  local command=(gcloud compute instances create "$name" "${where[@]}" --machine-type="$machine_type"
    --image-project=ubuntu-os-accelerator-images --image-family=ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e
    --boot-disk-size=200GB --scopes=cloud-platform --maintenance-policy=TERMINATE)
  [ -z "$spot" ] || command+=(--provisioning-model=SPOT --instance-termination-action=STOP)
  [ -z "$reservation" ] || command+=(--reservation-affinity=specific --reservation="$reservation")
  run "${command[@]}"
}

state() {
  run gcloud compute instances describe "$name" "${where[@]}" --format='value(status)'
}

remove() {
  run gcloud compute instances delete "$name" "${where[@]}" --quiet
}

launch tpu
