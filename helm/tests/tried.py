"""That what must be refused is refused: values, by the chart, and documents, by the policies. And that upgrades are not."""

import copy
import json
import pathlib
import re
import shutil
import subprocess
import tempfile
import tomllib

import yaml

import chart
import policies
import references  # noqa: F401: has policies, too

# What Kubernetes lets nobody change of what is there.
IMMUTABLE = {
    "StatefulSet": lambda spec: {key: value for key, value in spec.items() if key not in CHANGEABLE},
    "Service": lambda spec: {"clusterIP": spec.get("clusterIP") == "None", "selector": spec["selector"]},
    "PodDisruptionBudget": lambda spec: spec["selector"],
}
CHANGEABLE = {"replicas", "ordinals", "template", "updateStrategy", "revisionHistoryLimit",
              "persistentVolumeClaimRetentionPolicy", "minReadySeconds"}


def value_set(name):
    return chart.CHART / "ci" / f"{name}-values.yaml"


def taken_values():
    """The values of refused.yaml that the chart takes, or refuses with other words."""
    for one in yaml.safe_load((chart.TESTS / "refused.yaml").read_text()):
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as values:
            yaml.safe_dump(one["values"], values)
            values.flush()
            try:
                chart.template("--values", values.name, values=value_set(one.get("over", "minimal")))
                yield f"{one['values']} is taken, and must be refused: {one['says']}"
            except chart.Refused as error:
                if one["says"] not in " ".join(str(error).split()):
                    yield f"{one['values']} is refused without saying {one['says']!r}:\n{error}"


def at(document, path):
    """The table or list that holds the last part of a path, and that part."""
    parts = [int(part) if part.isdigit() else part for part in path.replace("\\.", "\0").split(".")]
    parts = [part.replace("\0", ".") if isinstance(part, str) else part for part in parts]
    for part in parts[:-1]:
        document = document[part]
    return document, parts[-1]


def changed(documents, one):
    """The documents with what an entry of policies.yaml changes in them."""
    documents = copy.deepcopy(documents)
    kind, _, name = one["in"].partition(" ")
    found = [document for document in chart.of_kind(documents, kind)
             if not name or document["metadata"]["name"] == f"{chart.RELEASE}{name}"]
    if len(found) != 1:
        raise ValueError(f"{one['in']}: {len(found)} documents are meant")
    if one.get("remove"):
        documents.remove(found[0])
    elif one.get("twice"):
        documents.append(found[0])
    else:
        table, key = at(found[0], one["at"])
        if "put" not in one:
            del table[key]
        elif isinstance(table, list) and key == len(table):
            table.append(one["put"])
        else:
            table[key] = one["put"]
    return documents


def blind_policies():
    """The entries of policies.yaml that their policy does not see, and the policies of which there is no entry."""
    rendered = {}
    tried = set()
    for one in yaml.safe_load((chart.TESTS / "policies.yaml").read_text()):
        values = value_set(one.get("over", "webhook-ingress"))
        if values not in rendered:
            rendered[values] = chart.documents(chart.template(values=values))
        [policy] = [policy for policy in policies.POLICIES if policy.__name__ == one["policy"]]
        tried.add(policy)
        complaints = list(policy(changed(rendered[values], one)))
        if not any(one["says"] in complaint for complaint in complaints):
            yield f"{one} is not seen; what is: {complaints}"
    for policy in policies.POLICIES:
        if policy not in tried:
            yield f"{policy.__name__} has nothing to refuse"


def upgrade_fails():
    """What differs in the next version of the chart and must not, and what a change of the configuration does not do."""
    with tempfile.TemporaryDirectory() as directory:
        following = pathlib.Path(directory) / "verdict"
        shutil.copytree(chart.CHART, following)
        path = following / "Chart.yaml"
        path.write_text(path.read_text().replace(chart.metadata()["version"], "99.0.0"))
        for values in chart.value_sets():
            before, after = [
                {chart.name(one): one for one in chart.documents(chart.template(values=values, chart=place))}
                for place in (chart.CHART, following)]
            for name, document in before.items():
                frozen = IMMUTABLE.get(document["kind"])
                if frozen and frozen(document["spec"]) != frozen(after[name]["spec"]):
                    yield f"{values.stem}: {name} cannot be upgraded, because what is immutable in it has changed"
    values = value_set("minimal")
    plain = chart.documents(chart.template(values=values))
    other = chart.documents(chart.template("--set", "config.server.max_headers=99", values=values))
    pod = lambda documents: chart.server(documents)[0]["spec"]["template"]
    if chart.configuration(plain) == chart.configuration(other) or pod(plain) == pod(other):
        yield "a change of the configuration does not restart the server"


