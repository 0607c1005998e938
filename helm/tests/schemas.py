"""Whether Kubernetes would take what is rendered: its own schemas, of several versions, and those of the custom resources.

What is not in a schema is refused, as `kubectl --validate=strict` does. Rules in CEL are not evaluated here;
scripts/chart-apiserver has a real API server do it.
"""

import copy
import functools
import json
import pathlib
import re

import jsonschema
import kubernetes_validate
import referencing
import yaml

import chart

SCHEMAS = pathlib.Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"
CUSTOM = chart.ROOT / ".tools/crds"


def versions():
    """The minor versions of Kubernetes: the oldest that the chart is for, all that there are schemas for, to the newest."""
    known = {int(re.match(r"v1\.(\d+)", path.name).group(1)) for path in SCHEMAS.iterdir()}
    return sorted(minor for minor in known if minor >= chart.oldest_kubernetes())


@functools.cache
def folder(minor):
    return SCHEMAS / f"v1.{minor}.0-local-strict"


@functools.cache
def registry(minor):
    definitions = json.loads((folder(minor) / "_definitions.json").read_text())
    return referencing.Resource.from_contents(definitions) @ referencing.Registry()


@functools.cache
def builtin(minor, api_version, kind):
    """The validator of a kind of Kubernetes itself, or None."""
    group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api_version)
    path = folder(minor) / f"{kind.lower()}-{group}.json"
    if not path.exists():
        return None
    schema = json.loads(path.read_text())
    known = referencing.Resource.from_contents(schema) @ registry(minor)
    return jsonschema.Draft202012Validator(schema, registry=known)


def strict(schema):
    """Refuses unknown fields, where a schema of a custom resource does not say that there may be any."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: strict(value) for key, value in schema.items()}
    free = schema.get("x-kubernetes-preserve-unknown-fields") or schema.get("x-kubernetes-embedded-resource")
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object" and not free:
        schema.setdefault("additionalProperties", False)
    return schema


@functools.cache
def custom():
    """The validators of the custom resources, by API version and kind."""
    found = {}
    for path in sorted(CUSTOM.glob("*.yaml")):
        definition = yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))["spec"]
        for version in definition["versions"]:
            if not version["served"]:
                continue
            schema = copy.deepcopy(version["schema"]["openAPIV3Schema"])
            schema["properties"]["metadata"] = {"type": "object", "additionalProperties": True}
            key = (f"{definition['group']}/{version['name']}", definition["names"]["kind"])
            found[key] = jsonschema.Draft202012Validator(strict(schema))
    return found


def wrong(documents, minor):
    """What a version of Kubernetes would not take, and why."""
    for document in documents:
        api_version, kind = document["apiVersion"], document["kind"]
        validator = builtin(minor, api_version, kind) or custom().get((api_version, kind))
        if validator is None:
            yield f"{chart.name(document)}: Kubernetes 1.{minor} has no {api_version} {kind}"
            continue
        for error in validator.iter_errors(document):
            place = ".".join(map(str, error.absolute_path))
            yield f"{chart.name(document)}: {place}: {error.message} (Kubernetes 1.{minor})"
