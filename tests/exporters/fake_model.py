"""An OpenAI server that answers from a script, in a thread of this process or on its own:

    fake_model.py [PORT]

Both ways of asking: `POST .../chat/completions` and `POST .../responses` (with server-sent
events when asked to stream). It first calls the tool that the request offers, then says "done".
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


def events(answer):
    item = answer["output"][0]
    yield {"type": "response.created", "response": {**answer, "status": "in_progress", "output": []}}
    yield {"type": "response.output_item.added", "output_index": 0, "item": item}
    yield {"type": "response.output_item.done", "output_index": 0, "item": item}
    yield {"type": "response.completed", "response": answer}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.split("?")[0].endswith("/chat/completions"):
            self.answer(json.dumps(chat(request)), "application/json")
        elif self.path.split("?")[0].endswith("/responses"):
            answer = response(request)
            if request.get("stream"):
                lines = [f"event: {e['type']}\ndata: {json.dumps(e | {'sequence_number': i})}\n\n" for i, e in enumerate(events(answer))]
                self.answer("".join(lines), "text/event-stream")
            else:
                self.answer(json.dumps(answer), "application/json")
        else:
            self.answer("{}", "application/json", 404)

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
