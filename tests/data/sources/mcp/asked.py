"""Records what the `mcp` package (PyPI) exports where a server asks back: for a person's answer, and for the model's.

    python asked.py asked_traces.pb

Both sides run in one process and speak the protocol with sessions. Who the user is travels as W3C baggage in `_meta`,
and a span processor as OpenTelemetry's `BaggageSpanProcessor` makes attributes of it.
"""

import asyncio
import sys

import mcp_types as types
from mcp.client import Client
from mcp.client._memory import InMemoryTransport
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from opentelemetry import baggage, context, trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import BaseModel


class Baggage(SpanProcessor):
    def on_start(self, span, parent_context=None):
        for key, value in baggage.get_all(parent_context).items():
            span.set_attribute(key, value)


spans = InMemorySpanExporter()
provider = TracerProvider(resource=Resource({"service.name": "files"}))
provider.add_span_processor(Baggage())
provider.add_span_processor(SimpleSpanProcessor(spans))
trace.set_tracer_provider(provider)

server = MCPServer("files")


class Sure(BaseModel):
    sure: bool


@server.tool()
async def delete(path: str, ctx: Context) -> str:
    """Deletes a file."""
    answer = await ctx.elicit(f"Delete {path}?", Sure)
    said = types.SamplingMessage(role="user", content=types.TextContent(type="text", text="Say something kind"))
    words = await ctx.session.create_message([said], max_tokens=10)
    return f"{answer.action} {words.content.text}"


async def asked(_, params):
    return types.ElicitResult(action="accept", content={"sure": True})


async def sampled(_, params):
    return types.CreateMessageResult(role="assistant", content=types.TextContent(type="text", text="Well done"), model="m")


async def main() -> None:
    context.attach(baggage.set_baggage("user.id", "emma"))
    transport = InMemoryTransport(server)
    async with Client(transport, mode="legacy", elicitation_callback=asked, sampling_callback=sampled) as client:
        print(await client.call_tool("delete", {"path": "a.txt"}))


asyncio.run(main())
with open(sys.argv[1], "wb") as out:
    out.write(encode_spans(spans.get_finished_spans()).SerializeToString())
for span in spans.get_finished_spans():
    print(span.kind, span.name, dict(span.attributes), span.status.status_code, span.instrumentation_scope.name)
