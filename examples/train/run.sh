#!/bin/sh
# Trains the small model from text to a Hugging Face folder, in an environment of its own.
#
#   sh examples/train/run.sh TRAIN_TEXT HELD_OUT_TEXT RUN_FOLDER [options of train.py]
#
# The text may be .zst. Start it again with the same arguments to go on after an interruption. RUN_FOLDER/model is the
# result. MINUTES (default 100) is the time to train for; ENVIRONMENT the Python environment, made if it is not there.
set -eu

[ $# -ge 3 ] || { sed -n '2,8p' "$0"; exit 2; }
here=$(dirname "$0")
train_text=$1 held_out=$2 run=$3
shift 3
environment=${ENVIRONMENT:-$run/environment}

mkdir -p "$run"
if [ ! -x "$environment/bin/python" ]; then
    python3 -m venv "$environment"
fi
"$environment/bin/python" -m pip install -q -r "$here/requirements.txt"
python=$environment/bin/python

# Enough room that oneDNN keeps the kernel of every size of an expert's share; see MoE.places in model.py.
export ONEDNN_PRIMITIVE_CACHE_CAPACITY=8192

# Two processes on a CPU, as train.py explains, or one on a GPU; with more GPUs, set PROCESSES to their number.
if [ -z "${PROCESSES:-}" ]; then
    PROCESSES=$("$python" -c 'import os, torch; print(1 if torch.cuda.is_available() else min(2, os.cpu_count()))')
fi
threads=$(($(nproc) / PROCESSES))
# Freed memory is kept for the next step, which saves the system ten thousand page faults in each.
export MALLOC_MMAP_THRESHOLD_=2147483648 MALLOC_TRIM_THRESHOLD_=8589934592

"$python" -m torch.distributed.run --standalone --nproc-per-node "$PROCESSES" \
    "$here/train.py" "$train_text" --held-out "$held_out" --folder "$run" \
    --threads "$((threads > 0 ? threads : 1))" --minutes "${MINUTES:-100}" "$@"
"$python" "$here/folder.py" "$run" "$run/model" model
"$python" "$here/data.py" held-out "$held_out" > "$run/held-out.txt"
for context in 512 2048; do
    "$python" "$here/evaluate.py" "$run/model" "$run/held-out.txt" --context $context
done
"$python" "$here/sample.py" "$run/model"
"$python" "$here/curve.py" "$run/log.jsonl" "$run/model/curve.svg"
