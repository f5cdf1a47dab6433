"""Records tokens that their holders narrow, by the libraries that make them (PyPI: tenuo, biscuit-python,
pymacaroons), and what Tenuo's enforcement says of them.

    python make.py made.json

The keys are made for this and open nothing.
"""

import json
import sys

from biscuit_auth import BiscuitBuilder, BlockBuilder, KeyPair
from pymacaroons import MACAROON_V2, Macaroon
from tenuo import Exact, OneOf, Range, SigningKey, Warrant
from tenuo.audit import AuditEvent, AuditEventType
from tenuo_core import Clearance


def warrants():
    root, planner, payer = (SigningKey.from_bytes(bytes([n]) * 32) for n in (1, 2, 3))
    builder = Warrant.mint_builder().capability("send_money", {"amount": Range(max=100), "to": OneOf(["a", "b"])})
    first = builder.holder(planner.public_key).ttl(3600).mint(root)
    narrower = first.attenuate_builder()
    narrower.with_capability("send_money", {"amount": Range(max=50), "to": Exact("a")})
    narrower.with_holder(payer.public_key)
    narrower.with_ttl(600)
    second = narrower.delegate(planner)
    several = Warrant.mint_builder().tool("get_balance").capability("send_money", {"amount": Range(max=5)})
    asked = Warrant.mint_builder().capability("send_money", {"amount": Range(max=1000)}).holder(planner.public_key)
    asked = asked.required_approvers([payer.public_key, root.public_key]).min_approvals(1).clearance(Clearance.INTERNAL).approval_gates({"send_money": None})
    return [first, second, several.holder(planner.public_key).ttl(60).mint(root), asked.ttl(60).mint(root)]


def warrant(one):
    return {"token": one.to_base64(), "id": one.id, "depth": one.depth, "parent_hash": one.parent_hash, "tools": one.tools}


def biscuits():
    facts = 'right("account:1", "read"); check if time($t), $t < 2030-01-01T00:00:00Z'
    first = BiscuitBuilder(facts).build(KeyPair().private_key)
    checks = 'check if operation("read"); check if time($time), $time <= 2027-01-01T00:00:00Z'
    # Neither sets an end: one may hold instead of the other, and the other is a beginning.
    others = "check if time($t), $t < 2026-01-01T00:00:00Z or operation(\"x\"); check if time($t), $t > 2025-01-01T00:00:00Z"
    second = first.append(BlockBuilder(checks)).append(BlockBuilder(others))
    return [{"token": one.to_base64(), "revocation_ids": one.revocation_ids} for one in (first, second)]


def macaroons():
    made = []
    for version in (1, MACAROON_V2):
        one = Macaroon(location="https://bank.example", identifier="m-1", key="secret", version=version)
        one.add_first_party_caveat("action = read")
        one.add_first_party_caveat("time < 2027-01-01T00:00:00Z")
        made.append({"token": one.serialize()})
    return made


def audit(allowed, **said):
    kind = AuditEventType.AUTHORIZATION_SUCCESS if allowed else AuditEventType.AUTHORIZATION_FAILURE
    return AuditEvent(kind, **said).to_dict()


made = warrants()
first, second = made[0].id, made[1].id
with open(sys.argv[1], "w") as out:
    json.dump({
        "tenuo": [warrant(one) for one in made],
        "biscuit": biscuits(),
        "macaroon": macaroons(),
        "audit": [
            audit(True, warrant_id=second, tool="send_money", constraints={"amount": 5}, trace_id="r-1"),
            audit(False, warrant_id=second, tool="send_money", error_code="constraint_violation", details="amount above 50"),
        ],
    }, out, indent=1)
    out.write("\n")
