"""The judge and the recorder must say the same, each in its own way, of both recordings."""

import json
import os
from pathlib import Path

import pytest
from judge import HERE, judge

FIXTURES = HERE.parents[1] / "tests/fixtures"
TRUTH = json.loads((HERE / "ground_truth.json").read_text())


def findings(runs):
    return {(run["trace"], *found) for run in runs for found in run["found"]}


def test_the_judge_says_of_the_small_recording_what_the_recorder_says():
    expected = json.loads((FIXTURES / "agentdojo/expected.json").read_text())
    recorded = {(run["trace_id"], hit["check"], hit.get("span_id", hit["grant_id"]))
                for run in expected["runs"] for hit in run["expected"]}
    judged = judge(FIXTURES / "agentdojo", TRUTH)
    assert findings(judged) == recorded
    hijacked = {run["trace_id"] for run in expected["runs"] if run["kind"] == "hijacked"}
    assert {run["trace"] for run in judged if run["hijacked"]} == hijacked


def test_what_is_committed_is_what_the_judge_says():
    committed = json.loads((FIXTURES / "incidents/judged.json").read_text())
    judged = judge(FIXTURES / "incidents", TRUTH)
    assert json.loads(json.dumps(judged)) == committed


@pytest.mark.skipif("AGENTDOJO_RUNS" not in os.environ, reason="AGENTDOJO_RUNS names no unpacked runs")
def test_the_judge_says_of_the_large_recording_what_the_recorder_says(tmp_path):
    from test_record import record

    requests, expected = record(os.environ["AGENTDOJO_RUNS"], 520, tmp_path, "3")
    assert requests == (FIXTURES / "incidents/requests.otlp.zst").read_bytes()
    recorded = {(run["trace_id"], hit["check"], hit.get("span_id", hit["grant_id"]))
                for run in json.loads(expected)["runs"] for hit in run["expected"]}
    assert findings(judge(Path(FIXTURES / "incidents"), TRUTH)) == recorded
