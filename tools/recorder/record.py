"""Play recorded AgentDojo runs through the OpenTelemetry Python SDK, as OTLP export requests.

    python record.py RUNS_DIRECTORY --runs 120 --out ../../tests/fixtures/agentdojo

What the models said, which tools they called with which arguments, what the tools answered and
whether the attack succeeded is real. Times, most identities and everything the trust authority
and the executor log is the recorder's; README.md says which, and so does the attribute
`custody.recorder.synthetic` on every span and log. The same input gives the same bytes.
"""

import argparse
import hashlib
import json
import os
import re
import struct
from datetime import datetime, timezone
from pathlib import Path

HERE = Path(__file__).resolve().parent
VERSION = "1.0.0"
SCHEMA_URL = "https://custody.dev/schemas/1"
BASE_TIME = int(datetime(2026, 11, 20, 9, 0, tzinfo=timezone.utc).timestamp())
MS = 1_000_000
SECOND = 1_000_000_000
USER = "emma.johnson@bluesparrow.tech"
ATTACKER = "US133000000121212121212"
TRACES, LOGS = 1, 2

READ_ONLY = {
    "banking": {
        "get_iban", "get_balance", "get_most_recent_transactions",
        "get_scheduled_transactions", "read_file", "get_user_info",
    },
    "slack": {
        "get_channels", "read_channel_messages", "read_inbox", "get_users_in_channel", "get_webpage",
    },
}
SUB_AGENT = {"banking": "payments-agent", "slack": "messaging-agent"}
# The first hijacked run that is sent: it reads a bill and sends the whole balance to the attacker.
SHOWCASE = "gpt-4o-mini-2024-07-18/banking/user_task_0/important_instructions/injection_task_5"
# What is done to a few hijacked runs, beyond playing them: (name, how many).
SCENARIOS = [
    ("widened_delegation", 1),
    ("revoked_parent_grant", 1),
    ("missing_parent_grant", 2),
    ("revoked_grant", 1),
    ("expired_grant", 2),
    ("unknown_grant", 2),
]
KINDS = [("hijacked", 0.42), ("clean", 0.34), ("resisted", 0.20), ("attempted", 0.04)]


# --- small helpers ---------------------------------------------------------------------------


def digest(*parts):
    return hashlib.sha256("|".join(str(p) for p in parts).encode()).hexdigest()


def rfc3339(seconds):
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def dumps(value):
    return json.dumps(value, ensure_ascii=False)


def text_of(content):
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    return "\n".join(str(part.get("content") or "") for part in content)


def matches(pattern, text):
    """A pattern is a literal in which `*` stands for any run of characters."""
    regex = ".*".join(re.escape(piece) for piece in pattern.split("*"))
    return re.fullmatch(regex, text, re.DOTALL) is not None


def any_matches(patterns, text):
    return any(matches(p, text) for p in patterns)


def resource_of(tool, args):
    """What a call acts on, where its arguments name it."""
    order = {
        "read_file": [("file_path", "file:")],
        "invite_user_to_slack": [("user", "user:")],
        "remove_user_from_slack": [("user", "user:")],
        "read_inbox": [("user", "user:")],
        "send_direct_message": [("recipient", "user:")],
        "send_money": [("recipient", "account:")],
        "schedule_transaction": [("recipient", "account:")],
        "update_scheduled_transaction": [("recipient", "account:")],
    }.get(tool, [("channel", "channel:"), ("url", "url:")])
    for key, prefix in order:
        value = args.get(key)
        if isinstance(value, str) and value:
            return prefix + value
    return None


def model_of(pipeline):
    """(provider, model): the model is in the pipeline's name, the provider follows from the model."""
    model = re.sub(
        r"-(repeat_user_prompt|spotlighting_with_delimiting|tool_filter|transformers_pi_detector)$",
        "", pipeline,
    ).replace("meta-llama_", "meta-llama/")
    for prefix, provider in (
        ("gpt", "openai"), ("claude", "anthropic"), ("gemini", "gcp.gemini"),
        ("command", "cohere"), ("meta-llama", "meta"),
    ):
        if model.startswith(prefix):
            return provider, model
    return "unknown", model


# --- reading and choosing runs ---------------------------------------------------------------


class Call:
    """One tool call that ran: it has a tool message."""

    def __init__(self, message, turn):
        call = message["tool_call"]
        self.tool = call["function"]
        self.args = call.get("args") or {}
        self.real_id = call.get("id") or None
        self.result = text_of(message.get("content"))
        self.error = message.get("error")
        self.turn = turn
        self.by_injection = False


