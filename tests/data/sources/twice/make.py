"""Records requests to a model that several instrumentations tell of at once: pydantic-ai's own, OpenLLMetry's and
OpenInference's of OpenAI's client, which it uses.

    python make.py traces.pb
"""

import asyncio
import sys
from pathlib import Path

here = Path(__file__).parent
sys.path[:0] = [str(here.parent), str(here.parents[2] / "exporters")]

import fake_model
from openinference.instrumentation.openai import OpenAIInstrumentor as OpenInference
from opentelemetry import trace
from opentelemetry.instrumentation.openai import OpenAIInstrumentor as OpenLLMetry
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from recording import provider, write

made, spans = provider("bank")
trace.set_tracer_provider(made)
Agent.instrument_all()
OpenLLMetry().instrument()
OpenInference().instrument()

model = OpenAIChatModel("gpt-5", provider=OpenAIProvider(base_url=fake_model.start(), api_key="none"))
agent = Agent(model, name="teller")


@agent.tool_plain
def get_balance(account: str) -> str:
    """The balance of an account."""
    return "100"


asyncio.run(agent.run("my balance?"))
write(spans)
