"""Records what Anthropic's SDK (PyPI: anthropic) itself exports of its requests and of the tools that it runs,
against the model's server of tests/exporters.

    python make.py traces.pb
"""

import sys
import threading
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[2] / "exporters")]
import fake_model
import recording
from anthropic import Anthropic, beta_tool

provider, spans = recording.provider("assistant")
server = fake_model.ThreadingHTTPServer(("127.0.0.1", 0), fake_model.Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()


@beta_tool
def get_balance(account: str) -> str:
    """What is left on an account.

    Args:
        account: its number
    """
    return "7"


client = Anthropic(
    api_key="none",
    base_url=f"http://127.0.0.1:{server.server_port}",
    open_telemetry={
        "tracer_provider": provider,
        "traces": {"enabled": True, "content_mode": "content"},
        "conversation_id": "conv-1",
    },
)
runner = client.beta.messages.tool_runner(
    model="test", max_tokens=64, tools=[get_balance], messages=[{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
)
for message in runner:
    pass
server.shutdown()
recording.write(spans)
