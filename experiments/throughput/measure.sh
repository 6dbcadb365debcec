#!/usr/bin/env bash
# The numbers of this folder's README that need no GPU, one part after another: three quarters of an hour on two cores, on
# which nothing else should run. MODELS holds minilm, minilm-l3 and mpnet; SENTENCES is a file of short sentences, one a
# line; INT8 and STATIC are minilm after compression=int8_static and compression=static; RUN is any run.
#
#   MODELS=models SENTENCES=sentences.txt INT8=… STATIC=… RUN=… bash experiments/throughput/measure.sh [PART …]
#
# PREFIX=intel_ is what the names of the tables then begin with, beside those of another processor.
set -euo pipefail
here=$(dirname "$0")
minilm="encoder=hub encoder.path=$MODELS/minilm"
train="$minilm loss=simcse data=text data.path=$SENTENCES"
few="rounds=1 bench.options.warm=1 bench.options.steps=2"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

bench() { # NAME WHAT …: the newest result's rounds and table
  local name=$1 what=$2; shift 2
  unitsphere bench "$what" "$@"
  local folder; folder=$(ls -dt outputs/bench/"$what"/* | head -1)
  cp "$folder/rounds.csv" "$here/${PREFIX-}$name.csv"; cp "$folder/bench.md" "$here/${PREFIX-}$name.md"
}

training() {
  bench train_fp32 train $train peer=sentence_transformers rounds=3 \
    variant.chunks.trainer.packed=false variant.padded.trainer.packed=false variant.padded.trainer.chunks=1
  bench train_bf16 train $train trainer.precision=bf16-mixed peer=sentence_transformers rounds=3
}

encoding() {
  bench encode_fp32 encode model="$MODELS/minilm" data=docstrings peer=sentence_transformers rounds=3 variant.int8.model="$INT8"
  bench encode_bf16 encode model="$MODELS/minilm" data=docstrings peer=sentence_transformers rounds=3 bench.options.bf16=true
}

starting() {
  bench startup startup encoder=minilm rounds=3
  time unitsphere evaluate model="$MODELS/minilm" eval=sts vector_cache=0
}

batches() { # the plain step's memory grows with the batch, the gradient cache's does not
  bench plain train $train $few variant.64.data.batch_size=64 variant.256.data.batch_size=256 variant.1024.data.batch_size=1024
  bench cached train $train $few trainer.cache_tokens=1024 bench.options.steps=1 \
    variant.64.data.batch_size=64 variant.1024.data.batch_size=1024 variant.4096.data.batch_size=4096 \
    variant.4096_by_2048.data.batch_size=4096 variant.4096_by_2048.trainer.cache_tokens=2048 \
    variant.plain.trainer.cache_tokens=null variant.plain.trainer.accumulate_grad_batches=16
  bench small train $train rounds=1 bench.options.warm=2 bench.options.steps=16 # the plain batches of 64, each with its step of AdamW
}

curves() {
  local n negatives=()
  bench length train $minilm encoder.max_length=512 loss=infonce data.batch_size=32 $few \
    variant.16.data.max_length=16 variant.64.data.max_length=64 variant.128.data.max_length=128 variant.256.data.max_length=256 variant.512.data.max_length=512
  for n in 1 3 7 15; do
    python "$here/rows.py" "$SENTENCES" $n > "$work/$n.jsonl"; negatives+=(variant.$n.data.path="$work/$n.jsonl")
  done
  bench negatives train $minilm loss=infonce data=triplets data.path="$work/1.jsonl" data.max_length=32 $few "${negatives[@]}"
  bench models train $train $few variant.l3.encoder.path="$MODELS/minilm-l3" variant.mpnet.encoder.path="$MODELS/mpnet"
}

pictures() {
  python "$here/curves.py" "$here/curves.png" "rows a batch:$here/plain.csv,$here/cached.csv" \
    "tokens of a document, at most:$here/length.csv" "negatives a row:$here/negatives.csv" "lines of a corpus that is mined:$here/mining.csv"
}

ranks() { # two processes of one thread each, beside one of two
  bench ranks train $train rounds=2 variant.ddp.trainer=ddp variant.ddp.trainer.accelerator=cpu variant.ddp.trainer.threads=1 \
    variant.one_thread.trainer.threads=1
}

mining() {
  local n corpora=()
  for n in 10000 100000 1000000; do
    python experiments/streaming/lines.py $n "$work/$n.txt"; corpora+=(variant.$n.corpus="$work/$n.txt")
  done
  head -n 1000 "$SENTENCES" > "$work/queries.txt"
  python "$here/rows.py" "$work/queries.txt" 0 > "$work/pairs.jsonl"
  bench mining mine model="$STATIC" data=pairs data.path="$work/pairs.jsonl" data.held_out=0 max_length=32 filter=none rounds=1 \
    corpus="$work/10000.txt" "${corpora[@]}"
  for n in 100000 1000000; do
    /usr/bin/time -f "$n lines encoded in %e s, at most %M KiB" \
      unitsphere encode model="$STATIC" corpus="$work/$n.txt" max_length=32 out="$work/vectors$n"
  done
}

tables() {
  python "$here/tables.py" "$RUN" 10 100 1000
}

for part in "${@:-training encoding starting batches curves ranks mining tables pictures}"; do
  for one in $part; do "$one"; done
done
