#!/usr/bin/env bash
# The whole check of the GPU engine, on a machine that has a GPU and no network:
#
#     perf/gpu_check.sh OUT [longest run of one size, seconds [STEP...]]
#
# Takes what the machine's python3 has (numpy, onnxruntime, onnx, pytest, cuda-bindings; PyTorch if there is one to
# compare with; neither TensorRT nor a git checkout) and runs on the tree as it is:
#
#     machine, doctor         what is there
#     ptxas                   the compiler's report on registers and spills
#     tests                   those marked gpu
#     memcheck, racecheck     compute-sanitizer over a whole deblending
#     gpu                     perf.gpu.check: parity, bits, timings; OUT/gpu.json and OUT/gpu.md
#     profile                 Nsight Compute's figures of some launches
#
# or only the STEPs named; all take some 15 minutes. Every step runs whatever became of the others; OUT/log.txt has all
# that they said, OUT/summary.txt what failed, and the exit status is their number.
cd "$(dirname "$0")/.."
out=$(mkdir -p "${1:?usage: perf/gpu_check.sh OUT [SECONDS]}" && cd "$1" && pwd)
seconds=${2:-60}
wanted="${*:3}"
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0
export PYTHONUNBUFFERED=1 DEBLENDRT_CACHE="$work/cache" MPLBACKEND=agg PATH="$PATH:/usr/local/cuda/bin"

step() { # name, limit in seconds, command...
    local name=$1 limit=$2 start=$SECONDS status=0 before
    shift 2
    [[ -z "$wanted" || " $wanted " == *" $name "* ]] || return 0
    echo "== $name" >>"$out/log.txt"
    before=$(wc -l <"$out/log.txt")
    timeout "$limit" "$@" >>"$out/log.txt" 2>&1 || status=$?
    if [ "$status" = 0 ]; then
        echo "ok      $name ($((SECONDS - start)) s)" | tee -a "$out/summary.txt"
    else
        echo "FAILED  $name ($((SECONDS - start)) s), status $status" | tee -a "$out/summary.txt"
        tail -n "+$((before + 1))" "$out/log.txt" | tail -n 15 | sed 's/^/        /'
        failed=$((failed + 1))
    fi
}

: >"$out/summary.txt"
: >"$out/log.txt"
mkdir -p "$work/site"
ln -sfn "$PWD" "$work/site/deblendrt"  # as the package installs, without what a build leaves in the tree
export PYTHONPATH="$work/site:$PWD"

one='said=$(nvcc -arch=sm_90 -std=c++17 -Xptxas -v -cubin -Icuda/math "$1" -o "$0/$(basename "$1").cubin" 2>&1); status=$?
     printf "%s\n%s\n" "$1" "$said"; exit $status'

step machine 60 nvidia-smi
step doctor 120 "$python" -m deblendrt.engine.adapters.cli doctor
step ptxas 300 bash -c 'ls cuda/kernels/*/*.cu | xargs -P "$(nproc)" -I{} bash -c "$0" "$1" {}' "$one" "$work"
step tests 300 "$python" -m pytest -q -m gpu -p no:cacheprovider tests/cuda tests/engine/compute/test_cuda_engine.py
for tool in memcheck racecheck; do
    step "$tool" 200 compute-sanitizer --tool "$tool" --error-exitcode 9 "$python" -m perf.gpu.smoke
done
step gpu 580 "$python" -m perf.gpu.check --out "$out" --seconds "$seconds"
step profile 200 ncu --clock-control none --set basic --launch-skip 200 --launch-count 60 \
    "$python" -m perf.gpu.smoke --scenes 100
cat "$out/gpu.md" 2>/dev/null
cat "$out/summary.txt"
exit "$failed"
