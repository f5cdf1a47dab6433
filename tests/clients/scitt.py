"""Checks a COSE receipt with scitt-cose: receipt file, the log's vkey, the entry in hex."""

import base64
import sys

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from scitt_cose import verify_receipt

path, vkey, entry = sys.argv[1:]
public = base64.b64decode(vkey.split("+", 2)[2])
assert public[0] == 1
pem = Ed25519PublicKey.from_public_bytes(public[1:]).public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)
with open(path, "rb") as file:
    result = verify_receipt(file.read(), leaf_entry_hex=entry, log_public_key_pem=pem)
print(f"ok {result.leaf_index} of {result.tree_size}" if result.ok else f"refused: {result.errors}")
