"""Reads the alert rules and the dashboard with real parsers of YAML and PromQL; prints their expressions as JSON."""

import json
import re
import sys

import promql_parser
import yaml

alerts, dashboard = sys.argv[1:]
with open(alerts, encoding="utf-8") as file:
    groups = yaml.safe_load(file)["groups"]
expressions = []
for group in groups:
    assert set(group) == {"name", "rules"}, group
    for rule in group["rules"]:
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}, rule
        assert re.fullmatch(r"Custody[A-Za-z]+", rule["alert"]), rule
        assert re.fullmatch(r"[0-9]+[smh]", str(rule["for"])), rule
        assert rule["labels"]["severity"] in {"warning", "critical"}, rule
        assert set(rule["annotations"]) == {"summary", "description"}, rule
        expressions.append(rule["expr"])
with open(dashboard, encoding="utf-8") as file:
    panels = json.load(file)["panels"]
for panel in panels:
    assert panel["title"] and panel["targets"], panel
    # Grafana fills in its variables before it asks.
    expressions += [target["expr"].replace("$__rate_interval", "5m") for target in panel["targets"]]
for expression in expressions:
    promql_parser.parse(expression)
print(json.dumps(expressions))
