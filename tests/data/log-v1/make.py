"""Makes the vectors of this folder, and recomputes hashes.json from them.

    make.py log CUSTODY DATA OUT   a new log in DATA by the built binary; its exports to OUT
    make.py hashes FOLDER          hashes.json, computed by tools/verify.py's functions only

`CUSTODY_MAKE_VECTORS=FOLDER cargo test --workspace --test verify_py` does both into FOLDER,
and between them writes blocks.json: the rows of `blocks` and `payloads`. Keys and salts are
random, so what is checked in is the vector: do not replace it, add a folder beside it.
"""

import base64
import http.client
import json
import os
import struct
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "../../../tools"))
import verify  # noqa: E402

START = 1_700_000_000_000_000_000


def requests():
    """(signal, content type, body, sender), in the order in which they are sent."""
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span
    from opentelemetry.proto.resource.v1.resource_pb2 import Resource

    def attribute(of, key, value):
        of.attributes.add(key=key).value.string_value = value

    def span(number, name=None):
        made = Span(trace_id=bytes(15) + b"\1", span_id=struct.pack(">Q", number), name=name or f"step {number}",
                    start_time_unix_nano=START + number, end_time_unix_nano=START + number + 5)
        attribute(made, "gen_ai.tool.call.arguments", json.dumps({"to": f"person {number}", "amount": 100 * number}))
        return made

    def traces(groups):
        request = ExportTraceServiceRequest()
        for service, scopes in groups:
            resource = request.resource_spans.add()
            attribute(resource.resource, "service.name", service)
            for scope, spans in scopes:
                added = resource.scope_spans.add(spans=spans)
                added.scope.name = scope
        return "traces", "application/x-protobuf", request.SerializeToString(), "127.0.0.1"

    def field(number, data):
        assert len(data) < 16384
        length = bytes([len(data)]) if len(data) < 128 else bytes([len(data) & 127 | 128, len(data) >> 7])
        return bytes([number << 3 | 2]) + length + data

    yield traces([("planner", [("loop", [span(1), span(2)]), ("tools", [span(3)])]),
                  ("executor", [("loop", [span(4)]), ("tools", [span(5), span(6)])])])
    logs = [{"timeUnixNano": str(START + n), "severityText": "INFO", "eventName": "authz.request",
             "body": {"stringValue": f"entry {n} \u00fcnicode"}} for n in range(3)]
    body = {"resourceLogs": [{"resource": {"attributes": [{"key": "service.name", "value": {"stringValue": "gate"}}]},
                              "scopeLogs": [{"scope": {"name": "policy"}, "logRecords": logs}]}]}
    yield "logs", "application/json", json.dumps(body).encode(), "127.0.0.2"
    metrics = ExportMetricsServiceRequest()
    scope = metrics.resource_metrics.add().scope_metrics.add()
    for name in ("tokens", "latency"):
        scope.metrics.add(name=name).gauge.data_points.add(time_unix_nano=START, as_int=7)
    yield "metrics", "application/x-protobuf", metrics.SerializeToString(), "127.0.0.1"
    body = {"resourceSpans": [{"scopeSpans": [{"spans": [
        {"traceId": f"{2:032x}", "spanId": f"{n:016x}", "name": f"json {n}", "kind": 1,
         "startTimeUnixNano": str(START), "endTimeUnixNano": str(START + 1)} for n in (21, 22)]}]}]}
    yield "traces", "application/json", json.dumps(body).encode(), "127.0.0.2"
    # A retry of some, together with new ones: copies, one of which is erased below.
    yield traces([("planner", [("loop", [span(1), span(7), span(2)])]), ("executor", [("tools", [span(5), span(8)])])])
    # A retry of all: nothing new, nothing is written.
    yield traces([("planner", [("loop", [span(7)])])])
    # A span id that is in the log with other content.
    yield traces([("planner", [("loop", [span(3, "another story")])])])
    # Resource and scope in two pieces: the annex.
    pieces = [Resource(), Resource(dropped_attributes_count=3)]
    attribute(pieces[0], "service.name", "in pieces")
    scopes = [ScopeSpans(), ScopeSpans()]
    scopes[0].scope.name, scopes[1].scope.version = "first half", "second half"
    scope = scopes[0].SerializeToString() + field(2, span(9).SerializeToString()) + scopes[1].SerializeToString()
    resource = field(1, pieces[0].SerializeToString()) + field(2, scope) + field(1, pieces[1].SerializeToString())
    assert ResourceSpans.FromString(resource).resource.dropped_attributes_count == 3
    yield "traces", "application/x-protobuf", field(1, resource), "127.0.0.1"
    # Two resources of the same bytes, in a row; a long record; one of which everything goes.
    yield traces([("twin", [("a", [span(10)])]), ("twin", [("a", [span(11, "long " * 500)])])])
    yield traces([("forgotten", [("all of it", [span(12)])])])


