#!/usr/bin/env python3
"""Verifies what a Custody log gives out: evidence bundles, proofs, and a live log by its tiles.

A second implementation of docs/format.md, which shares no code with the first: Python 3.9
and its standard library. Signatures need the optional module `cryptography` (46 or later
for ML-DSA-44); without it everything else is verified and the exit status is 3.

    verify.py BUNDLE|PROOF [--vkey log.vkey]      a file
    verify.py --url URL [--vkey log.vkey]         a server, as any C2SP tlog-tiles client
    verify.py --self-test                         this program, against the worked example

Exit status: 0 sound; 1 false; 2 cannot tell; 3 sound, but signatures were not verified.
"""

import argparse
import base64
import collections
import functools
import hashlib
import json
import re
import struct
import sys
import urllib.error
import urllib.request


class Wrong(Exception):
    """It is false. `seq` is the first record of which that is known."""

    def __init__(self, reason, seq=None):
        super().__init__(reason)
        self.seq = seq


class CannotTell(Exception):
    """It could not be tried: not readable, not reachable, or of a newer version."""


def need(condition, reason, seq=None):
    if not condition:
        raise Wrong(reason, seq)


# BLAKE3: derive_key mode with extendable output, which is all that the format uses.

IV = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
START, END, PARENT, ROOT, CONTEXT, MATERIAL = 1, 2, 4, 8, 32, 64
MASK = 0xFFFFFFFF
LANES = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
         (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))
ROUNDS = [list(range(16))]
for _ in range(6):
    ROUNDS.append([ROUNDS[-1][i] for i in (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)])


def compress(cv, words, counter, length, flags):
    v = [*cv, *IV[:4], counter & MASK, counter >> 32, length, flags]
    for order in ROUNDS:
        for i, (a, b, c, d) in enumerate(LANES):
            va = v[a] + v[b] + words[order[2 * i]] & MASK
            vd = v[d] ^ va
            vd = (vd >> 16 | vd << 16) & MASK
            vc = v[c] + vd & MASK
            vb = v[b] ^ vc
            vb = (vb >> 12 | vb << 20) & MASK
            va = va + vb + words[order[2 * i + 1]] & MASK
            vd ^= va
            vd = (vd >> 8 | vd << 24) & MASK
            vc = vc + vd & MASK
            vb ^= vc
            v[a], v[b], v[c], v[d] = va, (vb >> 7 | vb << 25) & MASK, vc, vd
    return [v[i] ^ v[i + 8] for i in range(8)] + [v[i + 8] ^ cv[i] for i in range(8)]


