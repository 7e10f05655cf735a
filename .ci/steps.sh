# What .ci/run and .ci/full share. Sourced from the repository root.

export PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1 COLUMNS=120
unset PYTHONPATH BERTFAST_ISA
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=()
left_out=()

# step NAME COMMAND...: run it, say how it went and how long it took, remember a failure and go on.
step() {
  local name=$1 begin=$SECONDS
  shift
  echo "=== $name"
  if "$@"; then
    echo "=== $name: passed, $((SECONDS - begin)) s"
  else
    echo "=== $name: FAILED, $((SECONDS - begin)) s"
    failed+=("$name")
  fi
}

finish() {
  ((${#left_out[@]})) && printf 'NOT RUN: %s\n' "${left_out[@]}"
  if ((${#failed[@]})); then
    printf 'failed: %s\n' "${failed[@]}"
    exit 1
  fi
  echo "all steps that were run passed in $SECONDS s"
  exit 0
}

# fresh_venv FOLDER: make an environment and put it first on PATH.
fresh_venv() {
  "${PYTHON:-python3}" -m venv "$1" || {
    echo "python3 cannot make a virtual environment (Debian: apt-get install python3-venv)"
    return 1
  }
  PATH="$1/bin:$PATH"
  hash -r
}

# readme_command WHAT: run the one line of README.md that installs WHAT, exactly as it stands there.
readme_command() {
  local line
  line=$(grep -F "pip install torch==" README.md | grep -F -- "$1")
  if [[ $(grep -c . <<<"$line") != 1 ]]; then
    echo "README.md has no single line that installs $1: '$line'"
    return 1
  fi
  echo "+ $line"
  bash -c "$line" </dev/null
}

clang_format() {
  find csrc benchmarks tests \( -name '*.h' -o -name '*.c' -o -name '*.cpp' \) -print0 | xargs -0 clang-format --dry-run -Werror
}

# cmake_build FOLDER OPTIONS...: build bertfast._C there, outside the package.
cmake_build() {
  local folder=$1
  shift
  cmake -S . -B "$folder" -GNinja -DPython_EXECUTABLE="$(command -v python)" -Dpybind11_DIR="$(python -m pybind11 --cmakedir)" "$@" &&
    cmake --build "$folder"
}
