#!/usr/bin/env bash
# Tests and measures on a GPU, in under 9 minutes:
#   benchmarks/gpu.sh [build] [test] [check] [time] [trace] [decode] [fp8] [compiled] [tune]
# Without arguments it runs all parts in this order; a part that is run alone has its own time limit. It needs no network, but a GPU, a C++ compiler, and
# python3 with torch (CUDA), triton, transformers, pybind11, cmake, ninja, setuptools and pytest.
#
# DRY=1 runs the same commands with a tiny model on the CPU; its times mean nothing.
#
# RESULTS (default: benchmarks/results/gpu) gets JSON, Markdown and a log of each part, and the traces. If OUT names a folder, it gets two files, which are
# renewed after each part: summary.md, and gpu.tar.gz with all results.
#
# Exit status: 0; 1 if a part failed; 3 if none failed but something was left out for lack of time.
set -uo pipefail
cd "$(dirname "$0")/.."
results=${RESULTS:-benchmarks/results/gpu}
export PYTHONUNBUFFERED=1 TRITON_PRINT_AUTOTUNING=0 HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 TOKENIZERS_PARALLELISM=false
unset TRITON_INTERPRET
python=${PYTHON:-python3}
failed=() incomplete=() lines=() dry=()
patience=1
if [[ -n ${DRY:-} ]]; then # the time limits are for a GPU
  patience=10 dry=(--device cpu --model tiny --dtype float32 --rounds 1 --turn 0 --inputs 2) lines+=("a dry run on the CPU")
fi

order=(build test check time trace decode fp8 compiled tune)
budget=${BUDGET:-$((530 * patience))} # seconds for everything

report() {
  lines+=("$1")
  echo "=== $1"
  [[ -n ${OUT:-} ]] || return 0
  mkdir -p "$OUT"
  summary >"$OUT/summary.md"
  tar czf "$OUT/gpu.tar.gz.part" -C "$results" . && mv "$OUT/gpu.tar.gz.part" "$OUT/gpu.tar.gz"
}

summary() {
  printf -- '- %s\n' "${lines[@]}"
  for table in "$results"/*.md "$results"/compiled/*.md; do
    [[ -s $table ]] && printf '\n%s\n\n' "## $(basename "$(dirname "$table")")/$(basename "$table" .md)" && cat "$table"
  done
}

# part NAME SECONDS COMMAND...: runs the command under a time limit, keeps its output, notes a failure. A command of `benchmarks gpu` also gets "--seconds N":
# it begins nothing new after N seconds and exits with 3 if that left something out. Returns 1 if there are no results.
part() {
  local name=$1 limit=$(($2 * patience)) begin=$SECONDS rc
  shift 2
  ((limit > budget - SECONDS)) && limit=$((budget - SECONDS))
  if ((limit < 20)); then
    incomplete+=("$name")
    report "$name: NOT RUN, the $budget s are used up; run it alone: benchmarks/gpu.sh $name"
    return 1
  fi
  [[ " $* " == *" benchmarks gpu "* ]] && set -- "$@" "${dry[@]}" --seconds $((limit * 3 / 4))
  echo "=== $name"
  timeout "$limit" "$@" 2>&1 | tee "$results/$name.log"
  rc=${PIPESTATUS[0]}
  if ((rc == 0)); then
    report "$name: passed, $((SECONDS - begin)) s"
  elif ((rc == 3)); then
    incomplete+=("$name")
    report "$name: passed but incomplete, $((SECONDS - begin)) s; its log says what was left out"
  else
    failed+=("$name")
    report "$name: FAILED (exit $rc$( ((rc == 124)) && echo ", stopped at $limit s")), $((SECONDS - begin)) s"
    return 1
  fi
}

build() {
  # --no-deps: the machine has no network.
  "$python" -m pip install --no-index --no-deps --no-build-isolation --quiet -e . &&
    "$python" -c 'import bertfast.kernels, bertfast._C, torch; print("built; ", torch.cuda.get_device_name())'
}

# The kernels' tests on the GPU, without the interpreter; a skipped test is a failure.
real_kernels() {
  local workers=()
  "$python" -c 'import xdist' 2>/dev/null && workers=(-n 8)
  "$python" -m pytest -q -p no:cacheprovider "${workers[@]}" --ignore tests/triton/test_interpreter.py --ignore tests/triton/test_aot.py \
    tests/triton | tee "$results/pytest.txt"
  ((PIPESTATUS[0] == 0)) && grep -q '[1-9][0-9]* passed' "$results/pytest.txt" && ! grep -q skipped "$results/pytest.txt"
}

run_part() {
  case $1 in
    build) part build 120 bash -c "$(declare -f build); python=$python; build" ;;
    test) part test 180 bash -c "$(declare -f real_kernels); python=$python results=$results; real_kernels" ;;
    check) part check 80 "$python" -m benchmarks gpu check --out "$results" --dtype float32 float16 bfloat16 ;;
    time)
      part time 100 "$python" -m benchmarks gpu time --out "$results" \
        --subject bertfast bertfast-eager bertfast-invariant transformers-eager transformers-cuda-graph varlen &&
        part roofline 20 "$python" -m benchmarks roofline --results "$results/time.json"
      ;;
    trace) part trace 40 "$python" -m benchmarks gpu trace --out "$results" --shape 1x128 32x128 ;;
    decode) # most of the time is for compiling transformers' step
      part decode 100 "$python" -m benchmarks gpu decode --out "$results" --batch 1 32 --rounds 3 &&
        part roofline-decode 20 "$python" -m benchmarks roofline --results "$results/decode.json"
      ;;
    fp8)
      part fp8 60 "$python" -m benchmarks gpu fp8 --out "$results" --shape 1x128 32x128 128x128 padded32 --rounds 5 &&
        part roofline-fp8 20 "$python" -m benchmarks roofline --results "$results/fp8.json"
      ;;
    compiled) # minutes of autotuning, so fewer shapes
      part compiled 300 "$python" -m benchmarks gpu time --out "$results/compiled" \
        --subject bertfast transformers-compiled varlen-compiled --shape padded32 1x128 32x128 --rounds 5
      ;;
    tune) part tune 400 "$python" -m benchmarks gpu tune --out "$results" ;;
  esac
}

for name in "$@"; do
  if [[ " ${order[*]} " != *" $name "* ]]; then
    echo "no part $name: ${order[*]}" >&2
    exit 2
  fi
done
mkdir -p "$results"
for name in "${@:-${order[@]}}"; do run_part "$name"; done

echo
summary
((${#incomplete[@]})) && echo "incomplete: ${incomplete[*]}"
((${#failed[@]})) && echo "failed: ${failed[*]}" && exit 1
((${#incomplete[@]})) && exit 3
echo "all parts passed in $SECONDS s; results in $results${OUT:+ and $OUT}"