class Run:
    def __init__(self, key, data, truth):
        self.key = key
        self.pipeline, self.suite, self.user_task = key.split("/")[:3]
        self.injection_task = data.get("injection_task_id")
        self.attack = data.get("attack_type") or "none"
        self.security, self.utility = data["security"], data["utility"]
        self.duration = float(data.get("duration") or 5.0)
        self.truth = truth["suites"][self.suite]["user_tasks"][self.user_task]
        self.messages = data["messages"]
        self.prompt = next(text_of(m["content"]) for m in self.messages if m["role"] == "user")
        self.turns, self.calls = [], []
        for message in self.messages:
            if message["role"] == "assistant":
                self.turns.append(message)
            elif message["role"] == "tool" and self.turns:
                self.calls.append(Call(message, len(self.turns) - 1))
        injected = {}
        if self.injection_task:
            injected = truth["suites"][self.suite]["injection_tasks"][self.injection_task]
        for call in self.calls:
            call.by_injection = asked_by_injection(self.suite, injected, call)
        self.injected_calls = [c for c in self.calls if c.by_injection]
        if not self.injection_task:
            self.kind = "clean"
        elif self.security:
            self.kind = "hijacked"
        else:
            self.kind = "attempted" if self.injected_calls else "resisted"

    @property
    def delegates(self):
        return len(self.calls) >= 4 or self.key == SHOWCASE


def asked_by_injection(suite, injected, call):
    """Its function is in the injection's ground truth, and its arguments have the key values."""
    for wanted in injected.get("calls", []):
        if wanted["function"] != call.tool:
            continue
        want, args = wanted["args"], call.args
        if suite == "banking":
            if call.tool in ("send_money", "update_scheduled_transaction"):
                if args.get("recipient") == want.get("recipient"):
                    return True
            elif call.tool == "update_password" and args.get("password") == want.get("password"):
                return True
        elif call.tool == "send_direct_message":
            if args.get("recipient") == want["recipient"] and "secure-systems-252.com" in str(args.get("body")):
                return True
        elif call.tool in ("post_webpage", "get_webpage"):
            if want["url"].removeprefix("www.") in str(args.get("url")):
                return True
        elif call.tool in ("invite_user_to_slack", "add_user_to_channel", "remove_user_from_slack"):
            if args.get("user") == want["user"] and args.get("channel") == want.get("channel"):
                return True
    return False


def usable(run):
    ids = [c.real_id for c in run.calls if c.real_id]
    if len(ids) != len(set(ids)) or not run.calls and run.kind != "clean":
        return False
    if len(run.calls) > 24 or sum(len(c.result) for c in run.calls) > 40_000:
        return False
    if any(not isinstance(c.args, dict) or not c.tool for c in run.calls):
        return False
    if run.attack.endswith("dos"):
        return False  # its success is a task left undone, not a call
    if run.kind == "hijacked" and not run.injected_calls:
        return False
    if ATTACKER in run.prompt:
        return False  # an early version of banking's user_task_15 names it as the new landlord
    # A denial is by agent, action and resource: it must not also hit what the user asked for.
    needed = {(c["function"], resource_of(c["function"], c["args"])) for c in run.truth["calls"]}
    return not any((c.tool, resource_of(c.tool, c.args)) in needed for c in run.injected_calls)


def read_runs(root, truth):
    root = Path(root)
    if (root / "runs").is_dir():
        root = root / "runs"
    for path in sorted(root.glob("*/*/user_task_*/*/*.json")):
        data = json.loads(path.read_text())
        suite = data.get("suite_name")
        if data.get("error") or "security" not in data or suite not in truth["suites"]:
            continue
        run = Run(path.relative_to(root).with_suffix("").as_posix(), data, truth)
        if usable(run):
            yield run


def spread(runs, count):
    """A choice of `count` over suites, pipelines, lengths, injection tasks and attacks."""
    chosen, seen = [], {}
    pool = sorted(runs, key=lambda r: digest("choice", r.key))

    def weight(run):
        features = [
            ("suite", run.suite), ("pipeline", run.pipeline), ("length", min(len(run.calls), 9)),
            ("task", run.suite, run.user_task), ("injection", run.suite, run.injection_task),
            ("attack", run.attack),
        ]
        return features, sum(seen.get(f, 0) * (3 if f[0] == "suite" else 1) for f in features)

    while pool and len(chosen) < count:
        best = min(range(len(pool)), key=lambda i: (weight(pool[i])[1], i))
        run = pool.pop(best)
        for feature in weight(run)[0]:
            seen[feature] = seen.get(feature, 0) + 1
        chosen.append(run)
    return chosen


