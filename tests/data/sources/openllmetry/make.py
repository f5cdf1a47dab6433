"""Records what OpenLLMetry's own library (PyPI: traceloop-sdk) exports: workflow, task, agent and tool.

    python make.py traces.pb
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import recording
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from traceloop.sdk import Traceloop
from traceloop.sdk.decorators import agent, task, tool, workflow

spans = InMemorySpanExporter()
Traceloop.init(app_name="refunds", processor=SimpleSpanProcessor(spans), disable_batch=True, telemetry_enabled=False)
Traceloop.set_association_properties({"user_id": "emma", "session_id": "s-1"})


@tool(name="get_balance")
def get_balance(account: str) -> int:
    return 7


@tool(name="send_money")
def send_money(account: str) -> None:
    raise ValueError("no such account")


@task(name="prepare")
def prepare(text: str) -> str:
    return text.strip()


@agent(name="payments")
def payments(question: str) -> int:
    try:
        send_money("DE89")
    except ValueError:
        pass
    return get_balance("DE89")


@workflow(name="refund")
def refund(question: str) -> int:
    return payments(prepare(question))


refund("What is left?")
recording.write(spans)
