#!/usr/bin/env bash
# Everything that only a GPU can tell, in under 9 minutes:
#   benchmarks/gpu.sh [build] [test] [check] [time] [decode] [fp8] [compiled] [tune] [trace]
# Without arguments all parts, in this order. Needs no network: python3 with torch (CUDA), triton, transformers, pybind11, cmake, ninja,
# setuptools and pytest, a C++ compiler, and a GPU. Results go to $OUT, by default benchmarks/results/gpu. Exits non-zero if a part failed.
set -uo pipefail
cd "$(dirname "$0")/.."
export OUT="${OUT:-benchmarks/results/gpu}" PYTHONUNBUFFERED=1 TRITON_PRINT_AUTOTUNING=0 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
unset TRITON_INTERPRET
python=${PYTHON:-python3}
mkdir -p "$OUT"
failed=()

budget=530 # seconds for everything

# part NAME SECONDS COMMAND...: run it under a limit, keep its output, remember a failure and go on.
part() {
  local name=$1 limit=$2 begin=$SECONDS
  shift 2
  ((limit > budget - SECONDS)) && limit=$((budget - SECONDS))
  if ((limit < 10)); then
    failed+=("$name")
    echo "=== $name: NOT RUN, the $budget s are used up; run it alone: benchmarks/gpu.sh $name"
    return
  fi
  echo "=== $name"
  timeout "$limit" "$@" 2>&1 | tee "$OUT/$name.log"
  local rc=${PIPESTATUS[0]}
  if ((rc)); then
    failed+=("$name")
    echo "=== $name: FAILED (exit $rc$( ((rc == 124)) && echo ", stopped at $limit s")), $((SECONDS - begin)) s"
  else
    echo "=== $name: passed, $((SECONDS - begin)) s"
  fi
}

build() {
  # --no-deps: the machine has what it needs, and nothing could be fetched.
  "$python" -m pip install --no-index --no-deps --no-build-isolation --quiet -e . &&
    "$python" -c 'import bertfast.kernels, bertfast._C, torch; print("built; ", torch.cuda.get_device_name())'
}

# The kernels' own tests, as a GPU runs them: no interpreter, nothing skipped.
real_kernels() {
  local workers=()
  "$python" -c 'import xdist' 2>/dev/null && workers=(-n 8)
  "$python" -m pytest -q -p no:cacheprovider "${workers[@]}" --ignore tests/fused/test_interpreter.py --ignore tests/fused/test_aot.py tests/fused |
    tee "$OUT/pytest.txt"
  ((PIPESTATUS[0] == 0)) && ! grep -q skipped "$OUT/pytest.txt"
}

run_part() {
  case $1 in
    build) part build 150 bash -c "$(declare -f build); python=$python; build" ;;
    test) part test 180 bash -c "$(declare -f real_kernels); python=$python; real_kernels" ;;
    check) part check 60 "$python" -m benchmarks.gpu check --out "$OUT" --dtype float32 float16 bfloat16 ;;
    time)
      part time 90 "$python" -m benchmarks.gpu time --out "$OUT" \
        --subject bertfast launches invariant eager sdpa sdpa-graph varlen
      part roofline 20 "$python" -m benchmarks.roofline --results "$OUT/time.json"
      ;;
    decode) # transformers' compiled step takes most of it
      part decode 100 "$python" -m benchmarks.gpu decode --out "$OUT" --batch 1 32 --rounds 3
      part roofline-decode 20 "$python" -m benchmarks.roofline --results "$OUT/decode.json"
      ;;
    fp8)
      part fp8 50 "$python" -m benchmarks.gpu fp8 --out "$OUT" --shape 1x128 32x128 128x128 padded32 --rounds 5
      part roofline-fp8 20 "$python" -m benchmarks.roofline --results "$OUT/fp8.json"
      ;;
    compiled) # minutes of autotuning: fewer shapes, and beside bertfast in the same run
      part compiled 170 "$python" -m benchmarks.gpu time --out "$OUT/compiled" \
        --subject bertfast sdpa-compiled varlen-compiled --shape 1x128 padded32 32x128 --rounds 5
      ;;
    tune) part tune 80 "$python" -m benchmarks.gpu tune --out "$OUT" ;;
    trace) part trace 40 "$python" -m benchmarks.gpu trace --out "$OUT" --shape 1x128 32x128 ;;
    *)
      echo "no part $1: build test check time decode fp8 compiled tune trace" >&2
      exit 2
      ;;
  esac
}

for name in "${@:-build test check time decode fp8 compiled tune trace}"; do
  for one in $name; do run_part "$one"; done
done
if ((${#failed[@]})); then
  echo "failed: ${failed[*]}"
  exit 1
fi
echo "all parts passed in $SECONDS s; results in $OUT"
