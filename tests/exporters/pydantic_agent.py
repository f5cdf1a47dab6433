"""pydantic-ai with its own instrumentation: an agent that delegates to another, a tool that
fails, and models that are scripts (FunctionModel, TestModel)."""

from opentelemetry import metrics, trace
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from pydantic_ai import Agent, ModelResponse, RunContext, TextPart, ToolCallPart
from pydantic_ai.models.function import FunctionModel
from pydantic_ai.models.test import TestModel

from emitted import Emitted

# [docs] what the page shows
provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
trace.set_tracer_provider(provider)
metrics.set_meter_provider(MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter())]))
Agent.instrument_all()
# [docs] end

emitted = Emitted()
provider.add_span_processor(emitted)


def script(messages, _):
    asked = [part.tool_name for message in messages for part in message.parts if part.part_kind == "tool-call"]
    if not asked:
        return ModelResponse(parts=[ToolCallPart("ask_helper", {"question": "where is order 7?"}, tool_call_id="call-1")])
    if asked == ["ask_helper"]:
        return ModelResponse(parts=[ToolCallPart("refund", {"order": 7, "amount": 12.5}, tool_call_id="call-2")])
    return ModelResponse(parts=[TextPart("refused")])


helper = Agent(TestModel(), name="helper")
support = Agent(FunctionModel(script), name="support")


@helper.tool_plain
def lookup(order: int) -> str:
    return f"order {order}: shipped"


@support.tool
async def ask_helper(context: RunContext, question: str) -> str:
    return (await helper.run(question, usage=context.usage)).output


@support.tool_plain
def refund(order: int, amount: float) -> str:
    raise PermissionError(f"no refund of {amount} for order {order}")


try:
    support.run_sync("Please refund order 7")
except PermissionError:
    pass
provider.shutdown()
metrics.get_meter_provider().shutdown()
emitted.tell()
