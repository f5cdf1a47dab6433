#!/usr/bin/env python3
"""Prints the software bill of materials of the `custody` command, as CycloneDX 1.6.

What is built in is what `cargo metadata` resolves for the release from Cargo.lock: normal and build
dependencies, for one target, without what only tests need. The same lock file gives the same bill.
"""

import hashlib
import json
import pathlib
import subprocess
import sys
import uuid

ROOT = pathlib.Path(__file__).resolve().parents[2]


def metadata():
    rustc = subprocess.run(["rustc", "-vV"], check=True, capture_output=True, text=True).stdout
    host = next(line.split(": ")[1] for line in rustc.splitlines() if line.startswith("host: "))
    target = sys.argv[1] if len(sys.argv) > 1 else host
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--offline", "--filter-platform", target]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout)


def checksums(lock):
    """Name and version of a package to its SHA-256, off the lines of Cargo.lock."""
    found, entry = {}, {}
    for line in lock.splitlines():
        if line == "[[package]]":
            entry = {}
        key, _, value = line.partition(" = ")
        if key in ("name", "version", "checksum"):
            entry[key] = value.strip('"')
            if key == "checksum":
                found[entry["name"], entry["version"]] = entry["checksum"]
    return found


def built_in(meta, root):
    """Every package that the root's build pulls in, and its own direct ones."""
    nodes = {node["id"]: node for node in meta["resolve"]["nodes"]}
    edges, todo = {}, [root]
    while todo:
        one = todo.pop()
        if one in edges:
            continue
        kinds = lambda dep: {kind["kind"] for kind in dep["dep_kinds"]}
        edges[one] = sorted({dep["pkg"] for dep in nodes[one]["deps"] if kinds(dep) & {None, "build"}})
        todo += edges[one]
    return edges


def component(package, sums):
    purl = f"pkg:cargo/{package['name']}@{package['version']}"
    license, other = package["license"], {"name": package["license_file"] or "unknown"}
    out = {
        "type": "library",
        "bom-ref": purl,
        "name": package["name"],
        "version": package["version"],
        "purl": purl,
        "licenses": [{"expression": " ".join(license.replace("/", " OR ").split())}] if license else [{"license": other}],
    }
    if package["description"]:
        out["description"] = " ".join(package["description"].split())
    checksum = sums.get((package["name"], package["version"]))
    if checksum:
        out["hashes"] = [{"alg": "SHA-256", "content": checksum}]
    if package["repository"]:
        out["externalReferences"] = [{"type": "vcs", "url": package["repository"]}]
    return out


def main():
    meta = metadata()
    lock = (ROOT / "Cargo.lock").read_text(encoding="utf-8")
    packages = {package["id"]: package for package in meta["packages"]}
    root = next(p["id"] for p in meta["packages"] if p["name"] == "custody" and p["source"] is None)
    edges, sums = built_in(meta, root), checksums(lock)
    parts = {one: component(packages[one], sums) for one in edges}
    main_part = parts.pop(root) | {"type": "application"}
    serial = uuid.UUID(bytes=hashlib.sha256(lock.encode()).digest()[:16], version=4)
    refs = {one: main_part["bom-ref"] if one == root else parts[one]["bom-ref"] for one in edges}
    bill = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
        "metadata": {"component": main_part},
        "components": sorted(parts.values(), key=lambda part: part["bom-ref"]),
        "dependencies": sorted(
            ({"ref": refs[one], "dependsOn": [refs[other] for other in others]} for one, others in edges.items()),
            key=lambda edge: edge["ref"],
        ),
    }
    print(json.dumps(bill, indent=1))


main()
