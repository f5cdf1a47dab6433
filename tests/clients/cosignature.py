"""Verifies an Ed25519 cosignature (C2SP tlog-cosignature, type 04) on a checkpoint with
nothing but SHA-256 and Ed25519."""

import base64
import hashlib
import struct
import sys
import time
import urllib.request

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

url, vkey = sys.argv[1], sys.argv[2]
with urllib.request.urlopen(url) as answer:
    note = answer.read().decode()
body, signatures = note.split("\n\n")
name, key_id, public = vkey.split("+", 2)  # base64 may have more of them
public = base64.b64decode(public)
assert public[0] == 4 and len(public) == 33
assert hashlib.sha256(name.encode() + b"\n" + public).digest()[:4].hex() == key_id
lines = [base64.b64decode(l.rsplit(" ", 1)[1]) for l in signatures.split("\n") if l.startswith(f"\u2014 {name} ")]
(signature,) = [line[4:] for line in lines if line[:4].hex() == key_id]
(when,) = struct.unpack(">Q", signature[:8])
assert abs(time.time() - when) < 3600 and len(signature) == 8 + 64
message = f"cosignature/v1\ntime {when}\n{body}\n".encode()
Ed25519PublicKey.from_public_bytes(public[1:]).verify(signature[8:], message)
print(body.split("\n")[1])
