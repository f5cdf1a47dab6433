"""Tells what a program's spans were: the ids of all that ended, as JSON on standard output.

A span processor beside the exporter's own, which stays as its library makes it.
"""

import json
import sys

from opentelemetry.sdk.trace import SpanProcessor


class Emitted(SpanProcessor):
    def __init__(self):
        self.spans = []

    def on_end(self, span):
        self.spans.append(f"{span.context.trace_id:032x}:{span.context.span_id:016x}")

    def tell(self):
        json.dump(sorted(self.spans), sys.stdout)
