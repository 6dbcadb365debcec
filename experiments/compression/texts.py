"""What a student of a docstrings model learns from instead of pairs: the training docstrings whole, in pieces of 50
words, their summaries, and the sentences of another file.

python experiments/compression/texts.py sentences.txt > texts.txt
"""

import sys
from pathlib import Path

from unitsphere.data.docstrings import Docstrings

WORDS = 50
rows = Docstrings({"anchor": "summary", "positive": "document"}).splits.train
found: dict[str, None] = {}
for summary, document in zip(rows.anchor, rows.positive, strict=True):
    words = document.split()
    found |= {summary: None} | {" ".join(words[i : i + WORDS]): None for i in range(0, len(words), WORDS)}
found |= dict.fromkeys(Path(sys.argv[1]).read_text(encoding="utf-8").splitlines())
sys.stdout.writelines(f"{' '.join(text.split())}\n" for text in found if text.strip())
