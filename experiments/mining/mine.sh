#!/usr/bin/env bash
# Trains a cross-encoder on a data set's pairs and mines what study.yaml trains on, into outputs/mining/<data>/<how>.jsonl.
# From the checkout, with models/minilm-l3 there and UNITSPHERE_DATA set:
#   bash experiments/mining/mine.sh docstrings preparation=sample preparation.sample.rows=3000 data=docstrings data.max_length=48
#   bash experiments/mining/mine.sh scifact data=beir data.path=scifact data.max_length=48
set -euo pipefail
export TQDM_DISABLE=1
name=$1 data=("${@:2}") model=models/minilm-l3 out=outputs/mining

newest() { ls -td "$1"/*/ | head -1; }
mine() {
  unitsphere mine model=$model "${data[@]}" outputs=$out name=$name/"$1" threads=1 "${@:2}"
  cp "$(newest $out/$name/"$1")negatives.jsonl" $out/$name/"$1".jsonl
}

mine bm25 source=bm25 source.bm25.stemmer=english filter=near_duplicates
python train.py loss=cross_encoder eval=none select=last encoder=hub encoder.path=$model data=triplets data.held_out=0 \
  data.path=$out/$name/bm25.jsonl data.max_length=48 data.batch_size=16 loss.in_batch=3 optim.lr=1e-4 trainer.max_steps=150 \
  trainer.threads=1 outputs=$out name=$name/cross_encoder "~callbacks.progress"
scorer=$(newest $out/$name/cross_encoder)
mine random source=random filter=none cross_encoder=$scorer
mine bm25 source=bm25 source.bm25.stemmer=english filter=near_duplicates cross_encoder=$scorer
mine dense filter=none cross_encoder=$scorer
mine margin cross_encoder=$scorer
mine cross_encoder_filtered "filter=[margin,near_duplicates,cross_encoder]" filter.cross_encoder.scorer.path=$scorer \
  filter.cross_encoder.scorer.max_length=96 filter.cross_encoder.candidates=5 cross_encoder=$scorer
