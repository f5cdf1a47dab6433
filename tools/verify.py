#!/usr/bin/env python3
"""Verifies what a Custody log gives out: evidence bundles, proofs, and a live log by its tiles.

A second implementation of docs/format.md, which shares no code with the first: Python 3.9,
its standard library, and verify_standards.py beside this file. Signatures need the
optional module `cryptography` (for ML-DSA-44 a version that has it, such as 50); without
it all else is verified and the status is 3.

    verify.py BUNDLE|PROOF [--vkey log.vkey]      a file
    verify.py --url URL [--vkey log.vkey]         a server, as any C2SP tlog-tiles client
    verify.py --self-test                         this program, against the worked example

Exit status: 0 sound; 1 false; 2 cannot tell; 3 sound, but signatures were not verified.
"""

import argparse
import collections
import functools
import hashlib
import http.client
import json
import os
import re
import struct
import sys
import urllib.error
import urllib.request

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from verify_standards import (  # noqa: E402  its neighbour
    MALFORMED, Refused, Signatures, any_value, b3, from_base64, from_decimal, from_hex, leaf_hash, need,
    parse_checkpoint, parse_keys, parse_note, parse_signature, path_root, protobuf, sha, tree_root)


def member(of, name, kind):
    value = of.get(name)
    need(type(value) is kind, f"`{name}` is missing or not of type {kind.__name__}")
    need(kind is not int or 0 <= value < 1 << 64, f"`{name}` is out of range")
    return value


def seq_ranges(text):
    """7,9-12 as [(7, 7), (9, 12)]: rising."""
    pairs = [(part + "-" + part).split("-")[:2] for part in text.split(",")] if text else []
    ranges = [(from_decimal(first), from_decimal(last)) for first, last in pairs]
    ends = [-1] + [end for pair in ranges for end in pair]
    need(all(a <= b for a, b in ranges) and all(a < b for a, b in zip(ends[::2], ends[1::2])), "seqs do not rise")
    return ranges


# Entries, content, and the ledger's own records.


Entry = collections.namedtuple("Entry", "version kind flags zero seq time submitter counter content previous")


def parse_entry(data, seq):
    entry = Entry(*struct.unpack(">BBHIQQ16sQ32s32s", data))
    need(entry.version < 2, f"it is of format {entry.version}: get a newer verify.py", seq, status=2)
    need(entry.version == 1 and entry.zero == 0 and 1 <= entry.kind <= 3 and entry.flags < 4, "not an entry", seq)
    need(entry.seq == seq, f"its entry says that it is {entry.seq}", seq)
    return entry


class Chain:
    """What binds each entry to those before it."""

    def __init__(self):
        self.size, self.time, self.head, self.counters = 0, 0, bytes(32), collections.Counter()

    def add(self, data):
        entry = parse_entry(data, self.size)
        need(entry.previous == self.head, "the chain is broken before it", self.size)
        need(entry.counter == self.counters[entry.submitter], "its submitter's counter has a gap", self.size)
        need(entry.time >= self.time, "its ingest time goes back", self.size)
        self.counters[entry.submitter] += 1
        self.size, self.time, self.head = self.size + 1, entry.time, b3("custody chain v1", data)
        return entry


@functools.lru_cache(64)
def shared_digest(frame, *parts):
    """d_shared; the parts are (bytes, salt) of identity, resource and scope."""
    names = ("identity", "resource", "scope")
    return b3("custody shared v1", frame, *(b3(f"custody {n} v1", salt, data) for n, (data, salt) in zip(names, parts)))


def content_commitment(salt, shared, record):
    return b3("custody content v1", salt, shared, struct.pack(">Q", len(record)), record)


def parse_content(content):
    """The commitment, identity and record of a member `content`."""
    (identity, salt), pairs = content["identity"], [content[name] for name in ("resource", "scope", "record")]
    resource, scope, (record, own) = [(from_base64(text), from_hex(salt)) for text, salt in pairs]
    shared = shared_digest(from_hex(content["frame"]), (identity.encode(), from_hex(salt)), resource, scope)
    return content_commitment(own, shared, record), identity, record


