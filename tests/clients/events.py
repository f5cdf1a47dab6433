"""A reader of the events API that shares no code with the server: pages, proofs, consumers.

    events.py pull URL LIMIT [FILTER]    all events by cursor, each page proved; prints what it found
    events.py consume URL NAME           batches of a consumer until there are none
"""

import base64
import hashlib
import json
import sys

import requests


def leaf(entry: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + entry).digest()


def node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def root_of(proof: dict) -> bytes:
    """The root of the tree, from the entries of a range and the paths of its ends (RFC 6962)."""
    first, last, size = proof["first"]["seq"], proof["last"]["seq"], proof["tree_size"]
    leaves = [leaf(base64.b64decode(entry)) for entry in proof["entries"]]
    assert len(leaves) == last - first + 1, "an entry for every seq of the range"
    left = siblings(first, size, proof["first"]["inclusion"], want_left=True)[::-1]
    right = siblings(last, size, proof["last"]["inclusion"], want_left=False)

    def subtree(low: int, high: int) -> bytes:
        if high <= first:
            return left.pop(0)
        if low > last:
            return right.pop(0)
        if high - low == 1:
            return leaves[low - first]
        half = 1
        while half * 2 < high - low:
            half *= 2
        return node(subtree(low, low + half), subtree(low + half, high))

    root = subtree(0, size)
    assert not left and not right, "hashes that are not needed"
    return root


def siblings(index: int, size: int, path: list, want_left: bool) -> list:
    """Those hashes of an inclusion path that stand left, or right, of the leaf; from below."""
    sides = []
    low, high = 0, size
    while high - low > 1:
        half = 1
        while half * 2 < high - low:
            half *= 2
        if index < low + half:
            sides.append("right")
            high = low + half
        else:
            sides.append("left")
            low = low + half
    assert len(sides) == len(path), "a path as long as the tree is high"
    wanted = "left" if want_left else "right"
    return [base64.b64decode(hash) for side, hash in zip(reversed(sides), path) if side == wanted]


def check_page(page: dict) -> None:
    text = page["checkpoint"].split("\n\n")[0].split("\n")
    size, root = int(text[1]), base64.b64decode(text[2])
    scope = page["range"]
    if scope["first_seq"] is None:
        return
    assert size > scope["last_seq"], f"checkpoint {size} does not cover {scope}"
    proof = page["proof"]
    assert proof["tree_size"] == size
    assert (proof["first"]["seq"], proof["last"]["seq"]) == (scope["first_seq"], scope["last_seq"])
    assert root_of(proof) == root, "the root of the range is that of the checkpoint"
    entries = [base64.b64decode(entry) for entry in proof["entries"]]
    for event in page["data"]:
        # The entry holds the record's hash (docs/format.md): the event is of a record in the tree.
        entry = entries[event["seq"] - scope["first_seq"]]
        assert bytes.fromhex(event["record_hash"]) in entry, event["seq"]
    seqs = {event["seq"] for event in page["data"]}
    assert scope["matched"] == len(page["data"])
    assert scope["skipped"] == scope["last_seq"] - scope["first_seq"] + 1 - len(seqs)


def pull(url: str, limit: str, more: str) -> None:
    session = requests.Session()
    session.headers["Accept"] = "application/json"
    params = {"limit": limit, "proof": "1"}
    params.update(part.split("=") for part in more.split("&") if part)
    events, pages, next_seq = [], 0, 0
    while True:
        answer = session.get(url + "/api/v1/events", params=params, timeout=120)
        assert answer.status_code == 200, answer.text
        page = answer.json()
        check_page(page)
        if page["range"]["first_seq"] is not None:
            assert page["range"]["first_seq"] == next_seq, "pages join"
            next_seq = page["range"]["last_seq"] + 1
        assert answer.headers["X-Next-Cursor"] == page["next_cursor"]
        assert page["next_cursor"] in answer.links["next"]["url"]
        events += page["data"]
        pages += 1
        params["after"] = page["next_cursor"]
        if not page["has_more"]:
            break
    uids = {event["metadata"]["uid"] for event in events}
    assert len(uids) == len(events), "no doubles"
    order = [event["metadata"]["sequence"] for event in events]
    assert order == sorted(order)
    print(json.dumps({"events": len(events), "pages": pages, "next_seq": next_seq}))


def consume(url: str, name: str) -> None:
    seqs = []
    while True:
        answer = requests.post(f"{url}/api/v1/consumers/{name}/next", params={"limit": "50"}, timeout=120)
        assert answer.status_code == 200, answer.text
        batch = [json.loads(line)["seq"] for line in answer.text.splitlines()]
        if not batch:
            break
        seqs += batch
    assert seqs == sorted(set(seqs)), "in order, and none twice"
    print(len(seqs))


if __name__ == "__main__":
    if sys.argv[1] == "pull":
        pull(sys.argv[2], sys.argv[3], sys.argv[4] if len(sys.argv) > 4 else "")
    else:
        consume(sys.argv[2], sys.argv[3])
