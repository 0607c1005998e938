"""Policies about what objects say of each other: labels that select pods, names of ports, what is mounted."""

import copy
import json

import yaml

import chart
from policies import policy

# What a reference names without a port, and the kinds that it may name.
SELECTING = {"Service", "PodDisruptionBudget", "NetworkPolicy", "StatefulSet"}


def chosen(documents, selector):
    """The pods whose labels a selector asks for."""
    wanted = selector.get("matchLabels", {} if "matchExpressions" in selector else selector)
    return [place for place, metadata, _ in chart.pods(documents) if wanted.items() <= metadata.get("labels", {}).items()]


def port_names(pod):
    return {port.get("name"): port["containerPort"] for one in chart.containers(pod) for port in one.get("ports", [])}


def server_ports(documents):
    workload, _ = chart.server(documents)
    return port_names(workload["spec"]["template"]["spec"])


def knows_port(ports, port):
    return port in ports or port in ports.values()


@policy
def selectors_choose_the_server(documents):
    workload, _ = chart.server(documents)
    for document in chart.of_kind(documents, *SELECTING):
        selector = document["spec"].get("selector", document["spec"].get("podSelector")) or {}
        found = chosen(documents, selector)
        if document["kind"] == "NetworkPolicy":
            if chart.name(workload) not in found and not found:
                yield f"{chart.name(document)}: selects no pod"
        elif found != [chart.name(workload)]:
            yield f"{chart.name(document)}: selects {', '.join(found) or 'no pod'}"


@policy
def every_pod_has_a_network_policy(documents):
    policies = chart.of_kind(documents, "NetworkPolicy")
    if not policies:
        return
    for direction in ("Ingress", "Egress"):
        covered = {place for one in policies if direction in one["spec"]["policyTypes"]
                   for place in chosen(documents, one["spec"]["podSelector"])}
        for place, metadata, _ in chart.pods(documents):
            if place not in covered and "helm.sh/hook" not in metadata.get("annotations", {}):
                yield f"{place}: no NetworkPolicy is about its {direction.lower()}"


@policy
def ports_exist(documents):
    ports = server_ports(documents)
    for service in chart.of_kind(documents, "Service"):
        for port in service["spec"]["ports"]:
            target = port.get("targetPort", port["port"])
            if not knows_port(ports, target):
                yield f"{chart.name(service)}: no container has the port {target}"
    for policy in chart.of_kind(documents, "NetworkPolicy"):
        for rule in policy["spec"].get("ingress", []):
            for port in rule.get("ports", []):
                if not knows_port(ports, port["port"]):
                    yield f"{chart.name(policy)}: no container has the port {port['port']}"
    for place, _, pod in chart.pods(documents):
        for container in chart.containers(pod):
            own = {port.get("name"): port["containerPort"] for port in container.get("ports", [])}
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                asked = container.get(probe, {})
                for how in ("httpGet", "grpc", "tcpSocket"):
                    if how in asked and not knows_port(own, asked[how]["port"]):
                        yield f"{place}: {probe}: no port {asked[how]['port']}"


@policy
def backends_exist(documents):
    services = {one["metadata"]["name"]: one for one in chart.of_kind(documents, "Service")}

    def complaint(document, name, port):
        if name not in services:
            return f"{chart.name(document)}: no Service {name}"
        there = {value for one in services[name]["spec"]["ports"] for value in (one.get("name"), one["port"])}
        return f"{chart.name(document)}: Service {name} has no port {port}" if port not in there else None

    found = []
    for ingress in chart.of_kind(documents, "Ingress"):
        for rule in ingress["spec"].get("rules", []):
            for path in rule["http"]["paths"]:
                backend = path["backend"]["service"]
                port = backend["port"].get("name", backend["port"].get("number"))
                found.append(complaint(ingress, backend["name"], port))
    for route in chart.of_kind(documents, "HTTPRoute", "GRPCRoute"):
        for rule in route["spec"]["rules"]:
            for backend in rule["backendRefs"]:
                found.append(complaint(route, backend["name"], backend["port"]))
    for workload in chart.of_kind(documents, "StatefulSet"):
        service = services.get(workload["spec"]["serviceName"])
        if service is None or service["spec"].get("clusterIP") != "None":
            found.append(f"{chart.name(workload)}: {workload['spec']['serviceName']} is not a headless Service")
    yield from filter(None, found)