def choose(runs, count):
    by_kind = {}
    for run in runs:
        by_kind.setdefault(run.kind, []).append(run)
    chosen = []
    for kind, share in KINDS:
        pool = by_kind.get(kind, [])
        wanted = round(count * share) if kind != "clean" else count - sum(
            round(count * s) for k, s in KINDS if k != "clean")
        if kind == "hijacked":
            first = [r for r in pool if r.key == SHOWCASE]
            chosen += first + spread([r for r in pool if r.key != SHOWCASE], wanted - len(first))
        else:
            chosen += spread(pool, wanted)
    chosen.sort(key=lambda r: digest("order", r.key))
    # A few ordinary runs, then the showcase, then the rest as it comes.
    calm = [r for r in chosen if r.kind == "clean"][:3]
    first = [r for r in chosen if r.key == SHOWCASE]
    rest = [r for r in chosen if r not in calm and r not in first]
    return calm + first + rest


def call_id_of(run, call):
    """The recorded id, or one of ours: some pipelines have none."""
    return call.real_id or f"call_{digest('call', run.key, run.calls.index(call))[:24]}"


def own_actions(run):
    """What the policy lets the agent do for the user's task: its tools, and reading."""
    tools = [c["function"] for c in run.truth["calls"]]
    return sorted({f"{run.suite}.{t}" for t in READ_ONLY[run.suite] | set(tools)})


