"""The queue before a model: what stands in which batch, what is never computed, and the cache against a slow one."""

import asyncio
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import numpy as np
import pytest

from serving import until
from unitsphere.serving.batching import Batcher, BatchFailed, QueueFull
from unitsphere.serving.cache import OVERHEAD, Cache, Embedded, Key


class Doubling:
    """Twice a number; 13 makes it raise, and 14 has no value. It waits while `free` is not set."""

    def __init__(self):
        self.batches, self.free = [], threading.Event()
        self.free.set()

    def __call__(self, keys):
        self.batches.append(list(keys))
        self.free.wait(10)
        if 13 in keys:
            raise ValueError(13)
        return {key: 2 * key for key in keys if key != 14}


@asynccontextmanager
async def running(batch_tokens=10, wait=0.0, limit=1000):
    compute, seen = Doubling(), []
    with ThreadPoolExecutor(1) as thread:
        batcher = Batcher(compute, thread, batch_tokens, wait, limit, lambda *of: seen.append(of))
        worker = asyncio.create_task(batcher.run())
        yield batcher, compute, seen
        compute.free.set()
        worker.cancel()


def of(keys, tokens=1):
    return dict.fromkeys(keys, tokens)


def test_a_batch_holds_as_many_tokens_as_fit():
    async def body():
        async with running(batch_tokens=10) as (batcher, compute, seen):
            assert await batcher(of(range(7), tokens=3) | {100: 50, 101: 1}) == {
                k: 2 * k for k in [*range(7), 100, 101]
            }
            assert compute.batches == [[0, 1, 2], [3, 4, 5], [6], [100], [101]]  # a longer one is alone
            assert [(n, tokens) for n, tokens, _ in seen] == [(3, 9), (3, 9), (1, 3), (1, 50), (1, 1)]
            assert await batcher({}) == {}

    asyncio.run(body())


@pytest.mark.parametrize(("wait", "tokens", "batches"), [(0.3, 1, 1), (0.0, 1, 2), (9.0, 10, 2)])
def test_an_idle_model_waits_for_more_but_not_once_a_batch_is_full(wait, tokens, batches):
    async def body():
        async with running(wait=wait) as (batcher, compute, _):
            start = asyncio.get_running_loop().time()
            first = asyncio.create_task(batcher({1: tokens}))
            await asyncio.sleep(0.05)
            assert await batcher({2: tokens}) == {2: 4} and await first == {1: 2}
            assert len(compute.batches) == batches
            took = asyncio.get_running_loop().time() - start
            assert took >= wait if batches == 1 else took < 5

    asyncio.run(body())


def test_what_arrives_while_the_model_computes_is_the_next_batch_and_equal_keys_are_computed_once():
    async def body():
        async with running() as (batcher, compute, _):
            compute.free.clear()
            first = asyncio.create_task(batcher(of([1])))
            await until(lambda: compute.batches)
            others = [asyncio.create_task(batcher(of([2, 3 + i % 2]))) for i in range(4)]
            await until(lambda: batcher.tokens == 8)
            compute.free.set()
            assert await asyncio.gather(first, *others) == [
                {1: 2},
                *[{2: 4, 3 + i % 2: 6 + 2 * (i % 2)} for i in range(4)],
            ]
            assert [sorted(batch) for batch in compute.batches] == [[1], [2, 3, 4]]

    asyncio.run(body())


def test_requests_take_turns():
    async def body():
        async with running(batch_tokens=4) as (batcher, compute, _):
            compute.free.clear()
            first = asyncio.create_task(batcher(of(range(1000, 1100))))
            await until(lambda: compute.batches)
            small = [asyncio.create_task(batcher(of([i]))) for i in range(2)]
            await until(lambda: batcher.tokens == 98)
            compute.free.set()
            await asyncio.gather(*small)
            assert {0, 1} <= set(compute.batches[1]) and len(compute.batches) < 10
            assert len(await first) == 100

    asyncio.run(body())


