#!/bin/sh
# An 8B student of a 12B teacher on 32 machines of 8 GPUs, as MN-Minitron-8B was trained (arXiv 2408.11796, table 4).
# On every machine, HEAD being the name of the first:
#
#     HEAD=node-0 sh examples/distill_8b.sh STUDENT TEACHER OUT text.txt ...
#
# Published: a batch of 768 rows of 8,192 tokens, 60 steps of warm-up to 1e-4, a cosine down to 4.5e-7, 380 billion
# tokens, forward KL of the logits alone, a teacher that was corrected on the same text (`fxcompress distill --correct`).
# Not published, and ours: betas 0.9 and 0.95, weight decay 0.1, clipping at 1, the order of rows, computing in bfloat16.
#
# A step takes machines x GPUs x rows x batches = 32 x 8 x 1 x 3 = 768 rows. STUDENT, TEACHER, OUT and text lie where all
# machines see them. A run that was stopped goes on from its last checkpoint when the same command is given again.
# Never run at this size by us: docs/distill.md says what was.
set -eu
student=$1 teacher=$2 out=$3
shift 3
for text in "$@"; do
    set -- "$@" --data "$text"
    shift
done

# every process holds all rows, 4 bytes a token: 60,400 steps see 380 billion tokens, of less text more than once
exec torchrun --nnodes "${MACHINES:-32}" --nproc_per_node "${GPUS:-8}" \
    --rdzv_backend c10d --rdzv_endpoint "${HEAD:-localhost}:29500" --rdzv_id distill_8b --no-python \
    fxcompress distill "$student" --teacher "$teacher" -o "$out" "$@" \
    --length 8192 --batch-size 1 --accumulation "${BATCHES:-3}" --gradient-checkpointing \
    --steps "${STEPS:-60400}" --warmup 60 --lr 1e-4 --min-lr 4.5e-7 --save-every 100
