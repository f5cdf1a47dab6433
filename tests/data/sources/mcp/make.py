"""Records what the `mcp` package (PyPI) itself exports: client and server side of a session.

    python make.py traces.pb

Both sides run in one process, under OpenTelemetry's own SDK and OTLP encoder.
"""

import asyncio
import sys

from mcp.client import Client
from mcp.client._memory import InMemoryTransport
from mcp.server import MCPServer
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

spans = InMemorySpanExporter()
provider = TracerProvider(resource=Resource({"service.name": "weather"}))
provider.add_span_processor(SimpleSpanProcessor(spans))
trace.set_tracer_provider(provider)

server = MCPServer("weather")


@server.tool()
def get_weather(city: str) -> str:
    """The weather of a city."""
    if city == "Atlantis":
        raise ValueError("no such city")
    return "sunny"


@server.resource("weather://stations")
def stations() -> str:
    """All stations."""
    return "Paris"


async def main() -> None:
    async with Client(InMemoryTransport(server)) as client:
        await client.call_tool("get_weather", {"city": "Paris"})
        await client.call_tool("get_weather", {"city": "Atlantis"})
        await client.read_resource("weather://stations")


asyncio.run(main())
with open(sys.argv[1], "wb") as out:
    out.write(encode_spans(spans.get_finished_spans()).SerializeToString())
for span in spans.get_finished_spans():
    print(span.kind, span.name, dict(span.attributes), span.status.status_code, span.instrumentation_scope.name)
