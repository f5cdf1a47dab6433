"""Records what the A2A SDK (PyPI: a2a-sdk) itself exports and says: a server that gets two messages, one of
which somebody must authorise.

    python make.py traces.pb tasks.json

Of its spans those of messages are kept; the others tell of its queues.
"""

import asyncio
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import recording
from opentelemetry import trace

provider, spans = recording.provider("payments")
trace.set_tracer_provider(provider)

from a2a.server.agent_execution import AgentExecutor
from a2a.server.context import ServerCallContext
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.tasks import InMemoryTaskStore, TaskUpdater
from a2a.types import AgentCard, Message, Part, Role, SendMessageRequest, Task, TaskState, TaskStatus
from google.protobuf.json_format import MessageToDict


class Executor(AgentExecutor):
    async def execute(self, context, queue):
        status = TaskStatus(state=TaskState.TASK_STATE_SUBMITTED)
        await queue.enqueue_event(Task(id=context.task_id, context_id=context.context_id, status=status))
        updater = TaskUpdater(queue, context.task_id, context.context_id)
        if "pay" in context.get_user_input():
            await updater.requires_auth(updater.new_agent_message([Part(text="May I pay?")]))
        elif "steal" in context.get_user_input():
            await updater.reject()
        else:
            await updater.complete()

    async def cancel(self, context, queue):
        pass


async def main():
    card = AgentCard(name="payments", description="Pays", version="1")
    handler = DefaultRequestHandler(agent_executor=Executor(), task_store=InMemoryTaskStore(), agent_card=card)
    tasks = []
    for text in ["hello", "pay 50", "steal 50"]:
        message = Message(message_id=f"m-{text[:3]}", role=Role.ROLE_USER, parts=[Part(text=text)])
        tasks.append(await handler.on_message_send(SendMessageRequest(message=message), ServerCallContext()))
    with open(sys.argv[2], "w") as out:
        json.dump([MessageToDict(task) for task in tasks], out, indent=1)
        out.write("\n")


asyncio.run(main())
recording.write(spans, keep=lambda span: span.name.endswith("on_message_send"))