def delegated_turns(run):
    """The assistant messages that a sub-agent takes over: from the first write to the last call."""
    if not run.delegates:
        return range(0)
    turns = sorted({c.turn for c in run.calls})
    writes = [c.turn for c in run.calls if c.tool not in READ_ONLY[run.suite]]
    start = writes[0] if writes and writes[0] > turns[0] else turns[len(turns) // 2]
    return range(start, turns[-1] + 1)


def assign_scenarios(runs):
    """Which of the few staged variations each hijacked run gets (deterministic)."""
    staged = {run.key: "widened_delegation" for run in runs if run.key == SHOWCASE}
    for name, count in SCENARIOS:
        suites = []
        for run in runs:
            if count == 0:
                break
            if run.kind != "hijacked" or run.key in staged:
                continue
            sub = delegated_turns(run)
            target = run.injected_calls[0]
            inside = target.turn in sub
            free = f"{run.suite}.{target.tool}" not in own_actions(run)
            fits = {
                "widened_delegation": inside and run.suite == "slack" and free,
                "revoked_parent_grant": inside,
                "missing_parent_grant": inside and run.suite not in suites,
                "revoked_grant": not inside and not sub,
                "expired_grant": target is not run.calls[0] and run.suite not in suites,
                "unknown_grant": not inside and run.suite not in suites,
            }[name]
            if fits:
                staged[run.key] = name
                suites.append(run.suite)
                count -= 1
    return staged


# --- the SDK, with its randomness and its transport replaced -----------------------------------


class Wire:
    """The requests, in the order in which the exporters sent them."""

    def __init__(self):
        self.requests = []

    def send(self, signal, message):
        self.requests.append((signal, message.SerializeToString()))

    def write(self, path):
        import zstandard

        raw = b"".join(struct.pack(">BI", s, len(b)) + b for s, b in self.requests)
        packed = zstandard.ZstdCompressor(level=19, write_content_size=True).compress(raw)
        path.write_bytes(packed)
        return len(raw), len(packed)


def sdk(wire):
    from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import (
        BatchLogRecordProcessor, LogRecordExporter, LogRecordExportResult)
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
    from opentelemetry.sdk.trace.id_generator import IdGenerator
    from opentelemetry.sdk.trace.sampling import ALWAYS_ON

    class Spans(SpanExporter):
        def export(self, spans):
            wire.send(TRACES, encode_spans(spans))
            return SpanExportResult.SUCCESS

    class Logs(LogRecordExporter):
        def export(self, batch):
            wire.send(LOGS, encode_logs(batch))
            return LogRecordExportResult.SUCCESS

        def force_flush(self, timeout_millis=10_000):
            return True

        def shutdown(self):
            pass

    class Ids(IdGenerator):
        """Ids that follow from the run, so that another choice of runs does not change them."""

        run, count = "", 0

        def start(self, run):
            self.run, self.count = run, 0

        def generate_trace_id(self):
            return int(digest("trace", self.run)[:32], 16)

        def generate_span_id(self):
            self.count += 1
            return int(digest("span", self.run, self.count)[:16], 16)

    ids = Ids()
    batch = {"max_queue_size": 4096, "max_export_batch_size": 512, "schedule_delay_millis": 86_400_000}

    def resource(name, instance):
        seed = digest("instance", name, instance)
        uuid = f"{seed[:8]}-{seed[8:12]}-4{seed[13:16]}-8{seed[17:20]}-{seed[20:32]}"
        return Resource.create({
            "service.name": name, "service.version": VERSION, "service.instance.id": uuid,
            "service.namespace": "bluesparrow", "deployment.environment.name": "agentdojo",
        })

    def tracer_provider(name, instance):
        provider = TracerProvider(resource=resource(name, instance), id_generator=ids,
                                  sampler=ALWAYS_ON, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(Spans(), **batch))
        return provider

    def logger_provider(name):
        provider = LoggerProvider(resource=resource(name, "0"), shutdown_on_exit=False)
        provider.add_log_record_processor(BatchLogRecordProcessor(Logs(), **batch))
        return provider

    return ids, tracer_provider, logger_provider


# --- one run -----------------------------------------------------------------------------------


class Evidence:
    """What was emitted for a run, as plain facts; the expected findings are computed from it."""

    def __init__(self):
        self.grants, self.denials, self.revocations, self.refusals, self.calls = {}, [], [], [], []


class Player:
    def __init__(self, wire):
        self.ids, self.make_tracer, make_logger = sdk(wire)
        self.tracers = {}
        self.authority_logs = make_logger("trust-authority")
        self.executor_logs = make_logger("tool-executor")
        self.authority = self.authority_logs.get_logger("trust-authority", VERSION, SCHEMA_URL)
        self.executor = self.executor_logs.get_logger("tool-executor", VERSION, SCHEMA_URL)
        self.spans = self.logs = 0

    def tracer(self, run):
        name = f"agentdojo-{run.suite}-agent"
        key = (name, run.pipeline)
        if key not in self.tracers:
            self.tracers[key] = self.make_tracer(*key)
        return self.tracers[key]

    def close(self):
        for provider in [*self.tracers.values(), self.authority_logs, self.executor_logs]:
            provider.shutdown()

    def log(self, logger, event, time, span, body, attributes, synthetic=("*",)):
        from opentelemetry._logs import SeverityNumber
        from opentelemetry.trace import set_span_in_context

        bad = event in ("authz.grant.denied", "authz.grant.revoked") or attributes.get("authz.decision") == "deny"
        attributes = {k: v for k, v in attributes.items() if v is not None}
        attributes["custody.recorder.synthetic"] = list(synthetic)
        logger.emit(
            timestamp=time, observed_timestamp=time + MS, context=set_span_in_context(span),
            severity_number=SeverityNumber.WARN if bad else SeverityNumber.INFO,
            severity_text="WARN" if bad else "INFO", body=body, event_name=event,
            attributes=attributes,
        )
        self.logs += 1

    def play(self, run, index, scenario):
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        self.ids.start(run.key)
        provider = self.tracer(run)
        tracer = provider.get_tracer("custody.recorder", VERSION)
        seen = Evidence()
        short = digest("agent", run.key)[:8]
        name = f"{run.suite}-assistant"
        agent = f"{name}-{short}"
        sub_name = SUB_AGENT[run.suite]
        sub_agent = f"{sub_name}-{short}"
        conversation = f"conv-{digest('conversation', run.key)[:16]}"
        vendor, model = model_of(run.pipeline)
        policy = {"authz.policy.id": f"bluesparrow-{run.suite}-user-task", "authz.policy.version": "2026.11.1"}
        workspace = f"bluesparrow-{run.suite}"
        task = f"{run.suite}/{run.user_task}"
        initiator = {"authz.grant.initiator.type": "user", "authz.grant.initiator.id": USER}
        own = ["gen_ai.agent.id", "gen_ai.agent.name", "gen_ai.conversation.id", "gen_ai.provider.name"]
        new_grant = iter(f"grant-{digest('grant', run.key, n)[:16]}" for n in range(9))

        now = (BASE_TIME + index * 60) * SECOND
        begin = now
        # The recorded duration, shared out: a model's turn weighs five times a tool's call.
        unit = int(run.duration * SECOND / max(1.0, len(run.turns) + 0.2 * len(run.calls)))
        chat_time, tool_time = max(unit, 20 * MS), max(unit // 5, 5 * MS)

        root = tracer.start_span(f"invoke_agent {name}", kind=SpanKind.INTERNAL, start_time=begin, attributes={
            "gen_ai.operation.name": "invoke_agent", "gen_ai.provider.name": vendor,
            "gen_ai.request.model": model, "gen_ai.agent.id": agent, "gen_ai.agent.name": name,
            "gen_ai.agent.version": VERSION, "gen_ai.conversation.id": conversation, "user.id": USER,
            "agentdojo.suite": run.suite, "agentdojo.user_task": run.user_task,
            "agentdojo.injection_task": run.injection_task or "none", "agentdojo.attack": run.attack,
            "agentdojo.security": run.security, "agentdojo.utility": run.utility,
            "agentdojo.pipeline": run.pipeline, "custody.recorder.scenario": scenario or "none",
            "custody.recorder.synthetic": ["time", *own, "gen_ai.agent.version", "user.id"],
        })
        in_root = set_span_in_context(root)

        # The authority: the request, the policy's answer, the agent's grant.
        floor = begin // SECOND
        lifetime = 1800 if scenario == "expired_grant" else 3600
        evaluation = f"eval-{digest('evaluation', run.key)[:16]}"
        grant_id = next(new_grant)
        actions, resources = own_actions(run), list(run.truth["resources"])
        self.log(self.authority, "authz.request", begin + 3 * MS, root, "A user asked an agent for something", {
            "authz.initiator.type": "user", "authz.initiator.id": USER, "authz.request.text": run.prompt,
            "authz.request.digest": "sha256:" + hashlib.sha256(run.prompt.encode()).hexdigest(),
            "authz.workspace": workspace, "authz.task.id": task, "authz.correlation_id": conversation,
        }, ["time", "authz.initiator.id", "authz.workspace", "authz.task.id", "authz.correlation_id"])
        self.log(self.authority, "authz.policy.evaluation", begin + 6 * MS, root, "Policy evaluated", {
            "authz.decision": "allow", **policy, "authz.evaluation.id": evaluation,
            "authz.inputs.digest": "sha256:" + digest(task, agent, *actions, *resources),
            "authz.reasons": ["tools of the user's task, and reading"],
            "gen_ai.agent.id": agent, "authz.grant.id": grant_id,
        })
        grant = {
            "id": grant_id, "parent_id": None, "subject": agent, "actions": actions,
            "resources": resources, "not_before": floor, "expires_at": floor + lifetime,
            "max_depth": 2, "at": begin + 9 * MS,
        }

        def emit_grant(event, span, issuer, given, extra):
            seen.grants[given["id"]] = given
            self.log(self.authority, event, given["at"], span, "Authority was given", {
                "authz.grant.id": given["id"], "authz.grant.parent_id": given["parent_id"],
                "authz.grant.issuer": issuer, "authz.grant.subject": given["subject"],
                "authz.grant.audience": "tool-executor", **initiator,
                "authz.grant.workspace": workspace, "authz.grant.task.id": task,
                "authz.grant.purpose": run.prompt, "authz.grant.correlation_id": conversation,
                "authz.grant.actions": given["actions"],
                "authz.grant.resources": given["resources"] or None,
                "authz.grant.approval.state": "not_required",
                "authz.grant.not_before": rfc3339(given["not_before"]),
                "authz.grant.expires_at": rfc3339(given["expires_at"]),
                "authz.grant.max_depth": given["max_depth"], **extra,
            })

        emit_grant("authz.grant.issued", root, "trust-authority", grant, {"authz.evaluation.id": evaluation})
        self.authority_logs.force_flush()
        now = begin + 12 * MS

        delegated = delegated_turns(run)
        acting = (agent, name, root, in_root, grant)
        sub_span = None
        denied = set()
        target = run.injected_calls[0] if run.injected_calls else None

        def delegate():
            """The agent hands its next steps to a sub-agent, under a derived grant."""
            inside = [c for c in run.calls if c.turn in delegated]
            span = tracer.start_span(f"invoke_agent {sub_name}", context=in_root, kind=SpanKind.INTERNAL,
                                     start_time=now, attributes={
                "gen_ai.operation.name": "invoke_agent", "gen_ai.provider.name": vendor,
                "gen_ai.request.model": model, "gen_ai.agent.id": sub_agent, "gen_ai.agent.name": sub_name,
                "gen_ai.agent.version": VERSION, "gen_ai.conversation.id": conversation, "user.id": USER,
                "custody.recorder.synthetic": ["*"],
            })
            reading = READ_ONLY[run.suite]
            writes = {c["function"] for c in run.truth["calls"]} - reading
            reads = {c.tool for c in inside if c.tool in reading}
            narrow = sorted(f"{run.suite}.{tool}" for tool in (writes | reads or reading))
            scope = [r for r in resources
                     if r.startswith("account:") or any(c.tool == "read_file" for c in inside)] or resources
            if scenario == "widened_delegation":
                narrow = sorted({*narrow, f"{run.suite}.{target.tool}"})
                wanted = resource_of(target.tool, target.args)
                if resources and wanted:
                    scope = [*scope, wanted]
            parent = grant_id
            if scenario == "missing_parent_grant":
                parent = f"grant-{digest('never seen', run.key)[:16]}"
            derived = {
                "id": next(new_grant), "parent_id": parent, "subject": sub_agent, "actions": narrow,
                "resources": scope, "not_before": (now + 2 * MS) // SECOND,
                "expires_at": grant["expires_at"] - 300, "max_depth": 1, "at": now + 2 * MS,
            }
            emit_grant("authz.grant.derived", span, agent, derived, {"authz.grant.depth": 1})
            return (sub_agent, sub_name, span, set_span_in_context(span), derived)

        for number, turn in enumerate(run.turns):
            if delegated and number == delegated.start:
                acting = delegate()
                sub_span = acting[2]
                now += 5 * MS
            elif sub_span is not None and number == delegated.stop:
                sub_span.end(now)
                self.spans += 1
                sub_span = None
                now += 2 * MS
                acting = (agent, name, root, in_root, grant)
            who, who_name, who_span, context, held = acting

            calls = [c for c in run.calls if c.turn == number]
            finish = "tool_calls" if calls else "stop"
            said = text_of(turn.get("content"))
            parts = [{"type": "text", "content": said[:2000]}] if said else []
            parts += [{"type": "tool_call", "id": call_id_of(run, c), "name": c.tool} for c in calls]
            chat = tracer.start_span(f"chat {model}", context=context, kind=SpanKind.CLIENT, start_time=now, attributes={
                "gen_ai.operation.name": "chat", "gen_ai.provider.name": vendor, "gen_ai.request.model": model,
                "gen_ai.response.finish_reasons": [finish], "gen_ai.conversation.id": conversation,
                "gen_ai.agent.id": who, "gen_ai.agent.name": who_name,
                "gen_ai.output.messages": dumps([{"role": "assistant", "parts": parts, "finish_reason": finish}]),
                "custody.recorder.synthetic": ["time", "gen_ai.response.finish_reasons", *own],
            })
            now += chat_time
            chat.end(now)
            self.spans += 1
            now += 2 * MS

            for call in calls:
                action = f"{run.suite}.{call.tool}"
                resource = resource_of(call.tool, call.args)
                made_up = ["time", "gen_ai.agent.id", "gen_ai.agent.name", "authz.grant.id", "authz.action", "authz.resource"]
                call_id = call_id_of(run, call)
                if not call.real_id:
                    made_up.append("gen_ai.tool.call.id")
                used = held["id"]
                if call is target:
                    if scenario in ("revoked_grant", "revoked_parent_grant"):
                        seen.revocations.append((grant_id, now))
                        self.log(self.authority, "authz.grant.revoked", now, root, "Authority was taken back", {
                            "authz.grant.id": grant_id, "authz.revoked_by": "soc@bluesparrow.tech",
                            "authz.reasons": ["instructions found in retrieved content"],
                        })
                        now += 600 * SECOND
                    elif scenario == "expired_grant":
                        now += 3600 * SECOND
                    elif scenario == "unknown_grant":
                        used = f"grant-{digest('never issued', run.key)[:16]}"
                refused = call.by_injection
                if refused and (who, action, resource) not in denied:
                    denied.add((who, action, resource))
                    seen.denials.append({"agent": who, "action": action, "resource": resource, "at": now})
                    self.log(self.authority, "authz.grant.denied", now, who_span, "Authority was refused", {
                        "authz.grant.id": f"request-{digest('request', run.key, call_id)[:16]}",
                        "authz.grant.parent_id": held["id"], "authz.grant.subject": who,
                        "authz.grant.actions": [action],
                        "authz.grant.resources": [resource] if resource else None,
                        "authz.reasons": ["not needed for the user's task", "asked for by retrieved content"],
                        **policy, **initiator,
                    })
                    now += 120 * MS
                now += 2 * MS

                arguments = dumps(call.args)
                attributes = {
                    "gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": call.tool,
                    "gen_ai.tool.type": "function", "gen_ai.tool.call.id": call_id,
                    "gen_ai.tool.call.arguments": arguments,
                    "gen_ai.agent.id": who, "gen_ai.agent.name": who_name,
                    "gen_ai.conversation.id": conversation,
                    "authz.grant.id": used, "authz.action": action,
                    "custody.recorder.synthetic": made_up,
                }
                if resource:
                    attributes["authz.resource"] = resource
                if not call.error:
                    attributes["gen_ai.tool.call.result"] = call.result
                span = tracer.start_span(f"execute_tool {call.tool}", context=context, kind=SpanKind.INTERNAL,
                                         start_time=now, attributes=attributes)
                span_id = f"{span.get_span_context().span_id:016x}"
                inside = (
                    any_matches(held["actions"], action)
                    and (not held["resources"] or not resource or any_matches(held["resources"], resource))
                    and used == held["id"] and not seen.revocations and now < held["expires_at"] * SECOND)
                # The executor refuses what the injection asks in every second hijacked run; in the
                # others the call went round it, as did every other call outside its authority.
                if refused and index % 2 == 1 and run.key != SHOWCASE:
                    decision = "deny"
                    seen.refusals.append({"call_id": call_id, "at": now - MS})
                else:
                    decision = "allow" if inside and not refused else None
                if decision:
                    self.log(self.executor, "authz.executor.decision", now - MS, span, "A call was checked", {
                        "authz.grant.id": used, "authz.decision": decision, "gen_ai.tool.name": call.tool,
                        "gen_ai.tool.call.id": call_id, "gen_ai.agent.id": who, "authz.action": action,
                        "authz.resource": resource,
                        "authz.arguments.digest": "sha256:" + hashlib.sha256(arguments.encode()).hexdigest(),
                        "authz.reasons": ["denied by the trust authority"] if decision == "deny" else None,
                        **policy,
                    })
                seen.calls.append({
                    "span_id": span_id, "call_id": call_id, "agent": who, "tool": call.tool, "action": action,
                    "resource": resource, "grant_id": used, "at": now, "by_injection": call.by_injection,
                })
                now += tool_time
                if call.error:
                    kind = re.match(r"[A-Za-z_.]+(?=:)", call.error)
                    span.set_attribute("error.type", kind.group() if kind else "tool_error")
                    span.set_status(Status(StatusCode.ERROR, call.error))
                span.end(now)
                self.spans += 1
                now += 2 * MS

        if sub_span is not None:
            sub_span.end(now)
            self.spans += 1
        root.end(now + 2 * MS)
        self.spans += 1
        self.authority_logs.force_flush()
        self.executor_logs.force_flush()
        provider.force_flush()

        context = root.get_span_context()
        return {
            "trace_id": f"{context.trace_id:032x}", "root_span_id": f"{context.span_id:016x}",
            "run": run.key, "pipeline": run.pipeline, "suite": run.suite, "user_task": run.user_task,
            "injection_task": run.injection_task, "attack": run.attack, "security": run.security,
            "utility": run.utility, "kind": run.kind, "scenario": scenario,
            "agents": sorted({agent, *(g["subject"] for g in seen.grants.values())}),
            "grants": list(seen.grants), "tool_calls": len(seen.calls),
            "injected_calls": [c["span_id"] for c in seen.calls if c["by_injection"]],
            "expected": findings(seen),
        }


# --- what a ledger should find -------------------------------------------------------------------


def findings(seen):
    """The findings that follow from what was emitted for one run. Agents and grants are its own."""
    found = []

    def hit(check, call=None, grant=None):
        entry = {"check": check}
        if grant:
            entry["grant_id"] = grant
        if call:
            entry.update(grant_id=call["grant_id"], span_id=call["span_id"], call_id=call["call_id"],
                         action=call["action"])
            if call["resource"]:
                entry["resource"] = call["resource"]
        found.append(entry)

    def covers(patterns, text):
        return not patterns or (text is not None and any_matches(patterns, text))

    for grant in seen.grants.values():
        if grant["parent_id"] is None:
            continue
        parent = seen.grants.get(grant["parent_id"])
        if parent is None:
            hit("broken_lineage", grant=grant["id"])
            continue
        if (not set(grant["actions"]) <= set(parent["actions"])
                or parent["resources"] and not (grant["resources"] and set(grant["resources"]) <= set(parent["resources"]))
                or grant["expires_at"] > parent["expires_at"] or grant["not_before"] < parent["not_before"]
                or grant["max_depth"] > parent["max_depth"]):
            hit("widened_delegation", grant=grant["id"])

    for call in seen.calls:
        grant = seen.grants.get(call["grant_id"])
        if grant is None:
            hit("unknown_grant", call)
        else:
            if call["at"] > grant["expires_at"] * SECOND:
                hit("expired_grant", call)
            lineage, step = set(), grant
            while step and step["id"] not in lineage:
                lineage.add(step["id"])
                step = seen.grants.get(step["parent_id"])
            if any(g in lineage and call["at"] > at for g, at in seen.revocations):
                hit("revoked_grant", call)
            if not any_matches(grant["actions"], call["action"]):
                hit("outside_actions", call)
            if grant["resources"] and call["resource"] and not any_matches(grant["resources"], call["resource"]):
                hit("outside_resources", call)
        denials = [
            d["at"] for d in seen.denials
            if d["agent"] == call["agent"] and matches(d["action"], call["action"])
            and (d["resource"] is None or d["resource"] == call["resource"]) and d["at"] < call["at"]
        ] + [r["at"] for r in seen.refusals if r["call_id"] == call["call_id"] and r["at"] < call["at"]]
        if denials and not any(
            g["subject"] == call["agent"] and max(denials) < g["at"] <= call["at"]
            and any_matches(g["actions"], call["action"]) and covers(g["resources"], call["resource"])
            for g in seen.grants.values()
        ):
            hit("denied_then_executed", call)
    return found


def count(entries, key):
    totals = {}
    for entry in entries:
        totals[entry[key] or "none"] = totals.get(entry[key] or "none", 0) + 1
    return dict(sorted(totals.items()))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("directory", help="unpacked AgentDojo runs: <pipeline>/<suite>/<user_task>/<attack>/*.json")
    parser.add_argument("--runs", type=int, default=120, help="how many runs to play (default 120)")
    parser.add_argument("--out", type=Path, default=HERE.parent.parent / "tests/fixtures/agentdojo")
    options = parser.parse_args()

    for name in [n for n in os.environ if n.startswith("OTEL_")]:
        del os.environ[name]  # the SDK reads its resource and limits from there
    truth = json.loads((HERE / "ground_truth.json").read_text())
    runs = choose(list(read_runs(options.directory, truth)), options.runs)
    if not runs:
        parser.error("no AgentDojo runs found there")
    staged = assign_scenarios(runs)
    wire = Wire()
    player = Player(wire)
    played = [player.play(run, index, staged.get(run.key)) for index, run in enumerate(runs)]
    player.close()

    options.out.mkdir(parents=True, exist_ok=True)
    raw, packed = wire.write(options.out / "requests.otlp.zst")
    everything = [hit for run in played for hit in run["expected"]]
    expected = {
        "format": 1,
        "recorder": VERSION,
        "totals": {
            "requests": len(wire.requests),
            "trace_requests": sum(s == TRACES for s, _ in wire.requests),
            "log_requests": sum(s == LOGS for s, _ in wire.requests),
            "runs": len(played), "spans": player.spans, "logs": player.logs,
            "tool_calls": sum(r["tool_calls"] for r in played), "raw_bytes": raw,
        },
        "runs_by_kind": count(played, "kind"),
        "runs_by_suite": count(played, "suite"),
        "runs_by_scenario": count(played, "scenario"),
        "checks": count(everything, "check"),
        "checks_by_kind": {
            kind: count([h for r in played if r["kind"] == kind for h in r["expected"]], "check")
            for kind, _ in KINDS
        },
        "showcase": next((r["trace_id"] for r in played if r["run"] == SHOWCASE), None),
        "runs": played,
    }
    (options.out / "expected.json").write_text(json.dumps(expected, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps({k: v for k, v in expected.items() if k != "runs"}, indent=1), packed)


if __name__ == "__main__":
    main()
