"""What verify.py stands on and others have specified: BLAKE3, RFC 6962, C2SP notes, protobuf.

Plain Python, meant to be read beside its specifications; `verify.py --self-test` checks it.
"""

import base64
import collections
import functools
import hashlib
import re
import struct


class Refused(Exception):
    """False (status 1), or it cannot be told (2); `seq` is the first record of which that is known."""

    def __init__(self, reason, seq, status):
        super().__init__(reason)
        self.seq, self.status = seq, status

# What Python raises when a value is not of the form that the code expects: hostile input.
MALFORMED = (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError, struct.error)


def need(condition, reason, seq=None, status=1):
    if not condition:
        raise Refused(reason, seq, status)


# BLAKE3: derive_key mode with extendable output, which is all that the format uses.

IV = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
START, END, PARENT, ROOT, CONTEXT, MATERIAL, MASK = 1, 2, 4, 8, 32, 64, 0xFFFFFFFF
LANES = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
         (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))
ROUNDS = [list(range(16))]
for _ in range(6):
    ROUNDS.append([ROUNDS[-1][i] for i in (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)])


def compress(cv, words, counter, length, flags):
    v = [*cv, *IV[:4], counter & MASK, counter >> 32, length, flags]
    for order in ROUNDS:
        for i, (a, b, c, d) in enumerate(LANES):
            for word, right, left in ((order[2 * i], 16, 12), (order[2 * i + 1], 8, 7)):
                v[a] = v[a] + v[b] + words[word] & MASK
                x = v[d] ^ v[a]
                v[d] = (x >> right | x << 32 - right) & MASK
                v[c] = v[c] + v[d] & MASK
                x = v[b] ^ v[c]
                v[b] = (x >> left | x << 32 - left) & MASK
    return [v[i] ^ v[i + 8] for i in range(8)] + [v[i + 8] ^ cv[i] for i in range(8)]


