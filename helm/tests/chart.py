"""The chart, and what helm makes of it."""

import functools
import pathlib
import re
import subprocess
import tomllib

import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
CHART = ROOT / "helm/verdict"
TESTS = ROOT / "helm/tests"
HELM = ROOT / ".tools/bin/helm"
RELEASE = "verdict"
NAMESPACE = "kyc"


class Refused(Exception):
    """Helm does not render it; the text is what it says."""


def value_sets():
    """The value files of the chart, each a way to use it."""
    return sorted((CHART / "ci").glob("*.yaml"))


def helm(*arguments):
    done = subprocess.run([HELM, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode != 0:
        raise Refused(done.stdout + done.stderr)
    return done.stdout


def template(*options, values=None, chart=CHART):
    """What `helm template` prints."""
    files = ["--values", values] if values else []
    return helm("template", RELEASE, chart, "--namespace", NAMESPACE, *files, *options)


def documents(text):
    return [document for document in yaml.load_all(text, Loader) if document]


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """Reads YAML as Kubernetes does, and refuses a key that is there twice: the last would hide the others."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: there twice: {', '.join(sorted(twice))}")
        return super().construct_mapping(node, deep)


@functools.cache
def metadata():
    return yaml.safe_load((CHART / "Chart.yaml").read_text())


@functools.cache
def cargo_version():
    return tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["version"]


def oldest_kubernetes():
    """The minor version that the chart asks for at least."""
    return int(re.match(r">=\s*1\.(\d+)", metadata()["kubeVersion"]).group(1))


def name(document):
    return f"{document['kind']} {document['metadata']['name']}"


def of_kind(documents, *kinds):
    return [document for document in documents if document["kind"] in kinds]


def pods(documents):
    """Each pod that would run, as what it belongs to, the metadata of the pod and its specification."""
    for document in documents:
        if document["kind"] == "Pod":
            yield name(document), document["metadata"], document["spec"]
        elif "template" in document.get("spec", {}) and document["apiVersion"] in ("apps/v1", "batch/v1"):
            pod = document["spec"]["template"]
            yield name(document), pod["metadata"], pod["spec"]


def containers(pod):
    return pod.get("initContainers", []) + pod["containers"]


def server(documents):
    """The workload that runs `verdict serve`, and its container."""
    [workload] = of_kind(documents, "StatefulSet")
    [container] = [one for one in workload["spec"]["template"]["spec"]["containers"] if one["name"] == "verdict"]
    return workload, container


def configuration(documents):
    """The text of verdict.toml."""
    [text] = [map["data"]["verdict.toml"] for map in of_kind(documents, "ConfigMap") if "verdict.toml" in map["data"]]
    return text
