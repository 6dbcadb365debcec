#!/usr/bin/env bash
# A domain's whole story, one seed: untouched model, masked-language-model training on its texts, contrastive training on its
# pairs, hard negatives mined by that model, a cross-encoder on top. From the checkout, with UNITSPHERE_DATA set:
#   bash experiments/domain_story/story.sh debian-descriptions hub models/minilm-l3 40 32 48 english 400
#   bash experiments/domain_story/story.sh stard-law-zh e5_base models/e5-multi 25 16 64 null 100
set -euo pipefail
set_name=$1 encoder=$2 path=$3 mlm_steps=$4 batch=$5 length=$6 stemmer=$7 scorer_steps=$8
out=outputs/domain_story/$set_name
export TQDM_DISABLE=1
data="data=beir data.path=$set_name data.batch_size=$batch data.max_length=$length data.eval_max_length=64"

unitsphere chain domain_adaptation $data outputs="$out" eval=retrieval select=last trainer.threads=1 "~callbacks.progress" \
  mlm.encoder="$encoder" mlm.encoder.path="$path" mlm.trainer.max_steps="$mlm_steps" \
  contrastive.encoder="$encoder" contrastive.trainer.max_steps=80 contrastive.optim.lr=1e-4 contrastive.sampler=no_duplicates \
  hard.trainer.max_steps=40 hard.optim.lr=5e-5 hard.sampler=no_duplicates negatives.threads=1
chain=$(ls -td "$out"/chains/domain_adaptation/*/ | head -1)
hard=$(ls -d "$chain"hard/*/) negatives=$(ls -d "$chain"negatives/*/)

python train.py loss=cross_encoder eval=none select=last encoder=hub encoder.path="$hard" $data preparation=mined \
  preparation.mined.path="$negatives/negatives.jsonl" data.batch_size=16 preparation.mined.count=2 loss.in_batch=2 optim.lr=1e-4 \
  trainer.max_steps="$scorer_steps" trainer.threads=1 outputs="$out" name=cross_encoder "~callbacks.progress"
scorer=$(ls -td "$out"/cross_encoder/*/ | head -1)
unitsphere evaluate model="$hard" "eval=[retrieval,hybrid]" eval.retrieval.path="$set_name" eval.retrieval.max_length=64 \
  eval.hybrid.reranker="$scorer" eval.hybrid.cross_encoder.max_length=96 eval.hybrid.depth=10 eval.hybrid.rerank_from=dense \
  eval.hybrid.stemmer="$stemmer" threads=1 outputs="$out"
