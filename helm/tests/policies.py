"""What every rendered set must hold to beyond the schemas: pods that Kubernetes calls *restricted*, and ways of our own.

Each policy is a function that is given the documents of a set and yields what is wrong with them. policies.yaml holds for
each what it must refuse.
"""

import re
import tomllib

import chart

POLICIES = []

# https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
VOLUME_TYPES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
SECCOMP = ("RuntimeDefault", "Localhost")
SAFE_SYSCTLS = {"kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start",
                "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range", "net.ipv4.ip_local_reserved_ports",
                "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl",
                "net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem"}

# What `verdict serve` itself adds to the drain delay and the grace before it gives up (src/cli/serve.rs).
WATCHDOG_SECONDS = 10


def policy(function):
    POLICIES.append(function)
    return function


def every_container(documents):
    for place, _, pod in chart.pods(documents):
        for container in chart.containers(pod):
            yield f"{place}, container {container['name']}", pod, container


@policy
def host_is_out_of_reach(documents):
    for place, _, pod in chart.pods(documents):
        for field in ("hostNetwork", "hostPID", "hostIPC"):
            if pod.get(field):
                yield f"{place}: {field}"
        if pod.get("hostUsers") is True:
            yield f"{place}: hostUsers"
        for volume in pod.get("volumes", []):
            for kind in volume.keys() - {"name"} - VOLUME_TYPES:
                yield f"{place}: volume {volume['name']} is a {kind}"
        security = pod.get("securityContext", {})
        for sysctl in security.get("sysctls", []):
            if sysctl["name"] not in SAFE_SYSCTLS:
                yield f"{place}: sysctl {sysctl['name']}"
    for place, _, container in every_container(documents):
        for port in container.get("ports", []):
            if port.get("hostPort"):
                yield f"{place}: hostPort {port['hostPort']}"
        for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
            if container.get(probe, {}).get("httpGet", {}).get("host"):
                yield f"{place}: {probe} asks a host of its own"


@policy
def no_privileges(documents):
    for place, pod, container in every_container(documents):
        security = container.get("securityContext", {})
        both = {**pod.get("securityContext", {}), **security}
        capabilities = security.get("capabilities", {})
        if security.get("privileged"):
            yield f"{place}: privileged"
        if security.get("allowPrivilegeEscalation") is not False:
            yield f"{place}: may gain privileges"
        if capabilities.get("drop") != ["ALL"]:
            yield f"{place}: does not drop all capabilities"
        for capability in capabilities.get("add", []):
            if capability != "NET_BIND_SERVICE":
                yield f"{place}: capability {capability}"
        if security.get("procMount", "Default") != "Default":
            yield f"{place}: procMount"
        if both.get("seccompProfile", {}).get("type") not in SECCOMP:
            yield f"{place}: no seccomp profile"
        if both.get("appArmorProfile", {}).get("type", "RuntimeDefault") == "Unconfined":
            yield f"{place}: AppArmor is off"
        if {"user", "role"} & both.get("seLinuxOptions", {}).keys():
            yield f"{place}: a user or role of SELinux"
        if both.get("windowsOptions", {}).get("hostProcess"):
            yield f"{place}: hostProcess"


@policy
def not_root(documents):
    for place, pod, container in every_container(documents):
        both = {**pod.get("securityContext", {}), **container.get("securityContext", {})}
        if both.get("runAsNonRoot") is not True:
            yield f"{place}: may run as root"
        if both.get("runAsUser") == 0 or both.get("runAsGroup") == 0:
            yield f"{place}: runs as root"
        if container.get("securityContext", {}).get("readOnlyRootFilesystem") is not True:
            yield f"{place}: may write to its root file system"


@policy
def no_service_account_token(documents):
    for place, _, pod in chart.pods(documents):
        if pod.get("automountServiceAccountToken") is not False:
            yield f"{place}: is given a token of its service account"
        account = pod.get("serviceAccountName", "default")
        if account == "default":
            yield f"{place}: runs as the default service account"
    for account in chart.of_kind(documents, "ServiceAccount"):
        if account.get("automountServiceAccountToken") is not False:
            yield f"{chart.name(account)}: gives tokens to pods"


