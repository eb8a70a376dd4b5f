# Sourced by the scripts beside it: makes a virtual environment with this project in it.

find_python() {
  local candidate
  for candidate in ${PYTHON:-} python3.13 python3.12 python3.11 python3 python; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "Python 3.11 to 3.13 is needed; set PYTHON to one" >&2
  return 1
}

# environment FOLDER REQUIREMENT: creates FOLDER if it is not there and installs REQUIREMENT ("." or ".[test]") into it, editable.
environment() {
  local folder=$1 requirement=$2 python
  if [ ! -x "$folder/bin/python" ]; then
    python=$(find_python)
    echo "making $folder with $("$python" --version) and installing proxy_jax: a few minutes the first time"
    "$python" -m venv "$folder"
  fi
  "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --editable "$requirement"
}