@policy
def only_webhooks_come_in(documents):
    for document in chart.of_kind(documents, "Ingress", "HTTPRoute"):
        for rule in document["spec"]["rules"]:
            paths = [path["path"] for path in rule.get("http", {}).get("paths", [])]
            paths += [match["path"]["value"] for match in rule.get("matches", [])]
            if paths != ["/webhooks"]:
                yield f"{chart.name(document)}: leads {paths} to verdict, which takes webhooks at /webhooks"
    for document in chart.of_kind(documents, "Service"):
        ports = {port.get("targetPort") for port in document["spec"]["ports"]}
        if "ops" in ports and (len(ports) > 1 or document["spec"].get("type", "ClusterIP") != "ClusterIP"):
            yield f"{chart.name(document)}: shows the metrics to whom it shows more"


@policy
def monitors_find_a_service(documents):
    for monitor in chart.of_kind(documents, "ServiceMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        services = [one for one in chart.of_kind(documents, "Service") if wanted <= one["metadata"]["labels"].items()]
        if len(services) != 1:
            yield f"{chart.name(monitor)}: finds {len(services)} Services"
        for endpoint in monitor["spec"]["endpoints"]:
            for service in services:
                if endpoint["port"] not in [port.get("name") for port in service["spec"]["ports"]]:
                    yield f"{chart.name(monitor)}: {chart.name(service)} has no port {endpoint['port']}"


@policy
def mounts_have_volumes(documents):
    for place, _, pod in chart.pods(documents):
        volumes = [volume["name"] for volume in pod.get("volumes", [])]
        for document in chart.of_kind(documents, "StatefulSet"):
            if chart.name(document) == place:
                volumes += [claim["metadata"]["name"] for claim in document["spec"].get("volumeClaimTemplates", [])]
        used = set()
        for container in chart.containers(pod):
            mounts = container.get("volumeMounts", [])
            used |= {mount["name"] for mount in mounts}
            for mount in mounts:
                if mount["name"] not in volumes:
                    yield f"{place}: mounts {mount['name']}, which is no volume"
            paths = [mount["mountPath"] for mount in mounts]
            for path in sorted({path for path in paths if paths.count(path) > 1}):
                yield f"{place}: mounts two volumes at {path}"
        for volume in sorted(set(volumes) - used):
            yield f"{place}: volume {volume} is not mounted"
        for volume in sorted({volume for volume in volumes if volumes.count(volume) > 1}):
            yield f"{place}: volume {volume} is there twice"


def needed_of_the_cluster(documents):
    """The Secrets, ConfigMaps and claims that pods and routes refer to and the chart does not render."""
    rendered = {(one["kind"], one["metadata"]["name"]) for one in documents}
    for secret in chart.of_kind(documents, "ExternalSecret"):
        rendered.add(("Secret", secret["spec"]["target"]["name"]))
    return sorted(set(referred(documents)) - rendered)


def referred(documents):
    for _, _, pod in chart.pods(documents):
        sources = list(pod.get("volumes", []))
        for volume in pod.get("volumes", []):
            sources += volume.get("projected", {}).get("sources", [])
        for source in sources:
            if "secret" in source:
                yield "Secret", source["secret"].get("secretName", source["secret"].get("name"))
            if "configMap" in source:
                yield "ConfigMap", source["configMap"]["name"]
            if "persistentVolumeClaim" in source:
                yield "PersistentVolumeClaim", source["persistentVolumeClaim"]["claimName"]
        for container in chart.containers(pod):
            froms = [value for variable in container.get("env", []) for value in [variable.get("valueFrom", {})]]
            for source in froms + container.get("envFrom", []):
                for field, kind in (("secretKeyRef", "Secret"), ("configMapKeyRef", "ConfigMap"),
                                    ("secretRef", "Secret"), ("configMapRef", "ConfigMap")):
                    if field in source:
                        yield kind, source[field]["name"]
    for ingress in chart.of_kind(documents, "Ingress"):
        for tls in ingress["spec"].get("tls", []):
            yield "Secret", tls["secretName"]


def without_runbooks(groups):
    """The rules without the links of the alerts, which are written for whoever installs the chart."""
    groups = copy.deepcopy(groups)
    for rule in [rule for group in groups for rule in group["rules"]]:
        for name in ("runbook", "runbook_url"):
            rule.get("annotations", {}).pop(name, None)
    return groups


@policy
def monitoring_is_what_is_tested(documents):
    kept = without_runbooks(yaml.safe_load((chart.CHART / "rules/verdict.yaml").read_text())["groups"])
    for document in chart.of_kind(documents, "PrometheusRule"):
        if without_runbooks(document["spec"]["groups"]) != kept:
            yield f"{chart.name(document)}: is not rules/verdict.yaml, which make rules tests"
    for document in chart.of_kind(documents, "ConfigMap"):
        for name, text in document["data"].items():
            if name.endswith(".json") and json.loads(text) != json.loads((chart.CHART / "dashboards" / name).read_text()):
                yield f"{chart.name(document)}: is not dashboards/{name}, which make dashboard-check tests"
