"""OpenAI's own client against a server of ours, instrumented by OpenInference or by OpenLLMetry.
With OpenInference also what is not a model call: its decorators for agents, tools, retrievers.

    openai_client.py openinference | openllmetry
"""

import sys

import openai
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

import fake_model
from emitted import Emitted

provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
trace.set_tracer_provider(provider)
emitted = Emitted()
provider.add_span_processor(emitted)

client = openai.OpenAI(base_url=fake_model.start(), api_key="none")
tool = {"type": "function", "function": {"name": "get_balance", "parameters": {"type": "object", "properties": {"account": {"type": "string"}}}}}


def ask():
    client.chat.completions.create(model="gpt-5", messages=[{"role": "user", "content": "my balance?"}], tools=[tool])


if sys.argv[1] == "openllmetry":
    from opentelemetry.instrumentation.openai import OpenAIInstrumentor

    OpenAIInstrumentor().instrument()
    ask()
    client.responses.create(model="gpt-5", input="my balance?")
else:
    from openinference.instrumentation import OITracer, TraceConfig, using_attributes
    from openinference.instrumentation.openai import OpenAIInstrumentor

    OpenAIInstrumentor().instrument()
    tracer = OITracer(trace.get_tracer("bank"), config=TraceConfig())

    @tracer.tool
    def get_balance(account: str) -> str:
        """The balance of an account."""
        return "100"

    @tracer.retriever
    def search(query: str):
        return [{"content": "terms of the bank"}]

    @tracer.agent(name="teller")
    def teller(words: str) -> str:
        search(words)
        ask()
        return get_balance("a")

    with using_attributes(session_id="session-1", user_id="emma"):
        teller("my balance?")
provider.shutdown()
emitted.tell()
