"""Records what a running OpenFGA tells of its decisions: the spans that it exports, and the lines of its request log.

    python make.py OPENFGA traces.pb lines.jsonl [OTLP]

OPENFGA is its server (`go build ./cmd/openfga` in its module). With OTLP, the address of something that takes OTLP
over gRPC, spans go there, and traces.pb is not written.
"""

import concurrent.futures
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as otlp_grpc

# Spans of requests that ask; those of AuthZEN's have a prefix of their own.
SPANS = ["Check", "BatchCheck", "ListObjects", "StreamedListObjects", "ListUsers", "Expand"]


class Receiver(otlp_grpc.TraceServiceServicer):
    """Keeps the spans of its requests, without the inner steps of each."""

    def __init__(self):
        self.kept = otlp.ExportTraceServiceRequest()

    def Export(self, request, context):
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                spans = [span for span in scope.spans if self.is_kept(scope.scope.name, span.name)]
                del scope.spans[:]
                scope.spans.extend(spans)
            scopes = [scope for scope in resource.scope_spans if scope.spans]
            del resource.scope_spans[:]
            resource.scope_spans.extend(scopes)
        self.kept.resource_spans.extend(of for of in request.resource_spans if of.scope_spans)
        return otlp.ExportTraceServiceResponse()

    def is_kept(self, scope, name):
        if scope.endswith("otelgrpc"):
            return name.startswith("authzen.") or name.removeprefix("openfga.v1.OpenFGAService/") in SPANS
        return scope == "openfga/pkg/server" and (name.startswith("authzen.") or name in SPANS)


def free():
    with socket.socket() as any_port:
        any_port.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{any_port.getsockname()[1]}"


def direct(*types):
    return {"directly_related_user_types": list(types)}


TYPES = {"agent": {"type": "agent"}, "user": {"type": "user"}, "team": {"type": "team", "relation": "member"}}
LIMITED = {**TYPES["agent"], "condition": "below_limit"}
# An agent may call a tool that was given to it; it may pay if it was also given the task by somebody who may.
MODEL = {
    "schema_version": "1.1",
    "type_definitions": [
        {"type": "user"},
        {"type": "agent"},
        {"type": "team", "relations": {"member": {"this": {}}}, "metadata": {"relations": {"member": direct(TYPES["user"])}}},
        {
            "type": "task",
            "relations": {"owner": {"this": {}}, "delegate": {"this": {}}},
            "metadata": {"relations": {"owner": direct(TYPES["user"]), "delegate": direct(TYPES["agent"])}},
        },
        {
            "type": "tool",
            "relations": {
                "task": {"this": {}},
                "can_call": {"this": {}},
                "can_pay": {
                    "intersection": {
                        "child": [
                            {"computedUserset": {"relation": "can_call"}},
                            {"tupleToUserset": {"tupleset": {"relation": "task"}, "computedUserset": {"relation": "delegate"}}},
                        ]
                    }
                },
            },
            "metadata": {
                "relations": {
                    "task": direct({"type": "task"}),
                    "can_call": direct(TYPES["user"], TYPES["agent"], TYPES["team"], LIMITED),
                    "can_pay": direct(),
                }
            },
        },
    ],
    "conditions": {
        "below_limit": {
            "name": "below_limit",
            "expression": "amount < limit",
            "parameters": {"amount": {"type_name": "TYPE_NAME_INT"}, "limit": {"type_name": "TYPE_NAME_INT"}},
        }
    },
}


def key(user, relation, object):
    return {"user": user, "relation": relation, "object": object}