@policy
def images_are_pinned(documents):
    for place, _, container in every_container(documents):
        image = container["image"]
        tag = re.search(r":([^/:@]+)(?:@|$)", image)
        if "@sha256:" not in image and (tag is None or tag[1] == "latest"):
            yield f"{place}: image {image} has no fixed version"


@policy
def containers_have_resources(documents):
    for place, _, container in every_container(documents):
        resources = container.get("resources", {})
        for field in ("requests.cpu", "requests.memory", "limits.memory"):
            kind, name = field.split(".")
            if not resources.get(kind, {}).get(name):
                yield f"{place}: no {field}"


@policy
def server_is_probed(documents):
    workload, container = chart.server(documents)
    for probe, path in (("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")):
        asked = container.get(probe, {})
        if not asked:
            yield f"{chart.name(workload)}: no {probe}"
        elif "grpc" not in asked and asked.get("httpGet", {}).get("path") != path:
            yield f"{chart.name(workload)}: {probe} does not ask {path}"


@policy
def server_has_time_to_drain(documents):
    workload, _ = chart.server(documents)
    server = tomllib.loads(chart.configuration(documents)).get("server", {})
    needed = server.get("drain_delay_seconds", 0) + server.get("shutdown_grace_seconds", 10) + WATCHDOG_SECONDS
    given = workload["spec"]["template"]["spec"].get("terminationGracePeriodSeconds", 30)
    if given <= needed:
        yield f"{chart.name(workload)}: is killed after {given} s, and may need {needed} s to drain"
    if not server.get("drain_delay_seconds"):
        yield f"{chart.name(workload)}: stops to listen before its endpoints are gone"


@policy
def one_writer(documents):
    workload, _ = chart.server(documents)
    if workload["spec"].get("replicas") != 1:
        yield f"{chart.name(workload)}: an embedded log has one writer"


@policy
def changes_restart_the_server(documents):
    workload, _ = chart.server(documents)
    annotations = workload["spec"]["template"]["metadata"].get("annotations", {})
    if not any(key.startswith("checksum/") for key in annotations):
        yield f"{chart.name(workload)}: its pod has no checksum of the configuration"


@policy
def no_secret_is_rendered(documents):
    for secret in chart.of_kind(documents, "Secret"):
        yield f"{chart.name(secret)}: what is in it would lie in the release of Helm"


@policy
def objects_are_labelled(documents):
    wanted = {"app.kubernetes.io/name", "app.kubernetes.io/instance", "app.kubernetes.io/version",
              "app.kubernetes.io/managed-by", "helm.sh/chart"}
    for document in documents:
        for label in sorted(wanted - document["metadata"].get("labels", {}).keys()):
            yield f"{chart.name(document)}: no label {label}"


@policy
def objects_stay_in_their_namespace(documents):
    for document in documents:
        namespace = document["metadata"].get("namespace", chart.NAMESPACE)
        if namespace != chart.NAMESPACE:
            yield f"{chart.name(document)}: is in namespace {namespace}"
        if document["kind"].startswith("Cluster"):
            yield f"{chart.name(document)}: is for the whole cluster"


@policy
def objects_are_told_apart(documents):
    names = [chart.name(document) for document in documents]
    for one in sorted({one for one in names if names.count(one) > 1}):
        yield f"{one}: is there twice"
    for document in documents:
        if len(document["metadata"]["name"]) > 63:
            yield f"{chart.name(document)}: its name is longer than 63 characters"


# What cannot be changed once it is there must not follow the version of the chart: `helm upgrade` would fail.
@policy
def selectors_outlive_versions(documents):
    for document in documents:
        spec = document.get("spec") or {}
        selectors = [("selector", spec.get("selector"))] if isinstance(spec.get("selector"), dict) else []
        selectors += [("claim", claim["metadata"].get("labels")) for claim in spec.get("volumeClaimTemplates", [])]
        for what, labels in selectors:
            labels = (labels or {}).get("matchLabels", labels or {})
            for label in sorted({"app.kubernetes.io/version", "helm.sh/chart"} & labels.keys()):
                yield f"{chart.name(document)}: {what} has the label {label}"
