#!/bin/sh
# Trainings on a GPU, as Markdown on standard output: `sh benchmarks/gpu.sh > gpu.md`. What is going on is told on standard
# error. Where there is no GPU nothing is measured, which is said, and no failure. PYTHON, STEPS and PAIRS can be set.
# A training that fails (no memory, an implementation that is not there) is a line in the table, and the others go on.
set -u
cd "$(dirname "$0")/.."
if [ -z "${PYTHON:-}" ]; then
    if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; else PYTHON=python; fi
fi
STEPS=${STEPS:-24}
PAIRS=${PAIRS:-3}
if ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "no GPU that this torch can use: nothing measured" >&2
    exit 0
fi
work=build/bench
mkdir -p "$work"
section="$work/gpu-section.md"
failed=0

# measure TITLE OPTION...
measure() {
    title=$1
    shift
    echo "== $title" >&2
    rm -f "$section"
    printf '# %s\n\n' "$title"
    if "$PYTHON" -m benchmarks.train --dir "$work" --device cuda --steps "$STEPS" --markdown "$section" "$@" >&2; then
        cat "$section"
    else
        echo "Failed: \`benchmarks.train $*\`."
        failed=1
    fi
    printf '\n'
}

# upcycle trains bf16 weights with float32 masters. Trainer has as many digits by autocast, fewer with bf16 weights alone.
measure "grouped_mm, Trainer with bf16 weights alone" --only moe --trainer-dtype bf16 --pairs "${MAIN_PAIRS:-7}"
measure "grouped_mm, Trainer with float32 weights and autocast" --only moe --trainer-dtype autocast --pairs "$PAIRS"
measure "eager, Trainer with bf16 weights alone" --only moe --experts-implementation eager --trainer-dtype bf16 --pairs "$PAIRS"
measure "grouped_mm, compiled" --only moe --compile --trainer-dtype bf16 --pairs "$PAIRS"
measure "the dense model" --only dense --pairs "$PAIRS"

echo "== adapter experts" >&2
rm -f "$section"
if "$PYTHON" -m benchmarks.adapters --only training --device cuda --pairs "$PAIRS" --markdown "$section" >&2; then
    cat "$section"
else
    echo "Failed: \`benchmarks.adapters\`."
    failed=1
fi
exit $failed
