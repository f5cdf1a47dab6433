#!/usr/bin/env python3
"""Compiles the OCSF schema to what a validator needs, and our extension with it.

    compile.py SCHEMA_DIR EXTENSION_DIR > schema.json      SCHEMA_DIR: the unpacked release archive of ocsf/ocsf-schema
    compile.py --compare EXPORT.json SCHEMA_DIR            differences to https://schema.ocsf.io/1.8.0/export/v2/schema

What is left out: captions and descriptions of attributes, observables, references, groups.
"""

import json
import sys
from pathlib import Path


def load(path):
    return json.loads(path.read_text())


class Source:
    """The files of the schema and its extensions, by name; an extension's own names carry its prefix."""

    def __init__(self, root, extensions):
        self.root = root
        self.version = load(root / "version.json")["version"]
        dictionary = load(root / "dictionary.json")
        self.attributes = dict(dictionary["attributes"])
        self.types = dict(dictionary["types"]["attributes"])
        self.categories = dict(load(root / "categories.json")["attributes"])
        self.objects, self.events, self.profiles = {}, {}, {}
        self.read(root, None)
        for folder in extensions:
            extension = load(folder / "extension.json")
            if (folder / "dictionary.json").exists():
                more = load(folder / "dictionary.json")
                self.attributes |= more.get("attributes", {})
                self.types |= more.get("types", {}).get("attributes", {})
            self.read(folder, extension)

    def read(self, folder, extension):
        """An extension's file that has no name of its own adds to what it extends."""
        for kind, into in [("objects", self.objects), ("events", self.events), ("profiles", self.profiles)]:
            for path in sorted((folder / kind).rglob("*.json")):
                item = load(path)
                item["folder"], item["extension"] = folder, extension
                name = item.get("name")
                if extension and (name is None or name == item.get("extends")):
                    into[item["extends"]].setdefault("patches", []).append(item)
                else:
                    into[f"{extension['name']}/{name}" if extension else name] = item

    def own(self, item):
        """The attributes that a file itself gives, with those of the profiles that it includes."""
        out = {}
        includes = item.get("attributes", {}).get("$include", [])
        for include in [includes] if isinstance(includes, str) else includes:
            path = item["folder"] / include
            profile = load(path if path.exists() else self.root / include)
            prefix = f"{item['extension']['name']}/" if item["extension"] and path.exists() else ""
            for name, attribute in profile["attributes"].items():
                given = {**profile.get("annotations", {}), **attribute, "profiles": [prefix + profile["name"]]}
                out[name] = merged(out.get(name, {}), given)
        for name, attribute in item.get("attributes", {}).items():
            if name != "$include":
                given = dict(attribute)
                if "profile" in given:
                    profile = given.pop("profile")
                    given["profiles"] = [profile] if profile else []
                out[name] = merged(out.get(name, {}), given, overrides=True)
        return out

    def resolved(self, items, name):
        """(attributes, constraints, profiles, category) of a class or object, with what it inherits."""
        item = items[name]
        base = item.get("extends")
        attributes, constraints, profiles, category = ({}, {}, set(), None)
        if base and base != name:
            if base not in items and item["extension"]:
                base = f"{item['extension']['name']}/{base}"
            attributes, constraints, profiles, category = self.resolved(items, base)
            attributes = {k: dict(v) for k, v in attributes.items()}
        for part in [item, *item.get("patches", [])]:
            for key, attribute in self.own(part).items():
                # What several extensions add by their profiles, each of these gives.
                attributes[key] = merged(attributes.get(key, {}), attribute, overrides=part is item)
            constraints = part.get("constraints", constraints)
            profiles = profiles | set(part.get("profiles", []))
        return attributes, constraints, profiles, item.get("category", category)


def merged(old, new, overrides=False):
    """What is said later wins; enums add up, and so do the profiles that give an attribute."""
    out = {**old, **new}
    if "enum" in old and "enum" in new:
        out["enum"] = {**old["enum"], **new["enum"]}
    if not overrides and "profiles" in old and "profiles" in new:
        out["profiles"] = sorted(set(old["profiles"]) | set(new["profiles"]))
    return out


def attribute(source, name, given):
    """One attribute in short: t type, o object, l list, r requirement, e enum, s sibling, p profiles, d deprecated."""
    full = merged(source.attributes[name.split("/")[-1]], given)
    kind = full["type"]
    out = {"t": kind}
    if kind == "object_t" or kind not in source.types:
        names = [full.get("object_type", kind), kind]
        out = {"t": "object_t", "o": next(n for n in names if n != "object_t")}
    if full.get("is_array"):
        out["l"] = True
    if full.get("requirement", "optional") != "optional":
        out["r"] = full["requirement"]
    if "enum" in full:
        out["e"] = {k: v["caption"] for k, v in full["enum"].items()}
        sibling = full.get("sibling", source.attributes[name].get("sibling"))
        if sibling:
            out["s"] = sibling
    if full.get("profiles"):
        out["p"] = full["profiles"]
    if "@deprecated" in full:
        out["d"] = True
    return out


