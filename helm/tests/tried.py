"""That what must be refused is refused: values, by the chart, and documents, by the policies. And that upgrades are not."""

import copy
import json
import pathlib
import shutil
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


def forgotten_keys(schema=None, table=None, path="config"):
    """The keys of src/config.default.toml that values.schema.json does not know, and those that it knows alone."""
    text = (chart.ROOT / "src/config.default.toml").read_text()
    if schema is None:
        schema = json.loads((chart.CHART / "values.schema.json").read_text())["properties"]["config"]
        table = tomllib.loads(text)
    known = schema["properties"]
    for key, value in table.items():
        if key not in known:
            yield f"{path}.{key} is not in values.schema.json"
        elif isinstance(value, dict):
            yield from forgotten_keys(known[key], value, f"{path}.{key}")
    for key in known.keys() - table.keys():
        if key not in text:
            yield f"{path}.{key} is in values.schema.json, and not in src/config.default.toml"


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
