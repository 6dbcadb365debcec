#!/usr/bin/env bash
# Training on one GPU beside sentence-transformers, for a machine that has one; it has not been run yet. An encoder of the
# shape of BERT-base, batches of 64 texts in two views, all of 32 or of 128 tokens. A bare checkout will do, where the
# libraries are:
#
#   PYTHONPATH=src bash experiments/throughput/measure_gpu.sh OUT
set -euo pipefail
out=$1
mkdir -p "$out"
python experiments/streaming/lines.py 80000 "$out/lines.txt"
paste -d ' ' - - - - - - - - < "$out/lines.txt" > "$out/long.txt"
for length in 32 128; do
  python -m unitsphere bench train encoder=scratch encoder.dim=768 encoder.depth=12 encoder.heads=12 loss=simcse \
    data=text data.path="$out/long.txt" data.max_length=$length data.batch_size=64 trainer.precision=bf16-mixed \
    peer=sentence_transformers rounds=3 bench.options.steps=50 bench.options.warm=10 variant.packed.trainer.packed=true \
    outputs="$out/$length"
  python -m unitsphere bench encode encoder=scratch encoder.dim=768 encoder.depth=12 encoder.heads=12 data=text data.path="$out/long.txt" \
    bench.options.texts=10000 bench.options.max_length=$length bench.options.bf16=true peer=sentence_transformers rounds=3 \
    outputs="$out/encode$length"
done
