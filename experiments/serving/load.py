"""`unitsphere serve` under load, beside servers that encode one request at a time.

    python experiments/serving/load.py MODEL TEXTS [seconds=5] [rounds=3] [clients=1,8,64] [each=1] [threads=1]
                                       [baselines=naive,library] [variants="wait_ms=2;batch_tokens=4096"] [out=FILE]

All servers stand on loopback with the same model and the same number of threads, and are asked in alternation, so that
only ratios within one run are compared: for `seconds`, each of N clients posts `each` lines of the file TEXTS and waits
for the vectors. Every text is a new one (a number is put behind it), so no cache can help, but for the server `serve`,
which is asked for 1,000 texts again and again. Prints a table, and writes it too (out=….md or out=….csv).

    naive     FastAPI around `Model.encode`, one request at a time
    library   FastAPI around sentence-transformers' `encode`, one request at a time
    batching  unitsphere serve without its cache; and so for each of `variants`, with these settings
    serve     unitsphere serve, texts that come again

`CPU ms` is the server's CPU time a request, which other work on the machine changes least (Linux only).
"""

import asyncio
import csv
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from threading import Lock
from typing import NamedTuple

NAIVE = ("naive", "library")
Texts = Iterator[str]
COLUMNS = ["clients", "server", "requests/s", "texts/s", "times naive", "p50 ms", "p99 ms", "CPU ms", "errors"]


class Load(NamedTuple):
    """Requests a second, the seconds that each took, the server's CPU time for all, and what went wrong."""

    speed: float
    took: list[float]
    cpu: float
    errors: list[str]


def naive(kind: str, model: str, threads: int) -> None:
    """The server that many people write first."""
    import torch
    import uvicorn
    from fastapi import Body, FastAPI

    torch.set_num_threads(threads)
    if kind == "library":
        from sentence_transformers import SentenceTransformer

        encode = SentenceTransformer(model, device="cpu").encode
    else:
        from unitsphere import artefact

        encode = artefact.load(model).encode
    app, lock = FastAPI(), Lock()

    @app.post("/embed")
    def embed(texts: list[str] = Body(embed=True)) -> list[list[float]]:  # noqa: B008
        with lock:
            return encode(texts).tolist()

    config = uvicorn.Config(app, port=0, log_level="info", access_log=False)
    uvicorn.Server(config).run()


def start(name: str, model: str, threads: int, settings: list[str] | None) -> subprocess.Popen[str]:
    """The server as a process."""
    if settings is None:
        line = [sys.executable, __file__, name, model, str(threads)]
    else:
        line = [sys.executable, "-m", "unitsphere", "serve", f"model={model}", "port=0", f"threads={threads}"]
        line += settings
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def port_of(server: subprocess.Popen[str]) -> int:
    """The port that it says, once it listens."""
    assert server.stdout is not None
    said = []
    for line in server.stdout:
        port = re.search(r"http://[\d.]+:(\d+)", line)
        if port:
            return int(port[1])
        said.append(line)
    raise SystemExit("".join(said))


async def client(port: int, texts: Texts, each: int, until: float, took: list[float], errors: list[str]) -> None:
    """One connection, one request after the other: plain HTTP/1.1, so that the client costs little."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while time.perf_counter() < until:
        body = json.dumps({"texts": list(islice(texts, each))}).encode()
        head = f"POST /embed HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        begin = time.perf_counter()
        writer.write(f"{head}\r\n\r\n".encode() + body)
        try:
            answer = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            await reader.readexactly(int(re.findall(r"content-length: (\d+)", answer)[0]))
        except (OSError, asyncio.IncompleteReadError) as error:
            errors.append(repr(error))
            return
        took.append(time.perf_counter() - begin)
        if " 200 " not in answer.splitlines()[0]:
            errors.append(answer.splitlines()[0])
    writer.close()


def cpu_seconds(server: subprocess.Popen[str]) -> float:
    """That a process has computed so far; unlike the time that passes, little changed by what else the machine does."""
    fields = Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def load(server: subprocess.Popen[str], port: int, texts: Texts, each: int, clients: int, seconds: float) -> Load:
    """The answers of one server within `seconds`."""
    took: list[float] = []
    errors: list[str] = []
    begin, before = time.perf_counter(), cpu_seconds(server)
    await asyncio.gather(*(client(port, texts, each, begin + seconds, took, errors) for _ in range(clients)))
    return Load(len(took) / (time.perf_counter() - begin), took, cpu_seconds(server) - before, errors)


def main(model: str, file: str, **options: str) -> None:
    seconds, rounds, each = float(options.get("seconds", 5)), int(options.get("rounds", 3)), int(options.get("each", 1))
    counts = [int(n) for n in options.get("clients", "1,8,64").split(",")]
    serve = {"batching": ["cache_mib=0"]}
    serve |= {
        variant: ["cache_mib=0", *variant.split()] for variant in options.get("variants", "").split(";") if variant
    }
    serve |= {"serve": []}
    lines = [line for line in Path(file).read_text(encoding="utf-8").splitlines() if line.strip()]
    random.Random(0).shuffle(lines)
    new = (f"{lines[i % len(lines)]} {i}" for i in count())
    again = (random.choice(lines[:1000]) for _ in count())
    threads, baselines = int(options.get("threads", 1)), options.get("baselines", "naive,library").split(",")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the servers are ended then, too
    servers = {name: start(name, model, threads, serve.get(name)) for name in (*baselines, *serve)}
    loads: dict[tuple[int, str], list[Load]] = defaultdict(list)
    try:
        ports = {name: port_of(server) for name, server in servers.items()}
        for _ in range(rounds):
            for clients in counts:
                for name, port in ports.items():
                    texts = again if name == "serve" else new
                    done = asyncio.run(load(servers[name], port, texts, each, clients, seconds))
                    loads[clients, name].append(done)
    finally:
        for server in servers.values():
            server.terminate()
        for server in servers.values():
            server.wait()
    rows = []
    for (clients, name), of in loads.items():
        speed = statistics.median(one.speed for one in of)
        ratio = statistics.median(a.speed / b.speed for a, b in zip(of, loads[clients, "naive"], strict=True))
        waits = [1e3 * wait for one in of for wait in one.took]
        cuts = statistics.quantiles(waits, n=100)
        cpu = 1e3 * sum(one.cpu for one in of) / len(waits)
        figures = (speed, speed * each, ratio, cuts[49], cuts[98], cpu)
        errors = sum(len(one.errors) for one in of)
        rows.append([str(clients), name, *(f"{figure:.2f}" for figure in figures), str(errors)])
    table = ["| " + " | ".join(row) + " |" for row in (COLUMNS, ["---"] * len(COLUMNS), *rows)]
    print("\n".join(table))
    out = options.get("out")
    if out and out.endswith(".csv"):
        with Path(out).open("w", newline="", encoding="utf-8") as to:
            csv.writer(to).writerows([COLUMNS, *rows])
    elif out:
        Path(out).write_text("\n".join(table) + "\n", encoding="utf-8")


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if sys.argv[1] in NAIVE:
        naive(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    else:
        main(sys.argv[1], sys.argv[2], **dict(option.split("=", 1) for option in sys.argv[3:]))