def test_what_nobody_waits_for_is_not_computed():
    async def body():
        async with running() as (batcher, compute, _):
            compute.free.clear()
            first = asyncio.create_task(batcher(of([1])))
            await until(lambda: compute.batches)
            gone, stays = asyncio.create_task(batcher(of(range(20, 40), 5))), asyncio.create_task(batcher(of([2])))
            await until(lambda: batcher.tokens == 101)
            gone.cancel()
            first.cancel()  # its batch is being computed
            await until(lambda: batcher.tokens == 1)
            compute.free.set()
            assert await stays == {2: 4} and compute.batches == [[1], [2]] and not batcher.waiting

    asyncio.run(body())


def test_a_batch_that_fails_fails_its_requests_and_no_other():
    async def body():
        async with running(batch_tokens=2) as (batcher, compute, seen):
            bad = asyncio.create_task(batcher(of([13, *range(20, 40)])))
            with pytest.raises(BatchFailed):
                await bad
            assert await batcher(of([1, 2, 3])) == {1: 2, 2: 4, 3: 6}
            assert compute.batches == [[13, 20], [1, 2], [3]] and batcher.tokens == 0  # 21 to 39 are not computed
            assert len(seen) == 2

    asyncio.run(body())


def test_a_key_without_a_value_fails_those_that_wait_for_it():
    async def body():
        async with running(batch_tokens=4) as (batcher, compute, _):
            asked = [asyncio.create_task(batcher(of(keys))) for keys in ([1], [14, *range(20, 40)], [2])]
            async with asyncio.timeout(10):
                fine, bad, too = await asyncio.gather(*asked, return_exceptions=True)
            assert fine == {1: 2} and too == {2: 4} and isinstance(bad, BatchFailed)
            assert compute.batches == [[1, 14, 2, 20]] and not batcher.waiting and batcher.tokens == 0
            assert await batcher(of([3])) == {3: 6}

    asyncio.run(body())


def test_a_full_queue_refuses_and_says_for_how_long():
    async def body():
        async with running(limit=100) as (batcher, compute, _):
            batcher.speed = 20.0
            compute.free.clear()
            tasks = [asyncio.create_task(batcher({0: 10}))]
            await until(lambda: compute.batches)
            tasks += [asyncio.create_task(batcher({k: 99})) for k in (1, 2)]  # below the limit, so let in: 198 tokens
            await until(lambda: batcher.tokens == 198)
            with pytest.raises(QueueFull) as full:
                await batcher({3: 1})
            assert full.value.seconds == 10
            compute.free.set()
            assert await asyncio.gather(*tasks) == [{0: 0}, {1: 2}, {2: 4}]
            assert await batcher({3: 1}) == {3: 6}

    asyncio.run(body())


def test_the_cache_against_a_slow_one():
    generator = random.Random(0)
    limit = 12_000
    cache, slow = Cache(limit), []  # (key, bytes), asked for last standing last
    for _ in range(4000):
        role, prompt = generator.choice([("document", ""), ("query", "query: "), ("query", "")])
        key = Key(role, prompt, str(generator.randrange(40)) * generator.choice([1, 1, 90]))
        entry = Embedded(np.full(8, hash(key) % 1000, np.float32), 3, False)
        had = [one for one in slow if one[0] == key]
        found = cache.get(key)
        assert (found is not None) == bool(had)
        if had:
            assert (found.vector == entry.vector).all()
            slow.remove(had[0])
            slow.append(had[0])
            continue
        cache.put(key, entry)
        slow.append((key, sum(49 + len(part) for part in key) + 8 * 4 + OVERHEAD))  # an ASCII str has 49 bytes besides
        while sum(size for _, size in slow) > limit:
            slow.pop(0)
        assert cache.bytes == sum(size for _, size in slow) <= limit and len(cache) == len(slow)
    assert len({len(key.text) for key, _ in slow}) > 2


def test_the_cache_keeps_no_matrix_alive_and_nothing_where_it_is_off():
    matrix = np.zeros((100, 8), np.float32)
    cache, off = Cache(10_000), Cache(0)
    for one in (cache, off):
        one.put(Key(None, "", "a"), Embedded(matrix[0], 1, False))
    assert cache.get(Key(None, "", "a")).vector.base is None
    assert cache.get(Key("query", "", "a")) is None and cache.get(Key(None, "query: ", "a")) is None
    assert len(off) == 0 and off.bytes == 0
