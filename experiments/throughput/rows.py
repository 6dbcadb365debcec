"""Rows of a sentence twice and N others as negatives: python experiments/throughput/rows.py SENTENCES N"""

import json
import random
import sys
from pathlib import Path

sentences = Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()
draw = random.Random(0)
for sentence in sentences:
    row = {"anchor": sentence, "positive": sentence, "negative": draw.sample(sentences, int(sys.argv[2]))}
    sys.stdout.write(json.dumps(row, ensure_ascii=False) + "\n")
