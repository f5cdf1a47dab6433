"""Forgeries of a complete bundle by one who holds the log's keys: the operator.

    forge.py BUNDLE KEYS BEFORE OUT     writes OUT/<name>.custody for each, all signed anew

BEFORE is a complete bundle made before the erasure. Every forgery is consistent in all
that signatures and digests say, so that only what the log itself says can refuse it.
"""

import base64
import hashlib
import json
import os
import struct
import sys

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../tools"))
import verify  # noqa: E402

bundle, keys, before, out = sys.argv[1:]
with open(keys) as file:
    KEYS = [line.split("+", 4)[2:] for line in file.read().split()]


def encode(data):
    return base64.b64encode(data).decode()


def sign(text, lines=None, point=None):
    """Signature lines by the log's keys: over the text, or also over a checkpoint."""
    signatures = []
    for name, key_id, key in KEYS:
        key = base64.b64decode(key)
        if key[0] == 1:
            signature = Ed25519PrivateKey.from_private_bytes(key[1:]).sign(text.encode())
        elif point is None:
            continue
        else:
            size, root = point
            own = bytes([len(name)]) + name.encode()
            message = b"subtree/v1\n\0" + own + bytes(8) + own + bytes(8) + struct.pack(">Q", size) + root
            signature = bytes(8) + MLDSA44PrivateKey.from_seed_bytes(key[1:]).sign(message)
        signatures.append(f"\u2014 {name} {encode(bytes.fromhex(key_id) + signature)}\n")
    return text + "\n" + "".join(signatures)


def load(path):
    with open(path) as file:
        return [json.loads(line) for line in file]


def write(name, lines):
    body = "".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in lines).encode()
    digest = hashlib.sha256(body).hexdigest()
    text = f"custody bundle v1\n{lines[0]['origin']}\nlines {len(lines)}\nsha256 {digest}\n"
    seal = json.dumps({"type": "signature", "note": sign(text)}, separators=(",", ":"))
    with open(os.path.join(out, name + ".custody"), "wb") as file:
        file.write(body + seal.encode() + b"\n")


def forge(name, change, anew=False):
    lines = load(bundle)[:-1]
    records = [line for line in lines if line["type"] == "record"]
    lines = change(lines, records) or lines
    if anew:  # The whole tree, as if it had always been so.
        chain, leaves = bytes(32), []
        for line in records:
            entry = base64.b64decode(line["entry"])[:80] + chain
            chain = verify.b3("custody chain v1", entry)
            leaves.append(verify.leaf_hash(entry))
            line["entry"] = encode(entry)
        root = verify.tree_root(leaves)
        text = f"{lines[0]['origin']}\n{len(leaves)}\n{encode(root)}\n"
        lines[1]["note"] = sign(text, point=(len(leaves), root))
    write(name, lines)


def first_line(**members):
    return lambda lines, _: lines[0].update(members)


def entry(seq, at, data):
    def change(_, records):
        old = base64.b64decode(records[seq]["entry"])
        records[seq]["entry"] = encode(old[:at] + data + old[at + len(data) :])

    return change


def said(seq, old, new):
    """Other bytes in a record, and the commitment to them."""

    def change(_, records):
        content = records[seq]["content"]
        record = base64.b64decode(content["record"][0])
        assert old in record and len(old) == len(new)
        content["record"][0] = encode(record.replace(old, new))
        entry(seq, 48, verify.parse_content(content)[0])(None, records)

    return change


def put_back(_, records):
    for line, old in zip(records, (line for line in load(before) if line["type"] == "record")):
        line["content"] = old["content"]
        line.pop("erased_by", None)


original = load(bundle)
records = [line for line in original if line["type"] == "record"]
gone = next(line["seq"] for line in records if line["content"] is None)
erasure, last = records[gone]["erased_by"], records[-1]["seq"]
held = last - 2  # placed after the erasure: one of the ledger's own that nothing needs
assert len(str(held)) == len(str(gone)) and erasure < held
length = len(str(gone))
named = b"\x14custody.erasure.seqs\x12" + bytes([length + 2, 10, length])


def erases_what_comes(lines, records):
    said(erasure, named + str(gone).encode(), named + str(held).encode())(lines, records)
    put_back(lines, records[: gone + 1])
    records[held].update(content=None, erased_by=erasure)


forge("sound", lambda *_: None)
forge("sound-anew", lambda *_: None, anew=True)
forge("other-exporter", first_line(exported_by="nobody"))
forge("complete-or-not", first_line(complete=None))
forge("other-version", first_line(version=True))
forge("capitals", lambda _, records: records[1]["content"].update(frame=records[1]["content"]["frame"].upper()))
forge("other-query", first_line(query="nothing"))
forge("other-reason", first_line(reason="another"))
forge("other-number", first_line(records=last + 1))
forge("other-size", first_line(size=last))
forge("other-keys", first_line(vkeys=[]))
forge("other-export", first_line(exported_seq=erasure))
forge("asked-for-more", first_line(seqs=f"0-{last + 1}", records=last + 2))
forge("without-the-last", lambda lines, _: lines[:-1])
forge("swapped", lambda lines, _: lines[:4] + [lines[5], lines[4]] + lines[6:])
forge("erased-put-back", put_back)
forge("erased-by-another", lambda _, records: records[gone].update(erased_by=last))
forge("not-erased", lambda _, records: records[gone - 1].update(content=None, erased_by=erasure))
forge("other-seq-beside", lambda _, records: records[gone + 1].update(seq=last + 7))
forge("no-content", lambda _, records: records[gone].pop("content") and None)
forge("counter-gap", entry(gone, 40, struct.pack(">Q", 99)), anew=True)
forge("time-goes-back", entry(gone, 16, bytes(8)), anew=True)
forge("other-seq", entry(gone, 8, struct.pack(">Q", gone + 1)), anew=True)
forge("erases-what-comes", erases_what_comes, anew=True)