TUPLES = [
    key("user:emma", "owner", "task:rent"),
    key("agent:planner", "delegate", "task:rent"),
    key("task:rent", "task", "tool:pay"),
    key("user:emma", "member", "team:finance"),
    key("team:finance#member", "can_call", "tool:pay"),
    key("agent:planner", "can_call", "tool:pay"),
    key("agent:reader", "can_call", "tool:read"),
    {**key("agent:buyer", "can_call", "tool:pay"), "condition": {"name": "below_limit", "context": {"limit": 100}}},
]
# The span of the agent whose requests these are.
CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def http(address, path, body, method="POST"):
    headers = {"Content-Type": "application/json", "traceparent": CALLER}
    request = urllib.request.Request(f"http://{address}{path}", json.dumps(body).encode(), headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            text = answer.read()
    except urllib.error.HTTPError as refused:
        text = refused.read()
    print(path, text.decode().strip()[:200])
    return text


def part(field, value):
    """A field of protobuf with a length: text, or a message that was encoded."""
    value = value.encode() if isinstance(value, str) else value
    return bytes([field << 3 | 2, len(value)]) + value


def by_grpc(address, store, of):
    """`Check`, by gRPC."""
    message = part(1, store) + part(2, part(1, of["user"]) + part(2, of["relation"]) + part(3, of["object"]))
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary("/openfga.v1.OpenFGAService/Check")
        print("gRPC", call(message, timeout=10, metadata=[("traceparent", CALLER)]))


def ask(address, grpc_address):
    store = json.loads(http(address, "/stores", {"name": "agents"}))["id"]
    at = f"/stores/{store}"
    http(address, f"{at}/authorization-models", MODEL)
    http(address, f"{at}/write", {"writes": {"tuple_keys": TUPLES}})

    def check(of, **more):
        http(address, f"{at}/check", {"tuple_key": of, **more})

    check(key("agent:planner", "can_pay", "tool:pay"))
    check(key("agent:reader", "can_pay", "tool:pay"))
    check(key("user:emma", "can_call", "tool:pay"))
    check(key("team:finance#member", "can_call", "tool:pay"), consistency="HIGHER_CONSISTENCY")
    check(key("agent:buyer", "can_call", "tool:pay"), context={"amount": 50})
    check(key("agent:buyer", "can_call", "tool:pay"), context={"amount": 500})
    check(key("agent:new", "can_call", "tool:read"), contextual_tuples={"tuple_keys": [key("agent:new", "can_call", "tool:read")]})
    # What its condition needs was not told; a relation that the model does not have.
    check(key("agent:buyer", "can_call", "tool:pay"))
    check(key("agent:planner", "can_fly", "tool:pay"))
    by_grpc(grpc_address, store, key("agent:planner", "can_pay", "tool:pay"))
    by_grpc(grpc_address, store, key("agent:reader", "can_pay", "tool:pay"))

    def item(id, of, **more):
        return {"tuple_key": of, "correlation_id": id, **more}

    batch = [
        item("c-0", key("agent:planner", "can_pay", "tool:pay")),
        item("c-1", key("agent:reader", "can_pay", "tool:pay")),
        item("c-2", key("agent:planner", "can_fly", "tool:pay")),
        item("c-3", key("agent:buyer", "can_call", "tool:pay"), context={"amount": 50}),
    ]
    http(address, f"{at}/batch-check", {"checks": batch})
    for path in ["list-objects", "streamed-list-objects"]:
        http(address, f"{at}/{path}", {"type": "tool", "relation": "can_call", "user": "agent:planner"})
    pay = {"type": "tool", "id": "pay"}
    http(address, f"{at}/list-users", {"object": pay, "relation": "can_call", "user_filters": [{"type": "agent"}], "context": {"amount": 50}})
    http(address, f"{at}/expand", {"tuple_key": {"relation": "can_pay", "object": "tool:pay"}})

    def agent(id):
        return {"type": "agent", "id": id}

    read = {"type": "tool", "id": "read"}
    access = f"{at}/access/v1"
    http(address, f"{access}/evaluation", {"subject": agent("planner"), "action": {"name": "can_pay"}, "resource": pay})
    http(address, f"{access}/evaluation", {"subject": agent("reader"), "action": {"name": "can_pay"}, "resource": pay, "context": {"reason": "rent"}})
    several = {"subject": agent("reader"), "action": {"name": "can_call"}, "evaluations": [{"resource": read}, {"resource": pay}, {"action": {"name": "can_fly"}, "resource": pay}]}
    http(address, f"{access}/evaluations", several)
    http(address, f"{access}/evaluations", {**several, "options": {"evaluations_semantic": "deny_on_first_deny"}})
    http(address, f"{access}/search/subject", {"subject": {"type": "agent"}, "action": {"name": "can_pay"}, "resource": pay})


def main():
    openfga, traces, lines = sys.argv[1:4]
    receiver, otlp_at = Receiver(), sys.argv[4] if len(sys.argv) > 4 else free()
    server = grpc.server(concurrent.futures.ThreadPoolExecutor())
    otlp_grpc.add_TraceServiceServicer_to_server(receiver, server)
    if len(sys.argv) <= 4:
        server.add_insecure_port(otlp_at)
        server.start()
    address, grpc_address = free(), free()
    said = subprocess.Popen(
        [openfga, "run", "--http-addr", address, "--grpc-addr", grpc_address, "--metrics-enabled=false", "--log-format=json",
         "--experimentals=authzen", "--trace-enabled", f"--trace-otlp-endpoint={otlp_at}", "--trace-sample-ratio=1"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "NO_PROXY": "*"},
    )
    with concurrent.futures.ThreadPoolExecutor() as pool:
        log = pool.submit(said.stdout.readlines)
        for _ in range(100):
            try:
                urllib.request.urlopen(f"http://{address}/healthz", timeout=1)
                break
            except OSError:
                time.sleep(0.1)
        ask(address, grpc_address)
        said.terminate()
        written = log.result()
    server.stop(5).wait()
    with open(lines, "w") as out:
        out.writelines(line for line in written if '"grpc_req_complete"' in line)
    if len(sys.argv) <= 4:
        with open(traces, "wb") as out:
            out.write(receiver.kept.SerializeToString(deterministic=True))


main()
