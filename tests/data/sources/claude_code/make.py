"""Records what Claude Code (npm: @anthropic-ai/claude-code) exports with its beta traces and its details switched on.

    python make.py CLAUDE traces.pb logs.pb

CLAUDE is its binary. Its model is a script: the main session starts a sub-agent, removes a file (which nobody
allows), calls a tool of an MCP server and uses a skill; the sub-agent lists the files. Needs the package `mcp`.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3] / "exporters"))
import fake_model

WEATHER = '''
from mcp.server import MCPServer
server = MCPServer("weather")
@server.tool()
def get_weather(city: str) -> str:
    """The weather of a city."""
    return "sunny"
server.run()
'''
SKILL = "---\nname: deploy\ndescription: Deploys the site\n---\nSay done.\n"
MAIN = [
    ("toolu_agent", "Agent", {"description": "Look", "prompt": "List the files", "subagent_type": "general-purpose"}),
    ("toolu_rm", "Bash", {"command": "rm a.txt", "description": "Remove a file"}),
    ("toolu_mcp", "mcp__weather__get_weather", {"city": "Paris"}),
    ("toolu_skill", "Skill", {"skill": "deploy"}),
]
SUB = [("toolu_ls", "Bash", {"command": "ls", "description": "List files"})]


def messages(request):
    blocks = [block for message in request["messages"] for block in message["content"] if isinstance(block, dict)]
    answered = any(block.get("type") == "tool_result" for block in blocks)
    is_sub = any("List the files" in block.get("text", "") for block in blocks)
    calls = [] if answered or not request.get("tools") else SUB if is_sub else MAIN
    content = [{"type": "tool_use", "id": id, "name": name, "input": given} for id, name, given in calls]
    return {"id": "msg_1", "type": "message", "role": "assistant", "model": request["model"],
            "content": content or [{"type": "text", "text": "done"}], "stop_reason": "tool_use" if calls else "end_turn",
            "stop_sequence": None, "usage": {"input_tokens": 11, "output_tokens": 7}}


def message_events(answer):
    yield {"type": "message_start", "message": {**answer, "content": [], "stop_reason": None}}
    for index, block in enumerate(answer["content"]):
        if block["type"] == "text":
            start, delta = {"type": "text", "text": ""}, {"type": "text_delta", "text": block["text"]}
        else:
            start = {**block, "input": {}}
            delta = {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
        yield {"type": "content_block_start", "index": index, "content_block": start}
        yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    stop = {"stop_reason": answer["stop_reason"], "stop_sequence": None}
    yield {"type": "message_delta", "delta": stop, "usage": answer["usage"]}
    yield {"type": "message_stop"}


fake_model.messages, fake_model.message_events = messages, message_events
received = {"/v1/traces": b"", "/v1/logs": b""}


class Sink(fake_model.Handler):
    def do_POST(self):
        # Requests of one kind are one when they are put behind each other.
        received[self.path] += self.body()
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()


def serve(handler):
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


with tempfile.TemporaryDirectory() as home:
    work = Path(home, "work")
    skill = work / ".claude/skills/deploy"
    skill.mkdir(parents=True)
    (skill / "SKILL.md").write_text(SKILL)
    (work / "a.txt").write_text("a")
    (work / "weather.py").write_text(WEATHER)
    servers = {"mcpServers": {"weather": {"command": sys.executable, "args": [str(work / "weather.py")]}}}
    hooks = {"hooks": {"PreToolUse": [{"matcher": "mcp__.*", "hooks": [{"type": "command", "command": "true"}]}]}}
    (work / "mcp.json").write_text(json.dumps(servers))
    (work / "settings.json").write_text(json.dumps(hooks))
    environment = {
        "PATH": os.environ["PATH"], "HOME": home, "IS_SANDBOX": "1", "ANTHROPIC_API_KEY": "none",
        "ANTHROPIC_BASE_URL": serve(fake_model.Handler), "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CODE_ENABLE_TELEMETRY": "1", "CLAUDE_CODE_ENHANCED_TELEMETRY_BETA": "1",
        "OTEL_TRACES_EXPORTER": "otlp", "OTEL_LOGS_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_EXPORTER_OTLP_ENDPOINT": serve(Sink), "OTEL_LOG_USER_PROMPTS": "1", "OTEL_LOG_TOOL_DETAILS": "1",
    }
    allowed = ["mcp__weather__get_weather", "Skill", "Agent"]
    asked = ["-p", "Look around", "--mcp-config", "mcp.json", "--settings", "settings.json", "--allowedTools", *allowed]
    subprocess.run([sys.argv[1], *asked], cwd=work, env=environment, timeout=120, check=True)
for path, file in zip(received, sys.argv[2:]):
    Path(file).write_bytes(received[path])
