#!/usr/bin/env bash
# Every number of this folder's README, one after another: about three quarters of an hour on two cores, and nothing else
# should run there. MODELS holds minilm, minilm-l3 and mpnet; SENTENCES is a file of short sentences, one a line.
#
#   MODELS=models SENTENCES=sentences.txt INT8=outputs/compressed/…/models/int8_static bash experiments/throughput/measure.sh
set -euo pipefail
here=$(dirname "$0")
train="encoder=hub encoder.path=$MODELS/minilm loss=simcse data=text data.path=$SENTENCES"

bench() { # NAME WHAT …: the newest result's rounds and table
  local name=$1 what=$2; shift 2
  unitsphere bench "$what" "$@"
  local folder; folder=$(ls -dt outputs/bench/"$what"/* | head -1)
  cp "$folder/rounds.csv" "$here/$name.csv"; cp "$folder/bench.md" "$here/$name.md"
}

bench train_fp32 train $train peer=sentence_transformers rounds=2 \
  variant.chunks.trainer.packed=false variant.padded.trainer.packed=false variant.padded.trainer.chunks=1 variant.unfused.optim.fused=false
bench train_bf16 train $train trainer.precision=bf16-mixed peer=sentence_transformers rounds=2
bench encode_fp32 encode model="$MODELS/minilm" data=docstrings peer=sentence_transformers rounds=2 variant.int8.model="$INT8"
bench encode_bf16 encode model="$MODELS/minilm" data=docstrings peer=sentence_transformers rounds=2 bench.options.bf16=true
bench startup startup encoder=hub encoder.path="$MODELS/minilm" rounds=2

few="rounds=1 bench.options.warm=1 bench.options.steps=2"
bench kept train $train $few variant.64.data.batch_size=64 variant.256.data.batch_size=256 variant.1024.data.batch_size=1024
bench cached train $train $few trainer.cache_rows=64 bench.options.steps=1 \
  variant.64.data.batch_size=64 variant.256.data.batch_size=256 variant.1024.data.batch_size=1024 variant.4096.data.batch_size=4096
bench length train encoder=hub encoder.path="$MODELS/minilm" encoder.max_length=512 loss=infonce data.batch_size=32 $few \
  variant.16.data.max_length=16 variant.64.data.max_length=64 variant.128.data.max_length=128 variant.256.data.max_length=256 variant.512.data.max_length=512
bench models train $train $few variant.l3.encoder.path="$MODELS/minilm-l3" variant.mpnet.encoder.path="$MODELS/mpnet"
python "$here/curves.py" "$here/curves.png" "rows a batch:$here/kept.csv,$here/cached.csv" "tokens of a document, at most:$here/length.csv"