def own_record(data):
    """Event name and attributes of a record of the ledger's own, an OTLP LogRecord."""
    fields = protobuf(data)
    pairs = [dict(protobuf(value)) for number, value in fields if number == 6]
    return dict(fields).get(12, b"").decode(), {pair[1].decode(): any_value(pair.get(2, b"")) for pair in pairs}


class Bundle:
    def __init__(self, head, points, signatures):
        need(member(head, "version", int) == 1, "a bundle of another version: get a newer verify.py", status=2)
        self.head, self.points, self.signatures, self.chain = head, points, signatures, Chain()
        self.origin, self.size = head["origin"], member(head, "size", int)
        self.complete = member(head, "complete", bool)
        # Of each record here the seq that erased it or None; what the ledger's own say; leaves; keys from a seq on.
        self.records, self.own, self.leaves, self.keys = {}, {}, [], []
        need(points[0].size == self.size and all(p.size <= self.size and p.origin == self.origin for p in points),
             "the checkpoints are of another log or size")

    def record(self, seq, line):
        need(seq not in self.records and seq < self.size, "it is here twice, or not in the tree")
        need(self.records or seq == 0, "the genesis record does not come first")
        data = from_base64(line["entry"])
        if self.complete:
            need(self.chain.add(data).seq == seq, "it is not in its place")
            self.leaves.append(leaf_hash(data))
        else:
            path = [from_base64(node, 32) for node in line["path"]]
            need(path_root(leaf_hash(data), seq, self.size, path) == self.points[0].root, "its path misses the root")
        entry, content = parse_entry(data, seq), line["content"]
        self.records[seq] = member(line, "erased_by", int) if content is None else None
        commitment, identity, record = parse_content(content) if content is not None else (entry.content, None, b"")
        need(commitment == entry.content, "its content is not what the log committed to")
        if identity == "system:custody":
            event, said = self.own[seq] = own_record(record)
            if event in ("custody.log.genesis", "custody.log.keys"):
                self.new_keys(seq, event, said)

    def new_keys(self, seq, event, said):
        if event == "custody.log.genesis":
            need(seq == 0 and said["custody.log.origin"] == self.origin, "the genesis record of another log")
            return self.keys.append((0, parse_keys(said["custody.log.vkeys"])))
        new = said["custody.keys.vkeys"]
        need(self.keys[-1][0] < seq, "the records that name keys are not in order")
        text = "\n".join(["custody keys v1", self.origin, f"from {seq}", *new, ""])
        need(said["custody.keys.statement"] == text, "its statement about keys says something else")
        lines = [parse_signature(line) for line in said["custody.keys.signatures"]]
        self.signatures.check("the rotation of keys", lines, self.keys[-1][1], text)
        self.keys.append((seq, parse_keys(new)))

    def keys_at(self, size):
        return [keys for seq, keys in self.keys if seq < size][-1]

    def whole(self, trusted):
        """What can be told once all records are read."""
        if self.complete:
            need(self.chain.size == self.size, "the bundle ends before the log", self.chain.size)
            for point in self.points:
                need(tree_root(self.leaves[: point.size]) == point.root, f"another root at size {point.size}")
        gone = collections.defaultdict(set)
        for seq, (event, said) in self.own.items():
            if event == "custody.log.erasure":
                text = "\n".join(["custody erasure v1", self.origin, f"by {seq}", f"seqs {said['custody.erasure.seqs']}", ""])
                lines = [parse_signature(line) for line in said["custody.erasure.signatures"]]
                self.signatures.check(f"the erasure by record {seq}", lines, self.keys_at(seq), text)
            for first, last in seq_ranges(said["custody.erasure.seqs"]) if event == "custody.log.erasure" else []:
                need(last < seq, "it erases what is not before it", seq)
                few = last - first < len(self.records)
                for erased in range(first, last + 1) if few else self.records:
                    if first <= erased <= last:
                        gone[erased].add(seq)
        for seq, by in sorted(self.records.items()):
            need(by is None or by in gone[seq], f"its content is missing, and record {by} does not name it", seq)
            need(by is not None or not gone[seq], f"its content is here, though erased by {gone[seq]}", seq)
        asked = seq_ranges(self.head["seqs"])
        count = sum(last - first + 1 for first, last in asked)
        need(count == self.head["records"], "`records` is not how many were asked for")
        need(count <= len(self.records), "not all are here that were asked for")
        for seq in (seq for first, last in asked for seq in range(first, last + 1)):
            need(seq in self.records, "it was asked for, and is not here", seq)
        event, said = self.own.get(self.head["exported_seq"], ("", {}))
        need(event == "custody.log.export", "the record that says of the export is not here")
        for name, here in (("query", "query"), ("reason", "reason"), ("identity", "exported_by")):
            need(said[f"custody.export.{name}"] == self.head[here], f"`{here}` is not what the log says")
        need(self.head["vkeys"] == [key.text for key in self.keys_at(self.size)], "other keys are in force")
        need(any({key.text for key in trusted} <= {key.text for key in keys} for _, keys in self.keys),
             "the log's records do not name the keys that you trust")
        for point in self.points:
            self.signatures.checkpoint(point, self.keys_at(point.size))