def blake3_node(key, data, chunk, flags):
    """The arguments of the last `compress` of a subtree: of one chunk, or of a parent."""
    if len(data) > 1024:
        split = 1024 << ((len(data) - 1) // 1024).bit_length() - 1
        left = compress(*blake3_node(key, data[:split], chunk, flags))[:8]
        right = compress(*blake3_node(key, data[split:], chunk + split // 1024, flags))[:8]
        return key, left + right, 0, 64, flags | PARENT
    cv, start = key, START
    for at in range(0, max(len(data), 1), 64):
        block = data[at : at + 64]
        words = struct.unpack("<16I", block.ljust(64, b"\0"))
        if at + 64 >= len(data):
            return cv, words, chunk, len(block), flags | start | END
        cv, start = compress(cv, words, chunk, 64, flags | start)[:8], 0


def blake3(key, data, flags, length):
    cv, words, _, size, last = blake3_node(key, data, 0, flags)
    # A chunk's own counter is 0 where it is the root, so the counter is that of the output.
    blocks = (compress(cv, words, i, size, last | ROOT) for i in range((length + 63) // 64))
    return b"".join(struct.pack("<16I", *block) for block in blocks)[:length]


@functools.lru_cache(None)
def context_key(context):
    return struct.unpack("<8I", blake3(IV, context.encode(), CONTEXT, 32))


def b3(context, *parts, length=32):
    return blake3(context_key(context), b"".join(parts), MATERIAL, length)


# RFC 6962.


def sha(*parts):
    return hashlib.sha256(b"".join(parts)).digest()


def leaf_hash(entry):
    return sha(b"\0", entry)


def tree_root(hashes):
    if len(hashes) < 2:
        return hashes[0] if hashes else sha()
    split = 1 << (len(hashes) - 1).bit_length() - 1
    return sha(b"\1", tree_root(hashes[:split]), tree_root(hashes[split:]))


def path_root(leaf, index, size, path):
    """The root that an inclusion path leads to; None if the path has the wrong length."""
    at, last, node = index, size - 1, leaf
    for sibling in path:
        if last == 0:
            return None
        if at & 1 or at == last:
            node = sha(b"\1", sibling, node)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            node = sha(b"\1", node, sibling)
        at, last = at >> 1, last >> 1
    return node if last == 0 else None


# Encodings: one text for one value, so that nothing can be changed without notice.


def from_base64(text, size=None):
    try:
        data = base64.b64decode(text, validate=True)
    except (ValueError, TypeError) as error:
        raise Wrong(f"not base64: {error}") from None
    need(base64.b64encode(data).decode() == text, "base64 that is not in its one form")
    need(size is None or len(data) == size, f"{len(data)} bytes where {size} belong")
    return data


def from_hex(text, size=32):
    need(isinstance(text, str) and re.fullmatch(f"[0-9a-f]{{{2 * size}}}", text), f"not {size} bytes in hexadecimal")
    return bytes.fromhex(text)


def from_decimal(text):
    need(re.fullmatch("0|[1-9][0-9]{0,18}", text), f"not a number: {text[:30]!r}")
    return int(text)


def from_json(text):
    def once(pairs):
        need(len(dict(pairs)) == len(pairs), "a member comes twice")
        return dict(pairs)

    try:
        value = json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise Wrong(f"not JSON: {error}") from None
    need(isinstance(value, dict), "not a JSON object")
    return value


def member(of, name, kind):
    value = of.get(name)
    need(type(value) is kind, f"`{name}` is missing or not of type {kind.__name__}")
    need(kind is not int or 0 <= value < 1 << 64, f"`{name}` is out of range")
    return value


def seq_ranges(text):
    """7,9-12 as [(7, 7), (9, 12)]: rising."""
    ranges = []
    for part in text.split(",") if text else []:
        first, _, last = part.partition("-")
        ranges.append((from_decimal(first), from_decimal(last or first)))
        need(ranges[-1][0] <= ranges[-1][1] and (len(ranges) < 2 or ranges[-2][1] < ranges[-1][0]),
             f"seqs do not rise: {text[:60]}")
    return ranges


# Signed notes and keys.

Key = collections.namedtuple("Key", "text name id algorithm public")
Checkpoint = collections.namedtuple("Checkpoint", "origin size root text signatures")
ALGORITHMS = {1: ("Ed25519", 32), 6: ("ML-DSA-44", 1312)}


def parse_key(text):
    need(isinstance(text, str) and text.count("+") >= 2, "not a verifier key: name+id+base64")
    name, key_id, public = text.split("+", 2)
    public = from_base64(public)
    need(public[:1] and public[0] in ALGORITHMS and len(public) == 1 + ALGORITHMS[public[0]][1],
         f"a key of an unknown algorithm: {text[:60]}")
    need(sha(name.encode(), b"\n", public)[:4].hex() == key_id, f"a key with the id of another: {text[:60]}")
    return Key(text, name, bytes.fromhex(key_id), public[0], public[1:])


def parse_signature(line):
    match = re.fullmatch("\u2014 ([^ +]+) ([A-Za-z0-9+/=]+)", line)
    need(match, f"not a signature line: {line[:60]!r}")
    data = from_base64(match[2])
    return match[1], data[:4], data[4:]


def parse_note(text):
    body, blank, tail = text.rpartition("\n\n")
    need(blank and tail.endswith("\n"), "not a signed note")
    return body + "\n", [parse_signature(line) for line in tail[:-1].split("\n")]


def parse_checkpoint(text):
    body, signatures = parse_note(text)
    lines = body.split("\n")
    need(len(lines) == 4, "not a checkpoint of three lines")
    return Checkpoint(lines[0], from_decimal(lines[1]), from_base64(lines[2], 32), body, signatures)


class Signatures:
    """Verifies signatures, and remembers which it could not for want of a module."""

    def __init__(self):
        self.missing, self.modules, self.invalid = set(), {}, ()
        try:
            from cryptography.exceptions import InvalidSignature
            from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
            self.invalid, self.modules[1] = InvalidSignature, Ed25519PublicKey
            from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PublicKey
            self.modules[6] = MLDSA44PublicKey
        except ImportError:
            pass

    def one(self, key, signature, message, what):
        name = ALGORITHMS[key.algorithm][0]
        if key.algorithm not in self.modules:
            self.missing.add(f"{name}: this Python has no module for it (pip install 'cryptography>=46')")
            return
        try:
            self.modules[key.algorithm].from_public_bytes(key.public).verify(signature, message)
        except self.invalid:
            raise Wrong(f"{what}: the {name} signature is false") from None
        except Exception as error:  # built without this algorithm, say
            self.missing.add(f"{name}: {type(error).__name__} {error}")

    def note(self, signatures, keys, message, what):
        """Every one of the keys has signed. Lines by other keys say nothing to us."""
        for key in keys:
            found = [s for name, key_id, s in signatures if (name, key_id) == (key.name, key.id)]
            need(found, f"{what}: not signed by {key.name}+{key.id.hex()} ({ALGORITHMS[key.algorithm][0]})")
            for signature in found:
                self.one(key, *message(key, signature), what)

    def checkpoint(self, point, keys):
        def message(key, signature):
            if key.algorithm == 1:
                return signature, point.text.encode()
            names = [bytes([len(name.encode())]) + name.encode() for name in (key.name, point.origin)]
            # cosigned_message of C2SP tlog-cosignature.
            return signature[8:], b"".join((b"subtree/v1\n\0", names[0], signature[:8], names[1], bytes(8),
                                            struct.pack(">Q", point.size), point.root))

        need(all(key.name == point.origin for key in keys), f"the checkpoint is of another log, {point.origin}")
        self.note(point.signatures, keys, message, f"the checkpoint of size {point.size}")

    def raw(self, signatures, keys, text, what):
        self.note(signatures, keys, lambda _, signature: (signature, text.encode()), what)


# Entries, content, and the ledger's own records.

Entry = collections.namedtuple("Entry", "version kind flags zero seq time submitter counter content previous")
SYSTEM = "system:custody"


def parse_entry(data, seq):
    need(len(data) == 112, f"an entry of {len(data)} bytes", seq)
    entry = Entry(*struct.unpack(">BBHIQQ16sQ32s32s", data))
    if entry.version > 1:
        raise CannotTell(f"record {seq} is of format {entry.version}: get a newer verify.py")
    need(entry.version == 1 and entry.zero == 0 and 1 <= entry.kind <= 3 and entry.flags < 4,
         "not an entry of format 1", seq)
    need(entry.seq == seq, f"an entry that says it is {entry.seq}", seq)
    return entry


class Chain:
    """What binds each entry to those before it."""

    def __init__(self):
        self.size, self.time, self.head, self.counters = 0, 0, bytes(32), collections.Counter()

    def add(self, data):
        entry = parse_entry(data, self.size)
        need(entry.previous == self.head, "the chain is broken before this record", self.size)
        need(entry.counter == self.counters[entry.submitter], "the submitter's counter has a gap", self.size)
        need(entry.time >= self.time, "the ingest time goes back", self.size)
        self.counters[entry.submitter] += 1
        self.size, self.time, self.head = self.size + 1, entry.time, b3("custody chain v1", data)
        return entry


@functools.lru_cache(64)
def shared_digest(frame, identity, resource, scope):
    """d_shared; each of the last three is (bytes, salt)."""
    parts = zip(("identity", "resource", "scope"), (identity, resource, scope))
    return b3("custody shared v1", frame, *(b3(f"custody {n} v1", salt, data) for n, (data, salt) in parts))


def content_commitment(salt, shared, record):
    return b3("custody content v1", salt, shared, struct.pack(">Q", len(record)), record)


def parse_content(content):
    """The commitment, the identity and the record of a member `content`."""
    parts = {}
    for name in ("identity", "resource", "scope", "record"):
        pair = member(content, name, list)
        need(len(pair) == 2 and isinstance(pair[0], str), f"`{name}` is not a pair of text and salt")
        parts[name] = (pair[0].encode() if name == "identity" else from_base64(pair[0]), from_hex(pair[1]))
    shared = shared_digest(from_hex(content.get("frame")), parts["identity"], parts["resource"], parts["scope"])
    record, salt = parts["record"]
    return content_commitment(salt, shared, record), content["identity"][0], record


def protobuf(data):
    """(field number, value) of each field of a message."""
    at, out = 0, []

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            need(at < len(data) and shift < 70, "not protobuf")
            value, shift, at = value | (data[at] & 127) << shift, shift + 7, at + 1
            if data[at - 1] < 128:
                return value & (1 << 64) - 1

    while at < len(data):
        tag = varint()
        need(tag & 7 in (0, 1, 2, 5), "not protobuf")
        size = {1: 8, 5: 4}.get(tag & 7)
        value = varint() if tag & 7 in (0, 2) else None
        if tag & 7:
            size = value if size is None else size
            need(at + size <= len(data), "not protobuf")
            value, at = data[at : at + size], at + size
        out.append((tag >> 3, value))
    return out


def any_value(data):
    number, value = (protobuf(data) or [(0, None)])[-1]
    if number == 1:
        return value.decode()
    return [any_value(v) for n, v in protobuf(value) if n == 1] if number == 5 else value


def own_record(data):
    """Event name and attributes of a record of the ledger's own (an OTLP LogRecord)."""
    fields = protobuf(data)
    event = b"".join(v for n, v in fields if n == 12).decode()
    pairs = [dict(protobuf(v)) for n, v in fields if n == 6]
    return event, {pair[1].decode(): any_value(pair.get(2, b"")) for pair in pairs}


# Bundles.


def verifying(seq, what, *args):
    """Calls `what`; what it finds wrong is said of this record."""
    try:
        return what(*args)
    except Wrong as error:
        raise Wrong(str(error), seq if error.seq is None else error.seq) from None
    except MALFORMED as error:
        raise Wrong(f"malformed: {error!r}"[:200], seq) from None


MALFORMED = (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError, struct.error)


class Bundle:
    def __init__(self, head, points, signatures):
        if head.get("version") != 1:
            raise CannotTell("a bundle of another version: get a newer verify.py")
        self.head, self.points, self.signatures, self.chain = head, points, signatures, Chain()
        self.origin, self.size = member(head, "origin", str), member(head, "size", int)
        self.complete = member(head, "complete", bool)
        self.erased_by, self.own, self.keys, self.leaves = {}, {}, [], []
        need(points[0].size == self.size and all(p.size <= self.size and p.origin == self.origin for p in points),
             "the checkpoints are of another log or size")

    def record(self, line):
        seq = member(line, "seq", int)
        verifying(seq, self.one, seq, line)

    def one(self, seq, line):
        need(seq not in self.erased_by and seq < self.size, "twice here, or not in the tree")
        need(bool(self.erased_by) or seq == 0, "the genesis record does not come first")
        data = from_base64(member(line, "entry", str))
        entry = self.chain.add(data) if self.complete else parse_entry(data, seq)
        need(entry.seq == seq, "a record is missing before this one, or out of order")
        if self.complete:
            self.leaves.append(leaf_hash(data))
        else:
            path = [from_base64(node, 32) for node in member(line, "path", list)]
            need(path_root(leaf_hash(data), seq, self.size, path) == self.points[0].root, "its path misses the root")
        self.erased_by[seq] = None
        if "content" in line and line["content"] is None:
            self.erased_by[seq] = member(line, "erased_by", int)
            return
        commitment, identity, record = parse_content(member(line, "content", dict))
        need(commitment == entry.content, "its content is not what the log committed to")
        if identity == SYSTEM:
            self.own[seq] = event, said = own_record(record)
            if event in ("custody.log.genesis", "custody.log.keys"):
                self.new_keys(seq, event, said)

    def new_keys(self, seq, event, said):
        if event == "custody.log.genesis":
            need(seq == 0 and said["custody.log.origin"] == self.origin, "the genesis record of another log")
            self.keys.append((0, [parse_key(text) for text in said["custody.log.vkeys"]]))
            return
        former, new = self.keys[-1][1], said["custody.keys.vkeys"]
        need(self.keys[-1][0] < seq, "the records that name keys are out of order")
        text = "\n".join(["custody keys v1", self.origin, f"from {seq}", *new, ""])
        need(said["custody.keys.statement"] == text, "the rotation's statement says something else")
        lines = [parse_signature(line.rstrip("\n")) for line in said["custody.keys.signatures"]]
        self.signatures.raw(lines, former, text, "the rotation of keys")
        self.keys.append((seq, [parse_key(text) for text in new]))

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
            for first, last in verifying(seq, seq_ranges, said.get("custody.erasure.seqs", "")):
                need(event == "custody.log.erasure" and last < seq, "it erases what is not before it", seq)
                for erased in range(first, last + 1) if last - first < len(self.erased_by) else list(self.erased_by):
                    if first <= erased <= last:
                        gone[erased].add(seq)
        for seq, by in sorted(self.erased_by.items()):
            need(by is None or by in gone[seq], "its content is missing, and no erasure here names it", seq)
            need(by is not None or not gone[seq], f"its content is here, though erased by {gone[seq]}", seq)
        self.asked()
        need(self.head.get("vkeys") == [key.text for key in self.keys_at(self.size)], "other keys are in force")
        need(not trusted or any({k.text for k in trusted} <= {k.text for k in keys} for _, keys in self.keys),
             "the log's records do not name the keys that you trust")
        for point in self.points:
            self.signatures.checkpoint(point, self.keys_at(point.size))

    def asked(self):
        ranges = seq_ranges(member(self.head, "seqs", str))
        count = sum(last - first + 1 for first, last in ranges)
        need(count <= len(self.erased_by), "not all records are there that were asked for")
        for seq in (seq for first, last in ranges for seq in range(first, last + 1)):
            need(seq in self.erased_by, "it was asked for, and is not there", seq)
        event, said = self.own.get(member(self.head, "exported_seq", int), ("", {}))
        need(event == "custody.log.export", "the record that says of the export is not there")
        for name, there in (("query", "query"), ("reason", "reason"), ("identity", "exported_by")):
            need(said.get(f"custody.export.{name}") == self.head.get(there), f"`{there}` is not what the log says")


def check_bundle(data, trusted, signatures):
    need(data.endswith(b"\n"), "broken off: no newline at the end")
    lines = data[:-1].split(b"\n")
    parsed = [verifying(None, lambda line: from_json(line.decode()), line) for line in lines]
    letters = {"custody-bundle": "b", "checkpoint": "c", "record": "r", "signature": "s"}
    shape = "".join(letters.get(line.get("type"), "?") for line in parsed)
    need(re.fullmatch("bcc?r+s", shape), "not head, checkpoint, records, signature")
    first = shape.index("r")
    points = [parse_checkpoint(member(line, "note", str)) for line in parsed[1:first]]
    bundle = Bundle(parsed[0], points, signatures)
    for line in parsed[first:-1]:
        bundle.record(line)
    bundle.whole(trusted)
    text, seal = parse_note(member(parsed[-1], "note", str))
    digest = hashlib.sha256(data[: -len(lines[-1]) - 1]).hexdigest()
    need(text == f"custody bundle v1\n{bundle.origin}\nlines {len(lines) - 1}\nsha256 {digest}\n",
         "the last line is of another bundle: something was changed")
    signatures.raw(seal, [k for k in bundle.keys_at(bundle.size) if k.algorithm == 1], text, "the last line")
    erased = sum(by is not None for by in bundle.erased_by.values())
    return {"file": "bundle", "origin": bundle.origin, "size": bundle.size, "complete": bundle.complete,
            "records": len(bundle.erased_by), "erased": erased, "keys": [k.text for k in bundle.keys[0][1]]}


def check_proof(data, trusted, signatures):
    head, _, note = data.decode().partition("\n\n")
    match = re.fullmatch("c2sp.org/tlog-proof@v1\n(?:extra (.*)\n)?index (.*)((?:\n.+)*)", head)
    need(match, "not a tlog-proof")
    seq, point = from_decimal(match[2]), parse_checkpoint(note)
    need(match[1], "it has no extra line, so that it does not say of which record", seq)
    shown = from_json(from_base64(match[1]).decode())
    entry_bytes = from_base64(member(shown, "entry", str))
    entry = parse_entry(entry_bytes, seq)
    path = [from_base64(node, 32) for node in match[3].split("\n")[1:]]
    need(seq < point.size and path_root(leaf_hash(entry_bytes), seq, point.size, path) == point.root,
         "its path misses the root", seq)
    if shown.get("content") is not None:
        need(parse_content(member(shown, "content", dict))[0] == entry.content, "its content is another", seq)
    if trusted:
        signatures.checkpoint(point, trusted)
    else:
        signatures.missing.add("no key was given: --vkey log.vkey")
    return {"file": "proof", "origin": point.origin, "size": point.size, "seq": seq,
            "content": shown.get("content") is not None}


def check_live(url, trusted, signatures, older):
    def get(path):
        try:
            with urllib.request.urlopen(url.rstrip("/") + path, timeout=60) as answer:
                return answer.read(1 << 24)
        except urllib.error.HTTPError as error:
            need(error.code == 404, f"{path}: status {error.code}")
            return None
        except (OSError, ValueError) as error:
            raise CannotTell(f"{url}{path}: {error}") from None

    def tile(kind, index, width, piece):
        name = f"{index % 1000:03}"
        while index := index // 1000:
            name = f"x{index % 1000:03}/{name}" if name.startswith("x") else f"x{index % 1000:03}/{name}"
        data = get(f"/tile/{kind}/{name}" + (f".p/{width}" if width < 256 else ""))
        if data is None and width < 256:  # The log has grown, and may serve the full tile only.
            data = get(f"/tile/{kind}/{name}")
        need(data is not None, f"tile {kind}/{name} of width {width} is missing")
        return data[: piece * width] if piece else data

    point = parse_checkpoint((get("/checkpoint") or b"").decode())
    if trusted:
        signatures.checkpoint(point, trusted)
    else:
        signatures.missing.add("no key was given: --vkey log.vkey")
    chain, hashes = Chain(), []
    for index in range((point.size + 255) // 256):
        width = min(256, point.size - 256 * index)
        data = tile("entries", index, width, 114)
        need(len(data) == 114 * width, "an entry bundle of another size", chain.size)
        for at in range(0, len(data), 114):
            need(data[at : at + 2] == b"\0\x70", "an entry of another size", chain.size)
            chain.add(data[at + 2 : at + 114])
            hashes.append(leaf_hash(data[at + 2 : at + 114]))
    leaves, level, tiles = hashes, 0, 0
    while hashes:
        for at in range(0, len(hashes), 256):
            own = b"".join(hashes[at : at + 256])
            need(tile(level, at // 256, len(own) // 32, 32) == own, f"tile {level}/{at // 256} is false",
                 at << 8 * level)
            tiles += 1
        hashes = [tree_root(hashes[i : i + 256]) for i in range(0, len(hashes) - 255, 256)]
        level += 1
    need(tree_root(leaves) == point.root, "the entries do not make the signed root")
    if older:
        need(older.origin == point.origin, "the trusted checkpoint is of another log")
        need(older.size <= point.size, f"rolled back: {older.size} records were signed", point.size)
        need(tree_root(leaves[: older.size]) == older.root, f"another root at size {older.size}")
    return {"file": "log", "origin": point.origin, "size": point.size, "tiles": tiles,
            "submitters": len(chain.counters), "trusted_size": older.size if older else None}


# The worked example of docs/format.md, and a vector of BLAKE3's own.

PAYLOAD = """0a95010a190a170a0c736572766963652e6e616d6512070a056167656e7412780a090a076578616d706c65126b0a1010111213
1415161718191a1b1c1d1e1f120820212223242526272a17657865637574655f746f6f6c2073656e645f6d6f6e657930013900002a36fe9c9717
4100cac471fe9c97174a200a1067656e5f61692e746f6f6c2e6e616d65120c0a0a73656e645f6d6f6e6579"""


def self_test():
    def same(got, want, what):
        need(got.hex() == want, f"self-test: {what} is {got.hex()}")

    same(b3("BLAKE3 2019-12-27 16:29:52 test vectors context", bytes(i % 251 for i in range(3073)), length=70)[:32],
         "72613c9ec9ff7e40f8f5c173784c532ad852e827dba2bf85b2ab4b76f7079081", "BLAKE3 of 3073 bytes")
    payload = bytes.fromhex(PAYLOAD)
    xof = b3("custody salts v1", bytes(range(32)), length=160)
    salts = [xof[at : at + 32] for at in range(0, 160, 32)]
    same(salts[4], "d1a7d9862267058ec2d1cc1a780449cbb1952936338c1a3ebd6beb882e1daa2a", "the record's salt")
    ranges = [(5, 25), (34, 9), (45, 107)]
    table = struct.pack(">9I", 1, 5, 25, 34, 9, 1, 0, 45, 107) + bytes(4)
    resource, scope, record = (payload[at : at + size] for at, size in ranges)
    rest = payload[:5] + payload[30:34] + payload[43:45] + payload[152:]
    frame = b3("custody frame v1", salts[0], bytes([1, 1, 0, 0]), struct.pack(">2I", len(payload), 0), table, rest)
    same(frame, "3393470262640dc36a1a6f485d4874410c7c583121b02c9e4ec66b0125d758c7", "d_frame")
    shared = shared_digest(frame, (b"peer:127.0.0.1", salts[1]), (resource, salts[2]), (scope, salts[3]))
    same(shared, "1edef4567d5adacc6d727e6b120cfc200b36afabadd9abb799519f421588b6a9", "d_shared")
    content = content_commitment(salts[4], shared, record)
    same(content, "63f96f9ed57cb8cfb903a0dc4199413c9751b181c443ceec20e7980211ebdd0c", "c")
    entry = struct.pack(">BBHIQQ16sQ32s32s", 1, 1, 0, 0, 1, 1700000002000000000, bytes(range(0xA0, 0xB0)), 0,
                        content, b"\x55" * 32)
    same(b3("custody chain v1", entry), "858ce1fbad6e8edf66c67d55a5270e898179b4ed52af2927c9c25e0c1144d6d9", "chain")
    same(leaf_hash(entry), "5eb2cc328b00fa08ce954ee3265b329190b5d0bd88a8075a45a76a4440ec7d5d", "leaf")
    return {"file": "self-test"}


def read(path):
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise CannotTell(f"{path}: {error.strerror}") from None


def run(args, signatures):
    trusted = [parse_key(line) for line in read(args.vkey).decode().split()] if args.vkey else []
    need(trusted or not args.vkey, "no key in the file of --vkey")
    if args.self_test:
        return self_test()
    if args.url:
        older = parse_checkpoint(read(args.trusted).decode()) if args.trusted else None
        return check_live(args.url, trusted, signatures, older)
    data = read(args.file)
    check = check_proof if data.startswith(b"c2sp.org/tlog-proof") else check_bundle
    return check(data, trusted, signatures)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", help="a bundle or a .tlog-proof")
    parser.add_argument("--url", help="the HTTP address of a server")
    parser.add_argument("--vkey", help="a file of the log's public keys that you trust, a line each")
    parser.add_argument("--trusted", help="with --url: an older checkpoint that the log must still contain")
    parser.add_argument("--no-signatures", action="store_true", help="status 0 though a signature was not verified")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--self-test", action="store_true", help="verify this program")
    args = parser.parse_args(argv)
    if sum(map(bool, (args.file, args.url, args.self_test))) != 1:
        parser.error("give one file, or --url, or --self-test")
    signatures, status, told = Signatures(), 0, {}
    try:
        told = verifying(None, run, args, signatures)
    except Wrong as error:
        status, told = 1, {"reason": str(error), "seq": error.seq}
    except CannotTell as error:
        status, told = 2, {"reason": str(error)}
    not_verified = sorted(signatures.missing)
    if status == 0 and not_verified and not args.no_signatures:
        status = 3
    verdict = ("sound", "false", "cannot tell", "sound, but for signatures")[status]
    if args.json:
        print(json.dumps({"verdict": verdict, **told, "signatures_not_verified": not_verified}))
        return status
    where = f"record {told['seq']}: " if status == 1 and told["seq"] is not None else ""
    words = " ".join(f"{k}={v}" for k, v in told.items() if k != "keys" and v is not None)
    print(f"{verdict}: {where}{told['reason'] if status in (1, 2) else words}")
    for reason in not_verified:
        print(f"signature NOT verified: {reason}")
    if told.get("keys") and not args.vkey:
        print("compare these keys with those that the log's operator published:", *told["keys"], sep="\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
