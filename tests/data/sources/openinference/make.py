"""Records what OpenInference's own library (PyPI: openinference-instrumentation) exports, a span of each kind.

    python make.py traces.pb
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import recording
from openinference.instrumentation import OITracer, TraceConfig, using_session, using_user
from opentelemetry.trace import Status, StatusCode

provider, spans = recording.provider("refunds")
tracer = OITracer(provider.get_tracer("openinference.instrumentation.sample"), config=TraceConfig())


@tracer.tool(name="get_weather", description="The weather of a city.")
def get_weather(city: str) -> str:
    return "sunny"


@tracer.tool(name="send_money")
def send_money(account: str) -> str:
    raise ValueError("no such account")


@tracer.chain(name="prepare")
def prepare(text: str) -> str:
    return text.strip()


@tracer.agent(name="planner")
def planner(question: str) -> str:
    prepare(question)
    with tracer.start_as_current_span("lookup", openinference_span_kind="retriever") as span:
        span.set_input("refund policy")
        span.set_attribute("retrieval.documents.0.document.id", "policy.md")
        span.set_status(Status(StatusCode.OK))
    with tracer.start_as_current_span("check", openinference_span_kind="guardrail") as span:
        span.set_status(Status(StatusCode.OK))
    for kind in ["llm", "embedding", "reranker", "evaluator"]:
        with tracer.start_as_current_span(f"a {kind}", openinference_span_kind=kind) as span:
            span.set_attribute("llm.model_name", "test")
            span.set_status(Status(StatusCode.OK))
    try:
        send_money("DE89")
    except ValueError:
        pass
    return get_weather("Paris")


with using_session("s-1"), using_user("emma"):
    planner("What is the weather?")
recording.write(spans)