def blake3_node(key, data, chunk, flags):
    """The arguments of the last `compress` of a subtree, which may be the root."""
    if len(data) > 1024:
        split = 1024 << ((len(data) - 1) // 1024).bit_length() - 1
        halves = (data[:split], chunk), (data[split:], chunk + split // 1024)
        return key, sum((compress(*blake3_node(key, *half, flags))[:8] for half in halves), []), 0, 64, flags | PARENT
    start = START
    for at in range(0, len(data) - 64, 64):
        key, start = compress(key, struct.unpack_from("<16I", data, at), chunk, 64, flags | start)[:8], 0
    last = data[(len(data) - 1) // 64 * 64 if data else 0 :]
    return key, struct.unpack("<16I", last.ljust(64, b"\0")), chunk, len(last), flags | start | END


def blake3(key, data, flags, length):
    cv, words, _, size, last = blake3_node(key, data, 0, flags)
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
    """The root to which an inclusion path leads; None if it has another length than it must."""
    node, last = leaf, size - 1
    for sibling in path:
        if last == 0:
            return None
        if index & 1 or index == last:
            node = sha(b"\1", sibling, node)
            while index and not index & 1:
                index, last = index >> 1, last >> 1
        else:
            node = sha(b"\1", node, sibling)
        index, last = index >> 1, last >> 1
    return None if last else node


# Encodings. A value has one text only, so that nothing can be changed unnoticed.


def from_base64(text, size=None):
    data = base64.b64decode(text, validate=True)
    need(base64.b64encode(data).decode() == text, "base64 that is not in its one form")
    need(size in (None, len(data)), f"{len(data)} bytes where {size} belong")
    return data


def from_hex(text):
    need(re.fullmatch("[0-9a-f]{64}", text), "not 32 bytes in hexadecimal")
    return bytes.fromhex(text)


def from_decimal(text):
    need(re.fullmatch("0|[1-9][0-9]{0,18}", text), f"not a number: {text[:30]!r}")
    return int(text)


# Signed notes and keys.


Key = collections.namedtuple("Key", "text name id algorithm public")
Checkpoint = collections.namedtuple("Checkpoint", "origin size root text signatures")
ALGORITHMS = {1: ("Ed25519", 32, 64), 6: ("ML-DSA-44", 1312, 2420)}  # name, bytes of a key, of a signature


def parse_keys(texts):
    keys = []
    for text in texts:
        name, key_id, public = text.split("+", 2)
        data = from_base64(public)
        need(len(data) == 1 + ALGORITHMS.get(data[0], (0, 0, 0))[1] > 1, f"a key of an unknown algorithm: {text[:60]}")
        need(sha(name.encode(), b"\n", data)[:4].hex() == key_id, f"a key with the id of another: {text[:60]}")
        keys.append(Key(text, name, bytes.fromhex(key_id), data[0], data[1:]))
    need(any(key.algorithm == 1 for key in keys), "no Ed25519 key is named")
    return keys


def parse_signature(line):
    match = re.fullmatch("\u2014 ([^ +]+) ([A-Za-z0-9+/=]+)\n?", line)
    need(match, f"not a signature line: {line[:60]!r}")
    data = from_base64(match[2])
    return match[1], data[:4], data[4:]


def parse_note(text):
    body, _, tail = text.rpartition("\n\n")
    need(body and tail.endswith("\n"), "not a signed note")
    return body + "\n", [parse_signature(line) for line in tail[:-1].split("\n")]


def parse_checkpoint(text):
    body, signatures = parse_note(text)
    origin, size, root, end = body.split("\n")
    need(end == "", "not a checkpoint of three lines")
    return Checkpoint(origin, from_decimal(size), from_base64(root, 32), body, signatures)


class Signatures:
    """Verifies signatures, and remembers which it could not for want of a module or key."""

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

    def check(self, what, signatures, keys, text, point=None):
        """Every one of the keys has signed. Lines by other keys say nothing to us."""
        for key in keys:
            name, _, length = ALGORITHMS[key.algorithm]
            found = [signature for signer, key_id, signature in signatures if (signer, key_id) == (key.name, key.id)]
            need(found, f"{what} is not signed by {key.name}+{key.id.hex()} ({name})")
            for signature in found:
                message = text.encode()
                if point and key.algorithm == 6:  # cosigned_message of C2SP tlog-cosignature
                    own, origin = (bytes([len(n.encode())]) + n.encode() for n in (key.name, point.origin))
                    size = struct.pack(">QQ", 0, point.size)
                    message = b"".join((b"subtree/v1\n\0", own, signature[:8], origin, size, point.root))
                    signature = signature[8:]
                need(len(signature) == length, f"{what}: its {name} signature has another length")
                if key.algorithm not in self.modules:
                    self.missing.add(f"{name}: this Python has no module for it (pip install 'cryptography>=50')")
                    continue
                try:
                    self.modules[key.algorithm].from_public_bytes(key.public).verify(signature, message)
                except self.invalid:
                    need(False, f"{what}: its {name} signature is false")
                except Exception as error:  # a module that was built without this algorithm
                    self.missing.add(f"{name}: {error!r}")

    def checkpoint(self, point, keys):
        need(all(key.name == point.origin for key in keys), f"the checkpoint is of another log, {point.origin}")
        self.check(f"the checkpoint of size {point.size}", point.signatures, keys, point.text, point)
        if not keys:
            self.missing.add("no key was given (--vkey log.vkey)")


def protobuf(data):
    """(field number, value) of each field of a message."""

    def varint(at):
        value = shift = 0
        while True:
            value, shift, at = value | (data[at] & 127) << shift, shift + 7, at + 1
            if data[at - 1] < 128:
                return value, at
    at, fields = 0, []
    while at < len(data):
        tag, at = varint(at)
        size = {1: 8, 5: 4}.get(tag & 7, 0)
        if tag & 7 in (0, 2):
            size, at = varint(at)
        value, at = (size, at) if tag & 7 == 0 else (data[at : at + size], at + size)
        need(tag & 7 in (0, 1, 2, 5) and at <= len(data), "not protobuf")
        fields.append((tag >> 3, value))
    return fields


def any_value(data):
    number, value = (protobuf(data) or [(0, None)])[-1]
    if number == 5:
        return [any_value(item) for n, item in protobuf(value) if n == 1]
    return value.decode() if number == 1 else value