def make_log(custody, data, out):
    ready = data + ".ready"
    ports = [word for flag in ("--otlp-grpc", "--otlp-http", "--http", "--flight-sql") for word in (flag, "127.0.0.1:0")]
    server = subprocess.Popen([custody, "serve", *ports, "--data-dir", data, "--ready-file", ready,
                               "--origin", "example.com/custody/log-v1"], env={**os.environ, "CUSTODY_LOG": "warn"})

    def run(*args):
        return subprocess.run([custody, *args, "--data-dir", data], check=True, stdout=subprocess.PIPE).stdout

    try:
        while not os.path.exists(ready):
            assert server.poll() is None
            time.sleep(0.02)
        with open(ready) as file:
            address = json.load(file)["otlp_http"]
        for signal, kind, body, sender in requests():
            link = http.client.HTTPConnection(address, source_address=(sender, 0))
            link.request("POST", f"/v1/{signal}", body, {"Content-Type": kind})
            answer = link.getresponse()
            assert answer.status == 200, answer.read()
            link.close()
        why = ("--reason", "the vectors", "--actor", "emma")
        run("hold", "place", "--id", "case-1", "--seq", "4", *why)
        run("erase", "--seq", "2", *why)
        run("keys", "rotate", *why)
        run("erase", "--seq", "20", *why)
        run("hold", "release", "--id", "case-1", *why)
        for name, args in (("selective", ["--seq", "2-4,7,16,18"]), ("complete", ["--all"])):
            run("export", *args, "--reason", "the vectors", "-o", os.path.join(out, name + ".custody"))
        for seq, flags in ((7, []), (2, []), (18, ["--without-content"])):
            with open(os.path.join(out, f"record-{seq}.tlog-proof"), "wb") as file:
                file.write(run("prove", "--seq", str(seq), *flags))
    finally:
        server.terminate()
        assert server.wait() == 0


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, size):
        self.at += size
        assert self.at <= len(self.data)
        return self.data[self.at - size : self.at]

    def number(self, kind):
        return struct.unpack(">" + kind, self.take(struct.calcsize(kind)))[0]

    def table(self, kind):
        return [struct.unpack(">" + kind, self.take(struct.calcsize(">" + kind))) for _ in range(self.number("I"))]


def block_hashes(value, payload):
    """Every salt and digest of a block, from its row in `blocks`."""
    row = Reader(value)
    version, kind, encoding, state = row.take(4)
    length, identity = row.number("I"), row.take(row.number("H"))
    annex = row.take(row.number("I"))
    tables = row.at
    groups, records, copies = row.table("IIII"), row.table("III"), row.table("IIQ")
    tables = value[tables : row.at]
    count = 2 + 2 * len(groups) + len(records)
    whole, kept = payload + annex, None
    if state == 0:
        xof = verify.b3("custody salts v1", row.take(32), length=32 * count)
        salts = [xof[32 * k : 32 * k + 32] for k in range(count)]
    else:
        kept = row.take(32)
        salts = [None] + [None if row.take(1)[0] else row.take(32) for _ in range(1, count)]
    assert version == 1 and row.at == len(value) and len(payload) == length

    def digest(part, context, *data):
        return bytes(32) if salts[part] is None else verify.b3(f"custody {context} v1", salts[part], *data)

    used = {group for group, _, _ in records}
    ranges = [r[1:] for r in records] + [r for g in used for r in (groups[g][:2], groups[g][2:])]
    rest, at = b"", 0
    for first, size in sorted(ranges):
        rest, at = rest + whole[at:first], max(at, first + size)
    rest += whole[at:]
    rest_digest = kept or digest(0, "rest", rest)
    frame = verify.b3("custody frame v1", bytes([1, kind, encoding, 0]), struct.pack(">II", length, len(annex)), tables,
                      rest_digest)
    assert kept is None or not any(rest)
    who = digest(1, "identity", identity)
    shared, resource_part = [], None
    for g, (a, b, c, d) in enumerate(groups):
        if g == 0 or (a, b) != groups[g - 1][:2]:
            resource_part = 2 + 2 * g
        resource = digest(resource_part, "resource", whole[a : a + b])
        scope = digest(3 + 2 * g, "scope", whole[c : c + d])
        shared.append((resource, scope, verify.b3("custody shared v1", frame, who, resource, scope)))
    contents = []
    for i, (group, at, size) in enumerate(records):
        part = 2 + 2 * len(groups) + i
        erased = salts[part] is None
        contents.append(None if erased else verify.content_commitment(salts[part], shared[group][2], whole[at : at + size]))
    return {
        "state": state, "salts": [s.hex() if s else None for s in salts], "d_rest": rest_digest.hex(), "d_frame": frame.hex(), "d_identity": who.hex(),
        "groups": [dict(zip(("d_resource", "d_scope", "d_shared"), (d.hex() for d in g))) for g in shared],
        "c": [c.hex() if c else None for c in contents],
    }


def hashes(folder):
    def load(name):
        with open(os.path.join(folder, name)) as file:
            return file.read()

    lines = [json.loads(line) for line in load("complete.custody").splitlines()]
    entries = [base64.b64decode(line["entry"]) for line in lines if line["type"] == "record"]
    blocks = []
    for row in json.loads(load("blocks.json")):
        block = block_hashes(bytes.fromhex(row["block"]), bytes.fromhex(row["payload"]))
        for seq, c in enumerate(block["c"], row["first"]):
            assert c in (None, entries[seq][48:80].hex()), f"record {seq}: {c}"
        blocks.append({"first": row["first"], **block})
    chain, rows = verify.Chain(), []
    for entry in entries:
        chain.add(entry)
        rows.append({"entry": entry.hex(), "chain": chain.head.hex(), "leaf": verify.leaf_hash(entry).hex()})
    level = [verify.leaf_hash(entry) for entry in entries]
    roots = [verify.tree_root(level[:size]).hex() for size in range(len(level) + 1)]
    nodes = []
    while len(level) > 1:
        level = [verify.sha(b"\1", *level[i : i + 2]) for i in range(0, len(level) - 1, 2)]
        nodes.append([node.hex() for node in level])
    return {"blocks": blocks, "entries": rows, "nodes": nodes, "roots": roots}


if __name__ == "__main__":
    if sys.argv[1] == "log":
        make_log(*sys.argv[2:5])
    else:
        print(json.dumps(hashes(sys.argv[2]), indent=1))
