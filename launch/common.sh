# shellcheck shell=bash disable=SC2034,SC2154  # the launchers read and set variables of this file
# Sourced by the launchers beside it: their options, --dry-run, the table of TPUs, and a run on rented machines from creation to deletion.
# A launcher's own options stand before "--", the program's after it.

exec 3>&1                                 # commands are shown here, also those whose output is captured
POLL_SECONDS=${POLL_SECONDS:-30}          # between two looks at a machine that is being made or has lost its connection
PROGRAM_FAILED=3                          # what detached.sh exits with when the program itself failed: no reason to run it again
PREEMPTED=75                              # and when it was told to stop: run it again
LOST_CONNECTIONS=20                       # to one machine, before giving up

type='' zone='' name=proxy-jax project='' cluster='' reservation='' reserved='' spot='' keep='' delete='' dry_run='' workdir=''
program=()

die() {
  echo "$(basename "$0"): $1" >&2
  exit 1
}

# usage OPTIONS: what the launcher says of itself at its head, and its options.
usage() {
  sed -n -e '/^set /q' -e 's/^# //p' "launch/$(basename "$0")"
  local names
  read -ra names <<<"${1//=/=VALUE}"
  echo "options:$(printf ' --%s' "${names[@]}"); launch/README.md explains them"
}

# parse OPTIONS ARGUMENT...: sets the variables above. OPTIONS are those that this launcher takes, an "=" behind those with a value.
parse() {
  local options=" $1 dry-run " option value
  shift
  while (($#)) && [ "$1" != -- ]; do
    option=${1#--} value=yes
    case $option in *=*) value=${option#*=} option=${option%%=*} ;; esac
    if [ "$1" = --help ]; then
      usage "${options# }"
      exit 0
    fi
    case $options in
      *" $option= "*) case $1 in *=*) ;; *) (($# > 1)) || die "--$option needs a value"; value=$2; shift ;; esac ;;
      *" $option "*) case $1 in *=*) die "--$option takes no value" ;; esac ;;
      *) die "unknown option $1; the program's stand after --; see launch/README.md" ;;
    esac
    printf -v "${option//-/_}" %s "$value"
    shift
  done
  (($# > 1)) || die "nothing to run: -- --config FILE --workdir FOLDER ... is missing"
  shift
  program=("$@")
  while (($#)); do
    case $1 in --workdir=*) workdir=${1#*=} ;; --workdir) workdir=${2:-} ;; esac
    shift
  done
  [ -n "$workdir" ] || die "--workdir is missing among the program's arguments"
  [ -z "$keep" ] || [ -z "$delete" ] || die "--keep and --delete exclude each other"
  [ -z "$spot" ] || [ -z "$reservation$reserved" ] || die "spot machines do not come from a reservation"
}

# needs OPTION...: refuses to start without them.
needs() {
  local option
  for option in "$@"; do
    [ -n "${!option}" ] || die "--$option is missing"
  done
}

# needs_answer: whether the rented thing is deleted at the end must be known, or there must be somebody to ask.
needs_answer() {
  [ -n "$keep$delete$dry_run" ] || [ -t 0 ] || die "nobody to ask at the end: give --delete or --keep"
}

# run COMMAND...: shows it, ready to be pasted; runs it unless --dry-run.
run() {
  { printf '+'; printf ' %q' "$@"; echo; } >&3
  [ -n "$dry_run" ] || "$@"
}

pause() {
  [ -n "$dry_run" ] || sleep "$POLL_SECONDS"
}

# quoted ARGUMENT...: one string that a shell reads back as these arguments.
quoted() {
  local line
  printf -v line ' %q' "$@"
  echo "${line# }"
}

# accelerator TYPE: sets accelerator_type, runtime_version (Cloud TPU API), machine_type (Compute Engine, empty where it has none) and hosts.
# The number in a name counts TensorCores in v4 and v5p, two a chip, and chips in v5e and v6e. Sources: launch/README.md.
accelerator() {
  local size=${1##*-} chips
  accelerator_type=$1 machine_type='' hosts=1
  case $1 in
    v4-* | v5p-*)
      case $size in *[!0-9]* | '' | 0*) die "no TPU is called $1" ;; esac
      ((size % 8 == 0)) || die "$1: slices of ${1%-*} have a multiple of 8 TensorCores"
      hosts=$((size / 8))
      ;;
    v5e-* | v5litepod-* | v6e-*)
      case $size in 1 | 4 | 8 | 16 | 32 | 64 | 128 | 256) ;; *) die "$1: slices of ${1%-*} have 1, 4, 8, 16, 32, 64, 128 or 256 chips" ;; esac
      chips=$size
      ((chips <= 8)) || hosts=$((chips / 4))
      ;;
    *) die "no TPU is called $1; try v4-8, v5e-8, v5p-8 or v6e-8" ;;
  esac
  case $1 in
    v4-*) runtime_version=tpu-ubuntu2204-base ;;
    v5p-*) runtime_version=v2-alpha-tpuv5 machine_type=ct5p-hightpu-4t ;;
    v6e-*) runtime_version=v2-alpha-tpuv6e machine_type=ct6e-standard-${chips}t ;;
    *) runtime_version=v2-alpha-tpuv5-lite accelerator_type=v5litepod-$size ;;
  esac
}

