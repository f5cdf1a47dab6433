"""Records what `fastmcp-tasks` and `fastmcp-slim` (PyPI) export of calls that run as tasks: one that is waited for, one
that asks a person, one that fails and one that is cancelled.

    python tasks.py tasks_traces.pb

Client, server and worker run in one process and speak the protocol in memory.
"""

import asyncio
import sys

import mcp_types as types
from fastmcp import Client, Context, FastMCP
from fastmcp_tasks import TasksExtension, call_tool_task
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

spans = InMemorySpanExporter()
provider = TracerProvider(resource=Resource({"service.name": "reports"}))
provider.add_span_processor(SimpleSpanProcessor(spans))
trace.set_tracer_provider(provider)

server = FastMCP("reports")
server.add_extension(TasksExtension(worker_name="worker"))


@server.tool(task=True)
async def report(year: int) -> str:
    """Writes a report."""
    await asyncio.sleep(0.05)
    return f"report of {year}"


@server.tool(task=True)
async def broken(year: int) -> str:
    """Fails."""
    raise ValueError("no such year")


@server.tool(task=True)
async def delete(path: str, ctx: Context) -> str | types.InputRequiredResult:
    """Deletes a file, if somebody is sure."""
    if ctx.input_responses:
        return ctx.input_responses["sure"].action
    schema = {"type": "object", "properties": {"sure": {"type": "boolean"}}}
    question = types.ElicitRequestFormParams(message=f"Delete {path}?", requested_schema=schema)
    return types.InputRequiredResult(input_requests={"sure": types.ElicitRequest(params=question)})


@server.tool(task=True)
async def endless() -> str:
    """Never ends."""
    await asyncio.sleep(3600)
    return ""


async def asked(message, response_type, params, context):
    return {"sure": True}


async def main() -> None:
    async with Client(server, elicitation_handler=asked) as client:
        print(await client.call_tool("report", {"year": 2026}))
        print(await client.call_tool("delete", {"path": "a.txt"}))
        try:
            print(await client.call_tool("broken", {"year": 1}))
        except Exception as error:
            print(repr(error))
        task = await call_tool_task(client, "endless", {})
        await task.status()
        await task.cancel()


asyncio.run(main())
with open(sys.argv[1], "wb") as out:
    out.write(encode_spans(spans.get_finished_spans()).SerializeToString())
for span in spans.get_finished_spans():
    parent = span.parent.span_id if span.parent else 0
    print(span.kind.name, span.name, f"{span.context.span_id:x} < {parent:x}", dict(span.attributes), [f"{l.context.span_id:x}" for l in span.links], span.status.status_code.name, span.instrumentation_scope.name)