def check_bundle(data, trusted, signatures):
    need(data.endswith(b"\n"), "broken off: no newline at the end")
    lines = data[:-1].split(b"\n")
    parsed = [json.loads(line.decode()) for line in lines]
    json.dumps(parsed, ensure_ascii=False).encode()  # half a surrogate pair is no text, whatever Python says
    letters = {"custody-bundle": "b", "checkpoint": "c", "record": "r", "signature": "s"}
    shape = "".join(letters.get(line["type"], "?") for line in parsed)
    need(re.fullmatch("bcc?r+s", shape), "not a first line, checkpoint, records and signature")
    first = shape.index("r")
    bundle = Bundle(parsed[0], [parse_checkpoint(line["note"]) for line in parsed[1:first]], signatures)
    for line in parsed[first:-1]:
        seq = member(line, "seq", int)
        try:
            bundle.record(seq, line)
        except Refused as error:
            need(False, str(error), seq, error.status)
        except MALFORMED as error:
            need(False, f"malformed: {error!r}"[:200], seq)
    bundle.whole(trusted)
    text, seal = parse_note(parsed[-1]["note"])
    digest = hashlib.sha256(data[: -len(lines[-1]) - 1]).hexdigest()
    need(text == f"custody bundle v1\n{bundle.origin}\nlines {len(lines) - 1}\nsha256 {digest}\n",
         "the last line is of another bundle: something was changed")
    keys = [key for key in bundle.keys_at(bundle.size) if key.algorithm == 1]
    signatures.check("the last line", seal, keys, text)
    erased = sum(by is not None for by in bundle.records.values())
    return {"file": "bundle", "origin": bundle.origin, "size": bundle.size, "complete": bundle.complete,
            "records": len(bundle.records), "erased": erased, "keys": [key.text for key in bundle.keys[0][1]]}


def check_proof(data, trusted, signatures):
    head, _, note = data.decode().partition("\n\n")
    match = re.fullmatch("c2sp.org/tlog-proof@v1\nextra (.*)\nindex (.*)((?:\n.+)*)", head)
    need(match, "not a tlog-proof that shows a record")
    seq, point, shown = from_decimal(match[2]), parse_checkpoint(note), json.loads(from_base64(match[1]).decode())
    data, path = from_base64(shown["entry"]), [from_base64(node, 32) for node in match[3].split("\n")[1:]]
    entry, content = parse_entry(data, seq), shown["content"]
    need(seq < point.size and path_root(leaf_hash(data), seq, point.size, path) == point.root, "its path is false", seq)
    need(content is None or parse_content(content)[0] == entry.content, "its content is another", seq)
    signatures.checkpoint(point, trusted)
    return {"file": "proof", "origin": point.origin, "size": point.size, "seq": seq, "content": content is not None}