# What could go wrong, said before money is spent.
notes() {
  ((hosts == 1)) || ! is_local_workdir || echo "note: $type has $hosts hosts here: the workdir must be in gs:// or a folder that all of them mount" >&2
}

# extras EXTRA: this extra of setup.py, and that of workdirs in gs:// where there is one.
extras() {
  if is_local_workdir; then echo "$1"; else echo "$1,gs"; fi
}

# --- On rented machines. The launcher sets: where (zone, project), service (what has ssh and scp), all and first (which workers of it),
# ready and waiting (states); and defines create, state and remove.

on_workers() {
  run "${service[@]}" ssh "$name" "${all[@]}" --quiet --command="$1" </dev/null
}

to_workers() {
  run "${service[@]}" scp "$1" "$name:$2" "${all[@]}" --quiet
}

# The workdir as the worker sees it; the program runs in the folder proxy_jax of the home.
remote_workdir() {
  case $workdir in /*) echo "$workdir" ;; *) echo "proxy_jax/$workdir" ;; esac
}

is_local_workdir() {
  case $workdir in gs://*) return 1 ;; esac
}

# make: create, after which there is something to delete, also if it was interrupted.
make() {
  standing=yes
  create || {
    standing=''
    die "$name was not created"
  }
}

# prepare: a machine that is ready, with the code and the user's token for gated checkpoints on every worker.
prepare() {
  local current archive folders token
  current=$(state || true)
  case " $ready $waiting " in
    *" ${current:-none} "*) echo "$name is there already ($current)" ;;
    *)
      [ -z "$current" ] || remove
      make
      ;;
  esac
  standing=yes
  while [ "$current" != "$ready" ] && [ -z "$dry_run" ]; do
    current=$(state)
    case " $ready $waiting " in *" ${current:-none} "*) ;; *) die "$name could not be made: it is ${current:-gone}" ;; esac
    [ "$current" = "$ready" ] || pause
  done

  archive=${TMPDIR:-/tmp}/$name.tar.gz
  run tar -czf "$archive" --exclude=./.git --exclude='./.venv*' --exclude=./runs --exclude=./.jax_cache --exclude=__pycache__ .
  folders=(proxy_jax .cache/huggingface)
  ! is_local_workdir || folders+=("$(remote_workdir)")
  for attempt in {1..10}; do # a new machine takes a while to answer
    ! on_workers "mkdir -p $(quoted "${folders[@]}")" || break
    ((attempt < 10)) || die "$name does not answer"
    pause
  done
  to_workers "$archive" proxy_jax.tar.gz
  token=${HF_TOKEN_PATH:-${HF_HOME:-$HOME/.cache/huggingface}/token}
  [ ! -f "$token" ] || to_workers "$token" .cache/huggingface/token
  on_workers "tar -xzf proxy_jax.tar.gz -C proxy_jax"
}

# finish_on_exit: finish runs when the launcher ends. gcloud answers Ctrl-C by exiting, which bash alone would take for an ordinary failure.
finish_on_exit() {
  trap finish EXIT
  trap 'exit 130' INT TERM
}

# However the end came: a local workdir is brought here; then the machines go, if so asked.
finish() {
  local status=$? answer=y
  trap - EXIT INT TERM
  set +e
  [ -z "${logs:-}" ] || kill -- "-$logs" 2>/dev/null
  [ -n "${standing:-}" ] || exit "$status"
  if [ -n "${followed:-}" ] && is_local_workdir && { [ -n "$dry_run" ] || [ "$(state)" = "$ready" ]; }; then
    run mkdir -p "$(dirname "$workdir")"
    if ! run "${service[@]}" scp --recurse "$name:$(remote_workdir)" "$(dirname "$workdir")" "${first[@]}" --quiet; then
      echo "$name is kept: its $workdir could not be copied here" >&2
      exit 1
    fi
  fi
  if [ -z "$keep$delete$dry_run" ]; then
    read -r -p "Delete $name? It costs money while it stands. [Y/n] " answer || answer=n
    case $answer in [Nn]*) keep=yes ;; esac
  fi
  if [ -n "$keep" ]; then
    echo "$name is kept and costs money; the same command with --delete goes on with it and deletes it in the end" >&2
  else
    remove || status=$?
  fi
  exit "$status"
}

# launch EXTRA: the program with this extra of setup.py, on machines made for it, again after each preemption, until it ends.
launch() {
  local command status why
  needs_answer
  notes
  command="bash proxy_jax/launch/detached.sh bash proxy_jax/launch/worker.sh $(extras "$1") $(quoted "${program[@]}")"
  finish_on_exit
  while :; do
    prepare
    followed=yes
    for ((lost = 0; lost < LOST_CONNECTIONS; lost++)); do
      status=0
      on_workers "$command" || status=$?
      case $status in
        0) return ;;
        "$PROGRAM_FAILED") die "the program failed; its last words are above" ;;
        "$PREEMPTED") why="preempted; the program is run again" ;;
        *) why="lost the connection; the program goes on" ;;
      esac
      [ "$(state || true)" = "$ready" ] || continue 2
      echo "$why" >&2
      pause
    done
    die "lost the connection $lost times"
  done
}