def forgotten_keys(verdict):
    """The keys that verdict knows and values.schema.json does not, and the other way round, at each place of a configuration."""
    schema = json.loads((chart.CHART / "values.schema.json").read_text())
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory) / "verdict.toml"
        for place, keys in tables(schema["properties"]["config"], schema["$defs"]):
            known = keys_of_verdict(verdict, path, place)
            name = ".".join(["config", *place])
            if known - keys:
                yield f"{name}: values.schema.json does not know {', '.join(sorted(known - keys))}"
            if keys - known:
                yield f"{name}: verdict does not know {', '.join(sorted(keys - known))}"


def tables(schema, shared, place=()):
    """The tables of a schema that name their keys, each as its place and these keys. `[]` in a place is an array."""
    schema = shared[schema["$ref"].removeprefix("#/$defs/")] if "$ref" in schema else schema
    if "items" in schema:
        yield from tables(schema["items"], shared, (*place, "[]"))
    if "properties" in schema:
        # A constant is how the schema says what not to write.
        keys = {key: value for key, value in schema["properties"].items() if "const" not in value}
        yield place, set(keys)
        for key, value in keys.items():
            yield from tables(value, shared, (*place, key))


def keys_of_verdict(verdict, path, place):
    """What verdict says that it takes at a place, when it finds there what it does not take."""
    value = "{ not-a-key = 0 }"
    for part in reversed(place[1:]):
        value = f"[{value}]" if part == "[]" else f"{{ {part} = {value} }}"
    path.write_text(f"{place[0]} = {value}" if place else "not-a-key = 0")
    environment = {"VERDICT_CONFIG": str(path)}
    said = subprocess.run([verdict, "check-config"], env=environment, capture_output=True, text=True).stderr
    if "unknown field `not-a-key`" not in said:
        raise ValueError(f"verdict takes {path.read_text()}, or says something else of it: {said}")
    return set(re.findall(r"`([^`]+)`", said.partition(" for key ")[0])) - {"not-a-key"}


# What nothing else may be: by the Pod Security Standard, or for the master key.
FIXED = {("podSecurityContext", "runAsNonRoot"), ("podSecurityContext", "seccompProfile", "type"),
         ("podSecurityContext", "fsGroupChangePolicy")}


def untried_values():
    """The values that are what they are by default in every value set: nothing has rendered what else they may be."""
    default = yaml.safe_load((chart.CHART / "values.yaml").read_text())
    sets = [yaml.safe_load(values.read_text()) for values in chart.value_sets()]
    for path, value in leaves(default):
        if path not in FIXED and all(found(values, path, value) == value for values in sets):
            yield f"{'.'.join(path)} has its default in every value set of ci"


def leaves(values, path=()):
    """The values that are no map, or an empty one."""
    if not isinstance(values, dict) or not values:
        yield path, values
        return
    for key, value in values.items():
        yield from leaves(value, (*path, key))


def found(values, path, default):
    for key in path:
        if not isinstance(values, dict) or key not in values:
            return default
        values = values[key]
    return values


# What is hard to write in TOML, or to keep as it is on the way through Helm, in which all numbers are floats.
HARD = {
    "server": {"webhook_trusted_proxies": ["10.0.0.0/8", "fd00::/8"], "max_payload_bytes": 1048576, "max_headers": 0},
    "log": {"segment_bytes": 67108864, "retention": {"events_max_bytes": 2**53 - 1, "events_max_age_seconds": 10**6}},
    "telemetry": {"otlp": {
        "endpoint": "https://collector.example:4317",
        "sample_ratio": 0.0000001,
        "resource": {"quotes": "\"\"\" ''' \\ \\n", "lines": "a\nb\r\n\tc", "wide": "é 𝄞 \u2028", "control": "\x01\x7f",
                     "html": "<&>", "a.b": "dotted", "with space": "true", "": "1e3", "\"": "{{ .Values }}",
                     "toml": "]\n[server]\ninsecure = true"},
    }},
}


def distorted_values():
    """What is not in the rendered verdict.toml as it was in the values."""
    values = {"config": HARD, "networkPolicy": {"egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}]}}
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        # JSON, because what is a number to YAML is not the same to Python and to Go. It may hold characters that YAML may not.
        text = json.dumps(values, ensure_ascii=False)
        file.write(text.replace("\x7f", "\\x7f").replace("\u2028", "\\u2028"))
        file.flush()
        rendered = chart.documents(chart.template("--values", file.name, values=value_set("minimal")))
    yield from lost(HARD, tomllib.loads(chart.configuration(rendered)), "config")


def lost(given, found, path):
    for key, value in given.items():
        if isinstance(value, dict) and isinstance(found.get(key), dict):
            yield from lost(value, found[key], f"{path}.{key}")
        elif found.get(key) != value or type(found.get(key)) is not type(value):
            yield f"{path}.{key} is {value!r} in the values, and {found.get(key)!r} in verdict.toml"
