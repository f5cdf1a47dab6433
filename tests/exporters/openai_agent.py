"""openai-agents with a model that is a script: a triage agent hands over to one that pays.
Its traces go out by OpenInference's or by OpenLLMetry's instrumentation.

    openai_agent.py openinference | openllmetry
"""

import asyncio
import os
import sys

os.environ.setdefault("OPENAI_API_KEY", "none")  # never used: no request leaves this process

from agents import Agent, GuardrailFunctionOutput, ModelResponse, Runner, Usage, function_tool, input_guardrail
from agents import set_trace_processors
from agents.models.interface import Model
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseOutputText
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from emitted import Emitted

set_trace_processors([])  # not to OpenAI's own dashboard

# [docs] what the page shows
provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
trace.set_tracer_provider(provider)
if sys.argv[1] == "openinference":
    from openinference.instrumentation.openai_agents import OpenAIAgentsInstrumentor

    OpenAIAgentsInstrumentor().instrument()
else:
    from opentelemetry.instrumentation.openai_agents import OpenAIAgentsInstrumentor

    OpenAIAgentsInstrumentor().instrument()
# [docs] end

emitted = Emitted()
provider.add_span_processor(emitted)


def call(name, arguments, call_id):
    return ResponseFunctionToolCall(type="function_call", name=name, arguments=arguments, call_id=call_id)


def text(words):
    content = ResponseOutputText(type="output_text", text=words, annotations=[])
    return ResponseOutputMessage(type="message", id="m", role="assistant", status="completed", content=[content])


class Script(Model):
    def __init__(self, *answers):
        self.answers = list(answers)

    async def get_response(self, *_, **__):
        return ModelResponse(output=[self.answers.pop(0)], usage=Usage(), response_id=None)

    def stream_response(self, *_, **__):
        raise NotImplementedError


@function_tool
def get_balance(account: str) -> str:
    return "100"


@function_tool
def send_money(to: str, amount: int) -> str:
    raise PermissionError("not allowed")


@input_guardrail
async def polite(context, agent, words):
    return GuardrailFunctionOutput(output_info="fine", tripwire_triggered=False)


payments = Agent(name="payments", tools=[get_balance, send_money], model=Script(
    call("get_balance", '{"account": "a"}', "call-1"), call("send_money", '{"to": "b", "amount": 5}', "call-2"), text("refused")))
triage = Agent(name="triage", handoffs=[payments], input_guardrails=[polite],
               model=Script(call("transfer_to_payments", "{}", "call-0")))

asyncio.run(Runner.run(triage, "pay b five"))
provider.shutdown()
emitted.tell()
