"""Sentences to distil a general model on: SNLI's dev set, and Wikipedia's of 4 to 20 words. None is of an STS test.

python experiments/compression/sentences.py > sentences.txt      # UNITSPHERE_DATA holds snli-dev and corpus-en-wiki
"""

import gzip
import json
import os
import sys
from pathlib import Path

data = Path(os.environ["UNITSPHERE_DATA"])
found: dict[str, None] = {}
with (data / "snli-dev" / "pairs.jsonl").open(encoding="utf-8") as rows:
    for row in map(json.loads, rows):
        found |= {row["sentence1"]: None, row["sentence2"]: None}
with gzip.open(data / "corpus-en-wiki" / "sentences.txt.gz", "rt", encoding="utf-8") as lines:
    found |= {line.strip(): None for line in lines if 4 <= len(line.split()) <= 20}
sys.stdout.writelines(f"{sentence}\n" for sentence in found)
