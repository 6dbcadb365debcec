"""`unitsphere serve` as a process: what clients do to it, and a signal, after which no accepted request goes unanswered."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import numpy as np
import pytest

from serving import Letters, sample
from unitsphere import artefact
from unitsphere.encoders.tiny import tiny
from unitsphere.errors import UsageError
from unitsphere.serving.app import create_app
from unitsphere.serving.gate import Door
from unitsphere.serving.server import Server, listen
from unitsphere.serving.settings import Limits, Settings

TEXTS = [f"{'long ' * 25}{i}" for i in range(50)]


async def misbehave(client, address):
    """Connections that send no HTTP or half of it, a client that leaves, a body of 30 MB, a wrong key."""
    host, port = address.removeprefix("http://").split(":")
    for said in (b"POST /embed HTTP/1.1\r\n", b"\x16\x03\x01\x02\x00", b"GET / HTTP/1.1\r\nHost: x\r\nContent-Le"):
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(said)
        await writer.drain()
        writer.close()
    with pytest.raises(httpx2.ReadTimeout):
        await client.post("/embed", json={"texts": TEXTS * 10}, timeout=0.05)
    huge = await client.post("/embed", content=b"x" * 30_000_000)
    wrong = await client.post("/embed", json={"texts": ["a"]}, headers={"Authorization": "Bearer x"})
    fine = await client.post("/v1/embeddings", json={"input": "a", "model": "tiny"})
    return [answer.status_code for answer in (huge, wrong, fine)], (await client.get("/metrics")).text


async def ended(client, process):
    """The answers to what was accepted before a signal, and to what came after it."""

    async def ask(i):
        return await client.post("/embed", json={"texts": [f"{i} {text}" for text in TEXTS]})

    async def misses():
        return sample((await client.get("/metrics")).text, "cache_misses_total")

    before = await misses()
    accepted = [asyncio.create_task(ask(i)) for i in range(12)]
    while await misses() < before + 12 * len(TEXTS):
        await asyncio.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    while (await client.get("/health")).json()["status"] != "draining":
        await asyncio.sleep(0.01)
    late = await ask("late")
    return await asyncio.gather(*accepted), late


@pytest.mark.slow
def test_a_server_from_its_start_to_its_end(tmp_path):
    pooling, embedder = "unitsphere.pooling.mean.MeanPooling", "unitsphere.embedder.Embedder"
    artefact.save(artefact.assemble(tiny(), {"_target_": pooling}, {"_target_": embedder}), tmp_path / "tiny")
    line = [sys.executable, "-m", "unitsphere", "serve", f"model={tmp_path / 'tiny'}", "port=0", "batch_tokens=256"]
    process = subprocess.Popen(
        [*line, "threads=1", "api_key_env=SOME_KEY"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "SOME_KEY": "geheim"},
    )  # fmt: skip
    head = {"Authorization": "Bearer geheim", "Content-Type": "application/json"}

    async def body(address):
        async with httpx2.AsyncClient(base_url=address, timeout=60, headers=head) as client:
            return *await misbehave(client, address), *await ended(client, process)

    try:
        said = ""
        while "http://" not in said:
            line = process.stdout.readline()
            assert line, said
            said += line
        statuses, page, answers, late = asyncio.run(body(re.search(r"http://\S+:\d+", said)[0]))
        assert process.wait(30) == 0
        said += process.stdout.read()
    finally:
        process.kill()
        process.wait()
    assert statuses == [413, 401, 200] and not re.search(r'status="5', page)
    assert sample(page, "requests_total", endpoint="/embed", status="499") == 1
    assert "geheim" not in page + said and "Traceback" not in said
    assert [answer.status_code for answer in answers] == [200] * 12 and late.status_code == 503
    expected = artefact.load(tmp_path / "tiny").encode([f"11 {text}" for text in TEXTS])
    np.testing.assert_allclose(answers[11].json(), expected, atol=1e-6)


def test_it_ends_when_nothing_is_inside_or_its_time_is_up_or_at_a_second_signal():
    door = Door(inside=1)

    def waiting(grace):
        server = Server(create_app(Letters(), None, None, door), door, grace)
        door.draining = False
        assert not asyncio.run(server.on_tick(1))
        server.handle_exit(signal.SIGINT, None)
        assert door.draining and not server.should_exit
        return server

    server = waiting(grace=60)
    assert not asyncio.run(server.on_tick(1))
    door.inside = 0
    assert asyncio.run(server.on_tick(1))
    door.inside = 1
    server = waiting(grace=0.05)
    time.sleep(0.06)
    assert asyncio.run(server.on_tick(1)) and not server.force_exit
    server = waiting(grace=60)
    server.handle_exit(signal.SIGINT, None)
    assert asyncio.run(server.on_tick(1)) and server.force_exit


def test_a_client_that_reads_slowly_gets_the_whole_answer():
    door = Door()
    app = create_app(Letters(), None, Settings(limits=Limits(texts=30_000)), door)
    body = json.dumps({"texts": ["a"] * 30_000}).encode()  # 16 MB of vectors, more than a socket's buffers hold
    head = f"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"

    def ask(address):
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.settimeout(20)
            client.connect(address)
            client.sendall(head.encode() + body)
            answer = client.recv(1)
            while door.inside:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(2)
            while part := client.recv(2**20):
                answer += part
            return answer

    before = signal.signal(signal.SIGTERM, lambda *_: None)  # to whom uvicorn hands it on when it has ended
    try:
        with listen("127.0.0.1", 0) as listener, ThreadPoolExecutor(1) as thread:
            asked = thread.submit(ask, listener.getsockname())
            Server(app, door, 30).run(sockets=[listener])
            said, _, answer = asked.result().partition(b"\r\n\r\n")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert f"content-length: {len(answer)}".encode() in said.lower()
    assert len(json.loads(answer)) == 30_000


def test_an_answer_does_not_wait_for_an_acknowledgement():
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_an_address_that_cannot_be_had_is_named():
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        for host, number in (("127.0.0.1", port), ("203.0.113.1", 0), ("nowhere.invalid", 0), ("127.0.0.1", 99999)):
            with pytest.raises(UsageError, match=f"host={host} port={number}"):
                listen(host, number)
