"""Reads /metrics with Prometheus' own parsers, in both formats; prints families and samples as JSON."""

import json
import sys
import urllib.request

from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics


def fetch(url, accept):
    request = urllib.request.Request(url, headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return answer.headers["Content-Type"], answer.read().decode("utf-8")


def families(read):
    return {family.name: family for family in read}


url = sys.argv[1]
content_type, text = fetch(url, "text/plain")
assert content_type == "text/plain; version=0.0.4; charset=utf-8", content_type
plain = families(parser.text_string_to_metric_families(text))
content_type, text = fetch(url, "application/openmetrics-text; version=1.0.0")
assert content_type == "application/openmetrics-text; version=1.0.0; charset=utf-8", content_type
strict = families(openmetrics.text_string_to_metric_families(text))
assert list(plain) == list(strict), (list(plain), list(strict))
for name, family in plain.items():
    assert family.type == strict[name].type, name
    assert family.documentation == strict[name].documentation and family.documentation.endswith("."), name

samples = {}
for family in plain.values():
    for sample in family.samples:
        labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
        key = sample.name + (f"{{{labels}}}" if labels else "")
        assert key not in samples, key
        samples[key] = sample.value


def row(family):
    """A row of docs/monitoring/metrics.md. The parsers take the ending of a counter away; people write it."""
    name = family.name + ("_total" if family.type == "counter" else "")
    labels = [f"`{label}`" for label in family.samples[0].labels if label != "le"]
    return f"| `{name}` | {family.type} | {', '.join(labels)} | {family.documentation} |"


print(json.dumps({"rows": [row(family) for family in plain.values()], "samples": samples}))
