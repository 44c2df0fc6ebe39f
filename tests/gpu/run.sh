#!/usr/bin/env bash
# All that one GPU can tell in ten minutes (570 s at most): correctness beside four short pretrainings, then, alone on the card, what is
# timed. `make gpu` runs it. TEXT: the words of the command line that name the data; OUT: a new folder, where everything is kept.
set -u
cd "$(dirname "$0")/../.."
PY=${PY:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
OUT=${OUT:-multirun/gpu/$(date +%F_%H-%M-%S)}
TEXT=${TEXT:-dataset=imdb}
began=$SECONDS
left() { local rest=$((565 - SECONDS + began)); echo $((rest > 2 ? rest : 2)); }  # `timeout 0` would be no limit
say() { echo "=== $((SECONDS - began)) s: $*"; }
export PYTHONUNBUFFERED=1 XCLS_PROGRESS=0
mkdir -p "$OUT"
$PY - <<'CHECK' || exit 1
import sys

try:
    import datasets, hydra, pytest, pytest_timeout, tokenizers, torch, xdist
except ImportError as error:
    sys.exit(f"make gpu: {error}. Run make setup-bench first, or name a Python that has what it needs: PY=python3.")
if not torch.cuda.is_available():
    sys.exit("make gpu: no GPU that this PyTorch can use")
print(torch.cuda.get_device_name(), torch.__version__, torch.cuda.get_arch_list())
CHECK

RUN="env XCLS_RUNS=$(realpath "$OUT") $PY run.py"
COMMON="$TEXT seq_len=512 size=small wandb=disabled"
TRAINING="pretraining.batch_size=64 pretraining.max_steps=${STEPS:-300} finetuning.epochs=1 finetuning.batch_size=32 finetuning.lr=3e-4 baseline.tuned=false"
MECHANISMS="sdpa sdpa_fused performer reformer"

# To about 200 s, nothing is timed: tests, and pretrainings beside them.
(
    timeout 60 $RUN mode=baseline $COMMON baseline.tuned=false exp=tfidf > "$OUT/tfidf.log" 2>&1
    for name in $MECHANISMS; do
        timeout 170 $RUN mode=pretrain exp=$name attention=$name $COMMON $TRAINING hardware.workers=2 > "$OUT/pretrain_$name.log" 2>&1 &
    done
    wait
) &
study=$!
timeout 150 $PY -m pytest -q -n 6 -m gpu --timeout 60 -p no:cacheprovider tests/gpu > "$OUT/tests.log" 2>&1
tail -25 "$OUT/tests.log"; say tests
timeout 60 $PY -m tests.gpu.checks errors --out "$OUT" > "$OUT/errors.log" 2>&1
tail -3 "$OUT/errors.log"; say errors
wait $study; say pretraining

# Alone on the card.
timeout 45 $PY -m tests.gpu.checks steps --out "$OUT" > "$OUT/steps.log" 2>&1
cut -c1-160 "$OUT/steps.log"; say steps
for name in $MECHANISMS; do
    [ -f "$OUT/pretrain/$name/record.json" ] && grep -q '"status": "completed"' "$OUT/pretrain/$name/record.json" || { echo "$name: no complete pretraining"; continue; }
    timeout $(($(left) < 60 ? $(left) : 60)) $RUN mode=finetune exp=$name pretrain=$name $TRAINING wandb=disabled > "$OUT/finetune_$name.log" 2>&1
    tail -1 "$OUT/finetune_$name.log"
done
say finetuning
timeout 30 $PY report.py "runs=[$OUT/multirun,$OUT/pretrain,$OUT/finetune]" claims.min_seeds=1 out="$OUT/report" > "$OUT/report.log" 2>&1; say report
BENCH="$PY run.py mode=bench bench.width=512 bench.num_heads=8 bench.least_rounds=2 bench.rounds=5"
timeout $(($(left) < 70 ? $(left) : 70)) $BENCH bench=step bench.name=gpu_step 'bench.dtypes=[auto]' 'bench.seq_lens=[512,16384]' bench.tokens_per_step=16384 bench.seconds=12 > "$OUT/step.log" 2>&1; say step
timeout $(($(left) / 2)) $BENCH bench=attention bench.name=gpu_attention 'bench.seq_lens=[512,4096,16384]' 'bench.dtypes=[auto]' \
    bench.tokens_per_step=65536 bench.memory=false bench.error=false bench.seconds=12 > "$OUT/attention.log" 2>&1; say attention
timeout "$(left)" $PY run.py mode=bench bench=training bench.name=gpu_training 'bench.dtypes=[auto]' $COMMON dataset.limit=8000 'bench.stages=[finetune]' bench.rounds=3 \
    bench.steps_per_segment=20 bench.seconds=20 > "$OUT/training.log" 2>&1; say training
[ -f "$OUT/checks.json" ] || { say "nothing was measured, see $OUT/*.log"; exit 1; }
$PY -m tests.gpu.tables "$OUT" docs/gpu.md
$PY -m xcls.bench.table docs/gpu.md
say "all is in $OUT, the tables are in docs/gpu.md"
