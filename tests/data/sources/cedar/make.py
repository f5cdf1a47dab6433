"""Records what Cedar (PyPI: cedarpy, its Rust engine) answers, each answer beside its request.

    python make.py records.json
"""

import json
import sys

import cedarpy

POLICIES = """
@id("small-payments")
permit(principal is App::Agent, action == App::Action::"pay", resource) when { context.amount <= 100 };
permit(principal == App::User::"emma", action == App::Action::"read", resource);
@id("no-frozen")
forbid(principal, action, resource == App::Account::"frozen");
"""


def request(principal, action, resource, **context):
    return {"principal": principal, "action": f'App::Action::"{action}"', "resource": resource, "context": context}


PLANNER = 'App::Agent::"planner"'
REQUESTS = [
    request(PLANNER, "pay", 'App::Account::"a-1"', amount=50),
    request(PLANNER, "pay", 'App::Account::"a-1"', amount=500),
    request(PLANNER, "pay", 'App::Account::"frozen"', amount=50),
    # A permission that has no name of its own, and a policy that fails for want of an amount.
    request('App::User::"emma"', "read", 'App::Account::"a-1"'),
    request(PLANNER, "pay", 'App::Account::"a-1"'),
]


def answer(one):
    said = cedarpy.is_authorized(one, POLICIES, [])._authz_resp
    # How long it took is another each time.
    return {**one, **{name: value for name, value in said.items() if name != "metrics"}}


with open(sys.argv[1], "w") as out:
    json.dump([answer(one) for one in REQUESTS], out, indent=1)
    out.write("\n")
