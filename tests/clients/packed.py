"""Clients as they come, which ask for compressed answers by themselves or when they are told to: what they read is
what is read without.

    packed.py HOST:PORT EVENTS    prints how each answer over HTTP was coded
"""

import json
import sys

import grpc
import requests

try:
    import httpx2 as httpx
except ImportError:
    import httpx


def data_of(lines, count: int) -> list:
    """The events of a stream, whose end is never waited for."""
    out = []
    for line in lines:
        line = line.decode() if isinstance(line, bytes) else line
        if line.startswith("data: "):
            out.append(line[6:])
            if len(out) == count:
                return out
    raise AssertionError(f"the stream ended after {len(out)} events")


def bodies(message: bytes) -> list:
    """The field `body` (3) of each of `events` (1) of a StreamEventsResponse."""

    def fields(data: bytes):
        at = 0

        def varint() -> int:
            nonlocal at
            value = shift = 0
            while True:
                byte = data[at]
                at += 1
                value |= (byte & 127) << shift
                shift += 7
                if byte < 128:
                    return value

        while at < len(data):
            key = varint()
            value = varint()
            if key & 7 == 2:
                at += value
                value = data[at - value : at]
            yield key >> 3, value

    return [body.decode() for n, event in fields(message) if n == 1 for m, body in fields(event) if m == 3]


def main() -> None:
    host, count = sys.argv[1], int(sys.argv[2])
    url = f"http://{host}/api/v1/events?limit=10000"
    want = requests.get(url, headers={"Accept-Encoding": "identity"}, timeout=120).text.splitlines()
    assert len(want) == count
    told = {}

    answer = requests.get(url, timeout=120)
    assert answer.text.splitlines() == want
    told["requests page"] = answer.headers["Content-Encoding"]
    answer = requests.get(url, headers={"Accept": "application/json"}, timeout=120)
    assert answer.json()["data"] == [json.loads(line) for line in want]
    told["requests array"] = answer.headers["Content-Encoding"]
    stream = {"Accept": "text/event-stream"}
    with requests.get(url, headers=stream, stream=True, timeout=120) as answer:
        told["requests stream"] = answer.headers["Content-Encoding"]
        assert data_of(answer.iter_lines(), count) == want

    answer = httpx.get(url, timeout=120)
    assert answer.text.splitlines() == want
    told["httpx page"] = answer.headers["Content-Encoding"]
    with httpx.stream("GET", url, headers=stream, timeout=120) as answer:
        told["httpx stream"] = answer.headers["Content-Encoding"]
        assert data_of(answer.iter_lines(), count) == want

    with grpc.insecure_channel(host) as channel:
        call = channel.unary_stream("/custody.v1.Events/Stream")(b"", timeout=120)
        assert [body for message in call for body in bodies(message)] == want

    json.dump(told, sys.stdout)


main()
