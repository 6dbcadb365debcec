"""Write N made-up lines of about 12 words, 80 characters: `python lines.py N FILE`. Equal N give equal files.

Words are drawn by Zipf's law out of 50,000 made-up ones, so that lines differ.
"""

import sys
from pathlib import Path

import numpy as np

CHUNK = 10_000


def main(count: int, file: Path) -> None:
    draw = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = np.array(["".join(draw.choice(letters, draw.integers(2, 10))) for _ in range(50_000)])
    with file.open("w", encoding="utf-8") as out:
        for start in range(0, count, CHUNK):
            lengths = draw.integers(9, 16, min(CHUNK, count - start))
            drawn = words[np.minimum(draw.zipf(1.2, lengths.sum()), len(words)) - 1]
            out.writelines(" ".join(line) + "\n" for line in np.split(drawn, lengths.cumsum()[:-1]))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
