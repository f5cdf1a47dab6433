"""A model's server that answers from a script, in a thread of this process or on its own:

    fake_model.py [PORT]

It speaks OpenAI's chat completions and responses, Anthropic's messages and Gemini's
generateContent, the last three also as server-sent events. It first calls a tool that the
request offers and that it knows the arguments of, then says "done".
"""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
RESPONSES_USAGE = {
    "input_tokens": 11, "output_tokens": 7, "total_tokens": 18,
    "input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0},
}
# What it calls, by the name of the tool; the first that a request offers and has not had an answer to.
ARGUMENTS = {
    "get_balance": {"account": "a"},
    "exec_command": {"cmd": "ls"},
    "shell": {"command": ["ls"]},
    "shell_command": {"command": "ls"},
    "Bash": {"command": "ls", "description": "List files"},
    "run_shell_command": {"command": "ls", "description": "List files"},
}


def wanted(tools):
    names = [tool.get("name") or tool.get("function", {}).get("name") for tool in tools or []]
    return next((name for name in names if name in ARGUMENTS), None)


def chat(request):
    tool = wanted(request.get("tools"))
    answered = any(message["role"] == "tool" for message in request["messages"])
    message = {"role": "assistant", "content": "done", "refusal": None}
    if tool and not answered:
        function = {"name": tool, "arguments": json.dumps(ARGUMENTS[tool])}
        message.update(content=None, tool_calls=[{"id": "call_1", "type": "function", "function": function}])
    reason = "tool_calls" if "tool_calls" in message else "stop"
    return {"id": "chatcmpl-1", "object": "chat.completion", "created": 1_700_000_000, "model": request["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": reason, "logprobs": None}], "usage": USAGE}


def response(request):
    tool = wanted(request.get("tools"))
    answered = any(item.get("type") == "function_call_output" for item in request["input"] if isinstance(item, dict))
    item = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
            "content": [{"type": "output_text", "text": "done", "annotations": []}]}
    if tool and not answered:
        item = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": tool, "status": "completed",
                "arguments": json.dumps(ARGUMENTS[tool])}
    return {"id": "resp_1", "object": "response", "created_at": 1_700_000_000, "status": "completed",
            "model": request["model"], "output": [item], "parallel_tool_calls": False, "tool_choice": "auto",
            "tools": [], "usage": RESPONSES_USAGE}


def response_events(answer):
    item = answer["output"][0]
    yield {"type": "response.created", "response": {**answer, "status": "in_progress", "output": []}}
    yield {"type": "response.output_item.added", "output_index": 0, "item": item}
    yield {"type": "response.output_item.done", "output_index": 0, "item": item}
    yield {"type": "response.completed", "response": answer}


def messages(request):
    tool = wanted(request.get("tools"))
    blocks = [b for m in request["messages"] for b in m["content"] if isinstance(b, dict)]
    answered = any(block.get("type") == "tool_result" for block in blocks)
    content, reason = {"type": "text", "text": "done"}, "end_turn"
    if tool and not answered:
        content, reason = {"type": "tool_use", "id": "toolu_1", "name": tool, "input": ARGUMENTS[tool]}, "tool_use"
    return {"id": "msg_1", "type": "message", "role": "assistant", "model": request["model"], "content": [content],
            "stop_reason": reason, "stop_sequence": None, "usage": {"input_tokens": 11, "output_tokens": 7}}


def message_events(answer):
    block = answer["content"][0]
    yield {"type": "message_start", "message": {**answer, "content": [], "stop_reason": None}}
    if block["type"] == "text":
        yield {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
        yield {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": block["text"]}}
    else:
        yield {"type": "content_block_start", "index": 0, "content_block": {**block, "input": {}}}
        delta = {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
        yield {"type": "content_block_delta", "index": 0, "delta": delta}
    yield {"type": "content_block_stop", "index": 0}
    stop = {"stop_reason": answer["stop_reason"], "stop_sequence": None}
    yield {"type": "message_delta", "delta": stop, "usage": answer["usage"]}
    yield {"type": "message_stop"}


def generate_content(request):
    tools = [f for t in request.get("tools", []) for f in t.get("functionDeclarations", [])]
    tool = wanted(tools)
    answered = any("functionResponse" in part for content in request["contents"] for part in content.get("parts", []))
    part = {"text": "done"}
    if tool and not answered:
        part = {"functionCall": {"name": tool, "args": ARGUMENTS[tool]}}
    usage = {"promptTokenCount": 11, "candidatesTokenCount": 7, "totalTokenCount": 18}
    return {"candidates": [{"index": 0, "finishReason": "STOP", "content": {"role": "model", "parts": [part]}}],
            "usageMetadata": usage, "modelVersion": "gemini"}


def stream(events):
    """Server-sent events, each with its type as name where it has one."""
    name = lambda event: f"event: {event['type']}\n" if "type" in event else ""
    return "".join(f"{name(event)}data: {json.dumps(event)}\n\n" for event in events)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        request = json.loads(self.body() or b"{}")
        path = self.path.split("?")[0]
        streamed = bool(request.get("stream")) or path.endswith(":streamGenerateContent")
        if path.endswith("/chat/completions"):
            answer, events = chat(request), None
        elif path.endswith("/responses"):
            answer = response(request)
            events = ({**event, "sequence_number": i} for i, event in enumerate(response_events(answer)))
        elif path.endswith("/messages"):
            answer = messages(request)
            events = message_events(answer)
        elif path.endswith(":generateContent") or path.endswith(":streamGenerateContent"):
            answer = generate_content(request)
            events = [answer]
        else:
            answer, events = {"input_tokens": 1, "totalTokens": 1}, None
        if streamed and events is not None:
            self.answer(stream(events), "text/event-stream")
        else:
            self.answer(json.dumps(answer), "application/json")

    def body(self):
        if "Content-Length" in self.headers:
            return self.rfile.read(int(self.headers["Content-Length"]))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def do_GET(self):
        self.answer('{"object": "list", "data": [], "models": []}', "application/json")

    def answer(self, text, content_type, status=200):
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def start(port=0):
    """Serves in a thread until the process ends; the base URL that OpenAI's client wants."""
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}/v1"


if __name__ == "__main__":
    print(start(int(sys.argv[1]) if len(sys.argv) > 1 else 0), flush=True)
    threading.Event().wait()
