"""No text twice in a batch.

Equal texts in a batch are false negatives: of one question's two answers each would be pushed away. (Losses mask equal
texts, `mask_duplicates`; this keeps all of a batch's negatives instead.)
Relations: sentence-transformers' NoDuplicatesBatchSampler gives each batch the first rows left that fit it, which
visits every row in Python; here only those batches are dealt anew in which something clashes.
"""

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

import numpy as np
import torch

from unitsphere.data.rows import Rows
from unitsphere.errors import UsageError

REACH = 32  # rows of a line that are tried for a batch


class NoDuplicates:
    """Every row once, in random order, and no text (anchor, positive or negative) in two rows of a batch.

    The rows are shuffled and cut into batches; those in which two rows share a text, as many others and the rows
    behind the last batch are dealt anew (`dealt`). What fills no batch then is left out of the epoch: the remainder of
    rows by batch size, now and then one batch more, and rows of a text that stands in more rows than there are batches,
    which no order can place.

    Raises:
        UsageError: So few texts are different that no batch can be filled.
    """

    def __call__(self, rows: Rows, batch_size: int, generator: torch.Generator) -> np.ndarray:
        texts, owners = rows.repeated_texts
        order = torch.randperm(len(rows), generator=generator).numpy()
        count = len(rows) // batch_size
        batch = np.empty(len(rows), np.int64)  # of each row; `count` for those behind the last batch
        batch[order] = np.arange(len(rows)) // batch_size
        keys = np.sort(texts * (count + 1) + batch[owners])
        again = np.zeros(count + 1, dtype=bool)  # the batches to deal anew
        again[keys[1:][keys[1:] == keys[:-1]] % (count + 1)] = True
        again[count] = False
        batches = order[: count * batch_size].reshape(count, batch_size)
        if not again.any():
            return batches
        again[np.flatnonzero(~again[:count])[: again.sum()]] = True
        again[count] = True
        chosen = again[batch[owners]]
        of_row = defaultdict(list)
        for text, row in zip(texts[chosen].tolist(), owners[chosen].tolist(), strict=True):
            of_row[row].append(text)
        new = dealt(order[again[np.arange(len(rows)) // batch_size]].tolist(), of_row, batch_size)
        again = again[:count]
        if not new and again.all():
            raise UsageError(
                f"sampler=no_duplicates: the texts repeat so often that no batch of {batch_size} can be filled; lower "
                "data.batch_size"
            )
        places = np.flatnonzero(again)
        batches[places[: len(new)]] = np.array(new, np.int64).reshape(-1, batch_size)[: len(places)]
        return np.delete(batches, places[len(new) :], axis=0)


def dealt(rows: Iterable[int], texts: Mapping[int, Sequence[int]], size: int) -> list[list[int]]:
    """Batches of `size` rows without a common text; rows that fill none are left out.

    Rows are taken in order. One that shares a text with its batch waits in the line of that text; each further batch
    first takes a row of every line, if one of its first fits.

    Args:
        rows: Row numbers.
        texts: Row -> numbers of its texts; rows that share none may be missing.
        size: Rows of a batch.
    """
    fresh = iter(rows)
    lines: dict[int, deque[int]] = {}
    batches: list[list[int]] = []
    while True:
        batch: list[int] = []
        taken: set[int] = set()
        for text in list(lines):
            if len(batch) == size:
                break
            line = lines[text]
            fitting = (i for i, row in enumerate(islice(line, REACH)) if taken.isdisjoint(texts[row]))
            if text not in taken and (first := next(fitting, None)) is not None:
                batch.append(line[first])
                taken.update(texts[line[first]])
                del line[first]
                if not line:
                    del lines[text]
        while len(batch) < size and (row := next(fresh, None)) is not None:
            own = texts.get(row, ())
            clash = next((text for text in own if text in taken), None)
            if clash is None:
                batch.append(row)
                taken.update(own)
            else:
                lines.setdefault(clash, deque()).append(row)
        if len(batch) < size:
            return batches
        batches.append(batch)