def compile_schema(source):
    """The whole: types, objects, classes."""
    objects, found = {}, {}
    for name in source.objects:
        if name.split("/")[-1].startswith("_"):
            continue
        attributes, constraints, profiles, _ = source.resolved(source.objects, name)
        objects[name] = {"a": {k: attribute(source, k, v) for k, v in sorted(attributes.items())}}
        found[name] = profiles
        if constraints:
            objects[name]["c"] = constraints
    # The official compiler collects these numbers from all types and objects; none is refused here.
    del objects["observable"]["a"]["type_id"]["e"], objects["observable"]["a"]["type_id"]["s"]
    extended = {n.split("/")[-1]: n for n in objects if "/" in n}
    for item in objects.values():
        rename(item, extended, objects)
    classes = {}
    for name, item in source.events.items():
        if "uid" not in item and name != "base_event":
            continue
        one = class_of(source, name, item)
        rename(one, extended, objects)
        one["p"] = sorted(one["p"] | {p for o in reachable(one, objects) for p in found[o]})
        classes[name] = one
    types = {}
    for name, kind in source.types.items():
        types[name] = {k: kind[k] for k in ("type", "regex", "max_len", "range", "values") if k in kind}
    for item in [*objects.values(), *classes.values()]:
        for name in [n for n, one in item["a"].items() if one["t"] == "timestamp_t"]:
            # The profile datetime gives each time a sibling of text.
            item["a"].setdefault(f"{name}_dt", {"t": "datetime_t", "p": ["datetime"]} | {k: True for k in "l" if item["a"][name].get(k)})
    return {"version": source.version, "types": types, "objects": objects, "classes": classes}


def class_of(source, name, item):
    """A class, with the enums that follow from its place."""
    attributes, constraints, profiles, category = source.resolved(source.events, name)
    category_uid = source.categories[category]["uid"] if category in source.categories else 0
    uid = category_uid * 1000 + item.get("uid", 0)
    if item["extension"]:
        uid += item["extension"]["uid"] * 100_000
    caption = item["caption"]
    short = {k: attribute(source, k, v) for k, v in sorted(attributes.items())}
    short["class_uid"]["e"] = {str(uid): caption}
    category_caption = source.categories[category]["caption"] if category in source.categories else "Uncategorized"
    short["category_uid"]["e"] = {str(category_uid): category_caption}
    short["class_uid"]["s"], short["category_uid"]["s"] = "class_name", "category_name"
    activities = short["activity_id"]["e"]
    short["type_uid"]["e"] = {str(uid * 100 + int(k)): f"{caption}: {v}" for k, v in activities.items()}
    short["type_uid"]["s"] = "type_name"
    out = {"uid": uid, "caption": caption, "a": short, "p": profiles}
    if constraints:
        out["c"] = constraints
    return out


def rename(item, extended, objects):
    """An object of an extension is named by its prefix."""
    for one in item["a"].values():
        if "o" in one and one["o"] not in objects:
            one["o"] = extended[one["o"]]


def reachable(item, objects):
    """The objects that an event can hold."""
    seen, left = set(), [item]
    while left:
        for one in left.pop()["a"].values():
            if "o" in one and one["o"] not in seen:
                seen.add(one["o"])
                left.append(objects[one["o"]])
    return seen


def differences(ours, export):
    """What we say otherwise than the official compiler."""
    for group, key in [("objects", "objects"), ("classes", "classes")]:
        for name in sorted(set(ours[group]) | set(export[key])):
            if name not in ours[group] or name not in export[key]:
                yield f"{group} {name}: only in one"
                continue
            mine, theirs = ours[group][name], export[key][name]
            if (mine.get("c") or None) != (theirs.get("constraints") or None):
                yield f"{name}: constraints {mine.get('c')} {theirs.get('constraints')}"
            if group == "classes" and (mine["uid"], mine["p"]) != (theirs["uid"], theirs["profiles"]):
                yield f"{name}: {mine['uid']} {mine['p']} {theirs['profiles']}"
            for at in sorted(set(mine["a"]) | set(theirs["attributes"])):
                one, other = mine["a"].get(at), theirs["attributes"].get(at)
                if one is None or other is None:
                    yield f"{name}.{at}: only in one"
                    continue
                enum = {k: v["caption"] for k, v in other["enum"].items()} if other.get("enum") else None
                want = {"t": other["type"], "o": other.get("object_type"), "l": other.get("is_array"), "e": enum,
                        "r": other["requirement"] if other["requirement"] != "optional" else None,
                        "p": other.get("profiles"), "d": "@deprecated" in other or None,
                        "s": other.get("sibling") if enum else None}
                for k, v in want.items() if (name, at) != ("observable", "type_id") else ():
                    if (one.get(k) or None) != (v or None):
                        yield f"{name}.{at}.{k}: ours {str(one.get(k))[:90]} theirs {str(v)[:90]}"


def main():
    compares = sys.argv[1] == "--compare"
    root = Path(sys.argv[3 if compares else 1])
    extensions = [root / "extensions" / n for n in ("linux", "windows", "macos")]
    if not compares:
        extensions += [Path(p) for p in sys.argv[2:]]
    schema = compile_schema(Source(root, extensions))
    if not compares:
        json.dump(schema, sys.stdout, separators=(",", ":"), sort_keys=True, ensure_ascii=False)
        return
    found = list(differences(schema, load(Path(sys.argv[2]))))
    print("\n".join(found) or "the same")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