def check_live(url, trusted, signatures, older):
    def get(path):
        try:
            with urllib.request.urlopen(url.rstrip("/") + path, timeout=60) as answer:
                return answer.read(1 << 24)
        except urllib.error.HTTPError as error:
            need(error.code == 404, f"{path}: status {error.code}", status=2)
        except (ValueError, http.client.HTTPException) as error:
            need(False, f"{url}{path}: {error!r}", status=2)

    def tile(kind, index, width, piece):
        digits = f"{index:0{(len(str(index)) + 2) // 3 * 3}}"
        groups = ["x" + digits[i : i + 3] for i in range(0, len(digits), 3)]
        name = f"/tile/{kind}/" + "/".join(groups[:-1] + [groups[-1][1:]])
        data = get(name + f".p/{width}") if width < 256 else None
        data = data or get(name)  # Where the log has grown it may serve the full tile only.
        need(data, f"{name} of width {width} is missing")
        return data[: piece * width]

    point = parse_checkpoint((get("/checkpoint") or b"").decode())
    signatures.checkpoint(point, trusted)
    chain, leaves = Chain(), []
    for at in range(0, point.size, 256):
        width = min(256, point.size - at)
        data = tile("entries", at // 256, width, 114)
        need(len(data) == 114 * width, "an entry bundle of another length", at)
        for entry in (data[i : i + 114] for i in range(0, len(data), 114)):
            need(entry[:2] == b"\0\x70", "an entry of another length", chain.size)
            chain.add(entry[2:])
            leaves.append(leaf_hash(entry[2:]))
    hashes, level, tiles = leaves, 0, 0
    while hashes:
        for at in range(0, len(hashes), 256):
            own = hashes[at : at + 256]
            served = tile(level, at // 256, len(own), 32)
            need(served == b"".join(own), f"tile {level}/{at // 256} is false", at << 8 * level)
            tiles += 1
        hashes, level = [tree_root(hashes[i : i + 256]) for i in range(0, len(hashes) - 255, 256)], level + 1
    need(tree_root(leaves) == point.root, "the entries do not make the signed root")
    if older:
        need(older.origin == point.origin, "the trusted checkpoint is of another log")
        need(older.size <= point.size, f"rolled back: {older.size} records were signed", point.size)
        need(tree_root(leaves[: older.size]) == older.root, f"another root at size {older.size}")
    return {"file": "log", "origin": point.origin, "size": point.size, "tiles": tiles,
            "submitters": len(chain.counters), "trusted_size": older.size if older else None}


def self_test():
    """A vector of BLAKE3's own, and the worked example of docs/format.md."""
    payload = bytes.fromhex(
        "0a95010a190a170a0c736572766963652e6e616d6512070a056167656e7412780a090a076578616d706c65126b0a10101112131415"
        "161718191a1b1c1d1e1f120820212223242526272a17657865637574655f746f6f6c2073656e645f6d6f6e657930013900002a36fe"
        "9c97174100cac471fe9c97174a200a1067656e5f61692e746f6f6c2e6e616d65120c0a0a73656e645f6d6f6e6579")
    xof = b3("custody salts v1", bytes(range(32)), length=160)
    salts = [xof[at : at + 32] for at in range(0, 160, 32)]
    layout = struct.pack(">4B12I", 1, 1, 0, 0, 152, 0, 1, 5, 25, 34, 9, 1, 0, 45, 107, 0)
    frame = b3("custody frame v1", layout, b3("custody rest v1", salts[0], payload[:5], payload[30:34], payload[43:45]))
    shared = shared_digest(frame, (b"peer:127.0.0.1", salts[1]), (payload[5:30], salts[2]), (payload[34:43], salts[3]))
    content = content_commitment(salts[4], shared, payload[45:])
    entry = struct.pack(">BBHIQQ16sQ", 1, 1, 0, 0, 1, 1700000002000000000, bytes(range(0xA0, 0xB0)), 0)
    entry += content + b"U" * 32
    long = b3("BLAKE3 2019-12-27 16:29:52 test vectors context", bytes(i % 251 for i in range(3073)), length=70)[:32]
    for got, want in ((long, "72613c9ec9ff7e40"), (salts[4], "d1a7d9862267058e"), (frame, "cbc1eca642b5040e"),
                      (shared, "7e0937cd6836c190"), (content, "157709b9be33dcc5"),
                      (leaf_hash(entry), "92b256d3362d11f1"), (b3("custody chain v1", entry), "15a33d7d173447f4")):
        need(got[:8].hex() == want, f"{got.hex()} does not begin with {want}")
    return {"file": "self-test"}


def run(args, signatures):
    def read(path):
        with open(path, "rb") as file:
            return file.read()
    if args.self_test:
        return self_test()

    def of_the_asker(flag, path, parse):
        """What the asker gives as trusted. Where it is not of its form it accuses nobody."""
        try:
            return parse(read(path).decode())
        except (Refused, *MALFORMED) as error:
            need(False, f"{flag} {path}: {error}"[:200], status=2)
    trusted = of_the_asker("--vkey", args.vkey, lambda text: parse_keys(text.split())) if args.vkey else []
    if args.url:
        older = of_the_asker("--trusted", args.trusted, parse_checkpoint) if args.trusted else None
        return check_live(args.url, trusted, signatures, older)
    data = read(args.file)
    if data.startswith(b"c2sp.org/tlog-proof"):
        return check_proof(data, trusted, signatures)
    need(data.startswith(b'{"type":"custody-bundle"'), f"{args.file} is no .tlog-proof and no bundle", status=2)
    return check_bundle(data, trusted, signatures)


def plain(text):
    """A text without what a terminal would act on or not show: whoever made the file chose it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", help="a bundle or a .tlog-proof")
    parser.add_argument("--url", help="the HTTP address of a server")
    parser.add_argument("--vkey", help="a file of the log's public keys that you trust, a line each")
    parser.add_argument("--trusted", help="with --url: an older checkpoint, which the log must still contain")
    parser.add_argument("--no-signatures", action="store_true", help="status 0 though a signature was not verified")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--self-test", action="store_true", help="verify this program")
    args = parser.parse_args(argv)
    if sum(map(bool, (args.file, args.url, args.self_test))) != 1:
        parser.error("give one file, or --url, or --self-test")
    signatures, status = Signatures(), 0
    try:
        told = run(args, signatures)
    except Refused as error:
        status, told = error.status, {"seq": error.seq, "reason": str(error)}
    except (OSError, *MALFORMED) as error:  # nothing to read, or nobody there; or not of its form
        status, told = (2 if isinstance(error, OSError) else 1), {"reason": f"{type(error).__name__}: {error}"[:200]}
    not_verified = sorted(signatures.missing)
    if status == 0 and not_verified and not args.no_signatures:
        status = 3
    verdict = ("sound", "false", "cannot tell", "sound but for signatures")[status]
    if args.json:
        print(json.dumps({"verdict": verdict, **told, "signatures_not_verified": not_verified}))
        return status
    keys = told.pop("keys", [])
    print(f"{verdict}:", ", ".join(f"{name} {plain(value)}" for name, value in told.items() if value is not None))
    print(*(f"signature NOT verified: {plain(reason)}\n" for reason in not_verified), sep="", end="")
    if keys and not args.vkey:
        print("compare these keys with those that the log's operator published:", *map(plain, keys), sep="\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
