#!/usr/bin/env bash
# A TPU slice of a GKE cluster that xpk has made, by xpk and kubectl, from submission to deletion:
#   bash launch/gke.sh --type v6e-4 --cluster my-cluster --zone us-east5-a -- --config configs/sdxl_llamagen.py --workdir /data/my_dog ...
# --workdir must lie in gs:// or on storage attached to the cluster: a pod's own disk is lost with it.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.sh
parse "type= cluster= zone= name= project= spot reservation= keep delete" "$@"
needs type cluster zone
accelerator "$type"
case $accelerator_type in v5litepod-8 | v6e-8) hosts=2 ;; esac # xpk makes them of machines with four chips
case $workdir in /* | gs://*) ;; *) die "--workdir $workdir would be lost with its pod: name one in gs://, or a folder of storage attached to the cluster" ;; esac
needs_answer
notes
where=(--cluster="$cluster" --zone="$zone")
[ -z "$project" ] || where+=(--project="$project")
pods=--selector=xpk.google.com/workload=$name

create() {
  # Restarts after preemptions are Kubernetes': the program resumes.
  local command=(xpk workload create --workload="$name" "${where[@]}" --tpu-type="$accelerator_type" --num-slices=1 --max-restarts=50
    --base-docker-image=python:3.12 --script-dir=. --command="bash launch/worker.sh $(extras tpu) $(quoted "${program[@]}")")
  [ -z "$spot" ] || command+=(--spot)
  [ -z "$reservation" ] || command+=(--reservation="$reservation")
  run "${command[@]}"
}

# shellcheck disable=SC2329  # called by finish
remove() {
  run xpk workload delete --workload="$name" "${where[@]}" --force
}

# Each pod's log as soon as there is one, those of restarted pods too.
show_logs() {
  while :; do
    until run kubectl wait pod "$pods" --for=condition=Ready --timeout=60s; do pause; done
    run kubectl logs "$pods" --follow --prefix --tail=-1 --max-log-requests="$hosts" || pause # a pod that is lost ends its log with a failure
    [ -z "$dry_run" ] || break
  done
}

finish_on_exit
make
if [ -n "$dry_run" ]; then
  show_logs
else
  set -m # a process group of its own, which finish ends
  show_logs &
  logs=$!
  set +m
fi
run xpk workload list "${where[@]}" --wait-for-job-completion="$name"
