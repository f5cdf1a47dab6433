"""Whether events are valid by an OCSF validator that we did not write.

Reads events, one JSON object a line, and writes a line for each: "valid", or what is amiss. The schema is
PyPI's ocsf-json-schema, made from the official compiler's export; argv[1] is the folder of our extension.
"""

import json
import sys
from pathlib import Path

from jsonschema import Draft202012Validator
from ocsf_json_schema import OcsfJsonSchemaEmbedded, get_ocsf_schema


def with_extension(schema, folder):
    """Adds the extension as the official compiler would: prefixed objects, an attribute under a profile."""
    dictionary = json.loads((folder / "dictionary.json").read_text())["attributes"]
    names = {path.stem for path in (folder / "objects").glob("*.json")}

    def attribute(name, given):
        full = {**schema["dictionary"]["attributes"].get(name, {}), **dictionary.get(name, {}), **given}
        if full["type"] in names:
            full |= {"type": "object_t", "object_type": f"custody/{full['type']}"}
        return full

    for path in (folder / "objects").glob("*.json"):
        item = json.loads(path.read_text())
        item["attributes"] = {name: attribute(name, given) for name, given in item["attributes"].items()}
        schema["objects"][f"custody/{path.stem}"] = item
    for name, given in json.loads((folder / "profiles" / "ledger.json").read_text())["attributes"].items():
        for one in schema["classes"].values():
            one["attributes"][name] = attribute(name, given) | {"profiles": ["custody/ledger"]}
    return schema


def main():
    schemas = OcsfJsonSchemaEmbedded(with_extension(get_ocsf_schema("1.8.0"), Path(sys.argv[1])))
    validators = {}
    for line in sys.stdin:
        try:
            event = json.loads(line)
            profiles = tuple(event["metadata"].get("profiles", []))
            key = (event["class_uid"], profiles)
            if key not in validators:
                name = schemas.lookup_class_name_from_uid(key[0])
                validators[key] = Draft202012Validator(schemas.get_class_schema(name, list(profiles)))
            error = next(validators[key].iter_errors(event), None)
            print("valid" if error is None else f"{error.json_path}: {error.message[:200]}".replace("\n", " "))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            print(f"not to be read: {error!r}".replace("\n", " "))


if __name__ == "__main__":
    main()
