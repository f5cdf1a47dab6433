"""Reads a whole log over HTTP as any C2SP tlog-tiles client could, and recomputes it
with nothing but SHA-256 and Ed25519: entries, leaves, tiles, root, signature."""

import base64
import hashlib
import struct
import sys
import urllib.request

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

url, vkey = sys.argv[1], sys.argv[2]


def get(path):
    with urllib.request.urlopen(url + path) as answer:
        return answer.read()


def sha(*parts):
    return hashlib.sha256(b"".join(parts)).digest()


def root(hashes):
    """RFC 6962, section 2.1, by its definition."""
    if len(hashes) == 1:
        return hashes[0]
    split = 1 << (len(hashes) - 1).bit_length() - 1
    return sha(b"\x01", root(hashes[:split]), root(hashes[split:]))


def tile_path(kind, index, width):
    groups = [f"{index % 1000:03}"]
    while index := index // 1000:
        groups.insert(0, f"x{index % 1000:03}")
    return f"/tile/{kind}/" + "/".join(groups) + (f".p/{width}" if width < 256 else "")


note = get("/checkpoint").decode()
body, signatures = note.split("\n\n")
origin, size, wanted = body.split("\n")
size = int(size)
name, key_id, public = vkey.split("+", 2)  # base64 may have more of them
assert name == origin
public = base64.b64decode(public)
assert public[0] == 1 and sha(name.encode(), b"\n", public)[:4].hex() == key_id
line = next(l for l in signatures.split("\n") if l.startswith(f"\u2014 {name} "))
signature = base64.b64decode(line.rsplit(" ", 1)[1])
assert signature[:4].hex() == key_id
Ed25519PublicKey.from_public_bytes(public[1:]).verify(signature[4:], (body + "\n").encode())

leaves = []
for index in range((size + 255) // 256):
    width = min(256, size - index * 256)
    bundle, own = get(tile_path("entries", index, width)), []
    while bundle:
        (length,) = struct.unpack(">H", bundle[:2])
        entry, bundle = bundle[2 : 2 + length], bundle[2 + length :]
        assert entry[0] == 1 and struct.unpack(">Q", entry[8:16])[0] == len(leaves) + len(own)
        own.append(sha(b"\x00", entry))
    assert len(own) == width and b"".join(own) == get(tile_path(0, index, width))
    leaves += own
tops = [root(leaves[i : i + 256]) for i in range(0, size - 255, 256)]
if tops:
    assert b"".join(tops) == get(tile_path(1, 0, len(tops)))
assert root(leaves) == base64.b64decode(wanted)
print("sound", size)
