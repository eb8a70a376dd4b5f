#!/usr/bin/env bash
# detached.sh COMMAND...: starts it in a session of its own, which a lost connection leaves alone, or finds it running; shows its output from the
# beginning until it ends. Exits with 0 or 75 (preempted) if the command did, else with 3, which no failure of ssh or gcloud shares.
set -euo pipefail
log=$HOME/proxy_jax.log pid=$HOME/proxy_jax.pid result=$HOME/proxy_jax.result command=$HOME/proxy_jax.command
if [ -f "$pid" ] && kill -0 "$(cat "$pid")" 2>/dev/null; then
  if [ "$*" != "$(cat "$command")" ]; then
    echo "another command still runs here: $(cat "$command")" >&2
    exit 3
  fi
else
  rm -f "$result"
  echo "$*" >"$command"
  : >"$log" # there before tail looks for it
  # shellcheck disable=SC2016  # the inner shell expands it
  setsid bash -c 'status=0; "${@:2}" || status=$?; echo "$status" >"$1"' detached "$result" "$@" >>"$log" 2>&1 </dev/null &
  echo $! >"$pid"
fi
tail --pid="$(cat "$pid")" --lines=+1 --follow "$log"
case $(cat "$result" 2>/dev/null) in
  0) ;;
  75) exit 75 ;;
  *) exit 3 ;;
esac
