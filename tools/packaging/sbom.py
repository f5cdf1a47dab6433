#!/usr/bin/env python3
"""Prints the software bill of materials of the `custody` command, as CycloneDX 1.6.

What is built in is what `cargo tree` resolves for the release from Cargo.lock: normal and build
dependencies, for one target, with the features that are on, without what only tests need. (`cargo metadata`
alone names optional dependencies, too, that nothing turns on.) The same lock file gives the same bill.
"""

import hashlib
import json
import pathlib
import re
import subprocess
import sys
import uuid

ROOT = pathlib.Path(__file__).resolve().parents[2]


def cargo(*args):
    done = subprocess.run(["cargo", *args, "--locked", "--offline"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout


def target():
    if len(sys.argv) > 1:
        return sys.argv[1]
    rustc = subprocess.run(["rustc", "-vV"], check=True, capture_output=True, text=True).stdout
    return next(line.split(": ")[1] for line in rustc.splitlines() if line.startswith("host: "))


def packages():
    """Name and version of a package to what its manifest says."""
    meta = json.loads(cargo("metadata", "--format-version", "1", "--filter-platform", target()))
    return {(package["name"], package["version"]): package for package in meta["packages"]}


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


def built_in():
    """Every package that the command is built of, by name and version, to its own direct ones; the command first."""
    edges, path = {}, []
    tree = cargo("tree", "--package", "custody", "--edges", "normal,build", "--target", target(), "--prefix", "depth")
    for line in tree.splitlines():
        depth, name, version = re.match(r"(\d+)(\S+) v(\S+)", line).groups()
        one = (name, version)
        edges.setdefault(one, set())
        path[int(depth) :] = [one]
        if len(path) > 1:
            edges[path[-2]].add(one)
    return {one: sorted(others) for one, others in edges.items()}


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
    lock = (ROOT / "Cargo.lock").read_text(encoding="utf-8")
    edges, manifests, sums = built_in(), packages(), checksums(lock)
    parts = {one: component(manifests[one], sums) for one in edges}
    root = next(iter(edges))
    refs = {one: part["bom-ref"] for one, part in parts.items()}
    main_part = parts.pop(root) | {"type": "application"}
    serial = uuid.UUID(bytes=hashlib.sha256(lock.encode()).digest()[:16], version=4)
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
