"""Write ground_truth.json from an installed AgentDojo (needed once; the result is committed).

    pip install agentdojo==0.1.35
    python extract_ground_truth.py > ground_truth.json

For each user task: its prompt, its ground-truth calls, and the resources that a policy would
name for them. For each injection task: its goal and its ground-truth calls.
"""

import json
import sys

from agentdojo.task_suite.load_suites import get_suite

VERSION = "v1.2.1"
# The rule that names a resource is the recorder's; it is used here too.
from record import resource_of  # noqa: E402


def account_aliases(env):
    """'Spotify' in a ground truth means the account that a past transaction about Spotify names."""
    aliases = {}
    for t in env.bank_account.transactions + env.bank_account.scheduled_transactions:
        for name in ("Spotify", "Apple"):
            if name in t.subject:
                aliases.setdefault(name, t.recipient)
    return aliases


def banking_resources(env, calls):
    aliases, found = account_aliases(env), []
    scheduled = {t.id: t.recipient for t in env.bank_account.scheduled_transactions}
    for call in calls:
        args = dict(call["args"])
        names = [resource_of(call["function"], args)]
        if call["function"] == "update_scheduled_transaction":
            # The recipient that the standing order already has.
            names.append("account:" + scheduled[args["id"]])
        for name in names:
            if name and name.startswith("account:"):
                name = "account:" + aliases.get(name[8:], name[8:])
            if name and name not in found:
                found.append(name)
    return found


def main():
    out = {"agentdojo": "0.1.35", "benchmark_version": VERSION, "suites": {}}
    for suite_name in ("banking", "slack"):
        suite = get_suite(VERSION, suite_name)
        env = suite.load_and_inject_default_environment({})

        def calls_of(task):
            truth = task.ground_truth(env.model_copy(deep=True))
            return [{"function": c.function, "args": dict(c.args)} for c in truth]

        user = {}
        for name, task in suite.user_tasks.items():
            calls = calls_of(task)
            user[name] = {
                "prompt": task.PROMPT,
                "calls": calls,
                "resources": banking_resources(env, calls) if suite_name == "banking" else [],
            }
        injection = {
            name: {"goal": task.GOAL, "calls": calls_of(task)}
            for name, task in suite.injection_tasks.items()
        }
        out["suites"][suite_name] = {
            "tools": [t.name for t in suite.tools],
            "user_tasks": user,
            "injection_tasks": injection,
        }
    json.dump(out, sys.stdout, indent=1, default=str)
    print()


if __name__ == "__main__":
    main()
