"""Runs what a pod would run, on this machine: the real binary with the rendered arguments, environment and files.

What a cluster mounts lies in a directory here, and each path of the pod is written as the one it has there. Listeners take
free ports. Nothing else differs from a cluster, but that nobody keeps the processes in.
"""

import http
import json
import re
import signal
import ssl
import struct
import subprocess
import time
import tomllib
import urllib.parse
import urllib.request

import chart
import made_up

# What an answer may take on a busy machine.
PATIENCE_SECONDS = 60
HEALTH_CHECK = "grpc.health.v1.Health/Check"


class Wrong(Exception):
    """Something does not work as in a cluster it must."""


class Pod:
    """The files and variables of one pod."""

    def __init__(self, documents, spec, cluster, directory):
        self.documents, self.spec, self.cluster, self.directory = documents, spec, cluster, directory
        self.volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
        directory.mkdir()
        for container in chart.containers(spec):
            for mount in container.get("volumeMounts", []):
                (directory / mount["name"]).mkdir(exist_ok=True)

    def place(self, container, path):
        """Where a path of a container is on this machine; None where nothing is mounted."""
        for mount in sorted(container.get("volumeMounts", []), key=lambda one: -len(one["mountPath"])):
            below = mount.get("subPath", "")
            if path == mount["mountPath"] or path.startswith(mount["mountPath"].rstrip("/") + "/"):
                rest = path[len(mount["mountPath"]):].lstrip("/")
                return self.directory / mount["name"] / below / rest
        return None

    def translate(self, container, text):
        """A text with each path of the container written as the one on this machine."""
        for mount in sorted(container.get("volumeMounts", []), key=lambda one: -len(one["mountPath"])):
            path = re.escape(mount["mountPath"].rstrip("/"))
            here = str(self.place(container, mount["mountPath"])).rstrip("/")
            text = re.sub(rf"(?<![\w/.-]){path}(?=[/\"]|$)", here, text, flags=re.MULTILINE)
        return text

    def mount(self, container):
        """Writes what the container is to find in its volumes."""
        config = {}
        for mount in container.get("volumeMounts", []):
            source = self.volumes.get(mount["name"], {}).get("configMap")
            for path, text in self.config_map(source):
                (self.directory / mount["name"] / path).write_text(self.translate(container, text))
                if path.endswith(".toml"):
                    config = tomllib.loads(text)
        self.mount_secrets(container, config)
        return config

    def mount_secrets(self, container, config):
        secrets = self.cluster.files(config)
        for variable in container.get("env", []):
            self.credential(secrets, variable)
        for path, content in secrets.items():
            self.write_secret(container, path, content)

    def config_map(self, source):
        if source is None:
            return
        for document in chart.of_kind(self.documents, "ConfigMap"):
            if document["metadata"]["name"] == source["name"]:
                items = source.get("items") or [{"key": key, "path": key} for key in document["data"]]
                for item in items:
                    yield item["path"], document["data"][item["key"]]

    def credential(self, secrets, variable):
        """What a client shows and trusts is named by variables."""
        certificate, key = self.cluster.client
        contents = {"VERDICT_CA": self.cluster.authority.certificate.read_bytes(), "VERDICT_CERT": certificate,
                    "VERDICT_KEY": key, "VERDICT_TOKEN_FILE": made_up.TOKEN.encode()}
        if variable["name"] in contents:
            secrets[variable["value"]] = contents[variable["name"]]

    def write_secret(self, container, path, content):
        """Writes a file that is asked for, if the pod has a volume there that may hold it."""
        place = self.place(container, path)
        if place is None:
            raise Wrong(f"{path} is asked for, and nothing is mounted there")
        [mount] = [one for one in container["volumeMounts"] if place.is_relative_to(self.directory / one["name"])]
        volume = self.volumes.get(mount["name"], {})
        items = volume.get("secret", {}).get("items")
        inside = str(place.relative_to(self.directory / mount["name"]))
        if items and inside not in [item["path"] for item in items]:
            raise Wrong(f"{path} is asked for, and volume {mount['name']} does not have it")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
        place.chmod(volume.get("secret", {}).get("defaultMode", 0o644))

    def environment(self, container, config):
        """The variables of the container, and nothing of this machine."""
        found = dict(self.cluster.variables(config))
        for variable in container.get("env", []):
            if "value" in variable:
                found[variable["name"]] = self.translate(container, str(variable["value"]))
        return found


class Server:
    """The container of the server, running."""

    def __init__(self, documents, cluster, verdict, directory, kind=Pod):
        workload, container = chart.server(documents)
        self.container, self.verdict = container, verdict
        self.pod = kind(documents, workload["spec"]["template"]["spec"], cluster, directory / "server")
        self.config = self.pod.mount(container)
        self.environment = self.pod.environment(container, self.config)
        self.log = directory / "server.log"

    def check_config(self):
        done = self.run("check-config")
        if done.returncode != 0:
            raise Wrong(f"verdict check-config: {done.stderr.strip()}")

    def run(self, *arguments):
        return subprocess.run([self.verdict, *arguments], env=self.environment, cwd="/", capture_output=True, text=True)

    def __enter__(self):
        host = self.config["server"]["grpc_listen"].rsplit(":", 1)[0]
        listen = {"VERDICT__SERVER__GRPC_LISTEN": f"{host}:0", "VERDICT__SERVER__OPS_LISTEN": f"{host}:0",
                  "VERDICT__SERVER__DRAIN_DELAY_SECONDS": "0"}
        if self.config["server"].get("webhook_listen"):
            listen["VERDICT__SERVER__WEBHOOK_LISTEN"] = f"{host}:0"
        command = [self.verdict, *self.container.get("args", [])]
        self.process = subprocess.Popen(command, env={**self.environment, **listen}, cwd="/", stderr=open(self.log, "wb"))
        try:
            self.ports = self.wait()
        except BaseException:
            self.process.kill()
            raise
        return self

    def wait(self):
        """The ports on which it listens, by the names they have in the pod."""
        keys = {"grpc": "server.address", "webhook": "server.webhook_address", "ops": "server.ops_address"}
        until = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < until and self.process.poll() is None:
            for line in self.log.read_text().splitlines():
                if "server.ops_address" in line:
                    said = json.loads(line)
                    return {name: int(said[key].rsplit(":", 1)[1]) for name, key in keys.items() if said.get(key)}
            time.sleep(0.05)
        raise Wrong(f"the server has not started:\n{self.log.read_text()}")

    def port(self, port):
        """The port here of a port of the container, by its name or number."""
        for one in self.container["ports"]:
            if port in (one["name"], one["containerPort"]):
                return self.ports[one["name"]]
        raise Wrong(f"the server has no port {port}")

    def probe(self, what):
        """Asks as the kubelet does, which follows no name and trusts any certificate."""
        probe = self.container[what]
        if "grpc" in probe:
            status = health(self.port(probe["grpc"]["port"]), probe["grpc"].get("service", ""))
            if status != 1:
                raise Wrong(f"{what}: gRPC health is {status}")
            return
        asked = probe["httpGet"]
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        scheme = asked.get("scheme", "HTTP").lower()
        options = {"context": context} if scheme == "https" else {}
        url = f"{scheme}://127.0.0.1:{self.port(asked['port'])}{asked['path']}"
        try:
            urllib.request.urlopen(url, timeout=PATIENCE_SECONDS, **options)
        except OSError as error:
            raise Wrong(f"{what}: {url}: {error}") from error

    def take_webhook(self):
        """Posts a webhook as its provider would, if the pod takes any. One that is not for our address is to be refused."""
        if "webhook" not in self.ports:
            return
        source = min(self.config["sources"], key=lambda one: len(one.get("allowed_ips", [])))
        provider, account = source["provider"], source.get("account", "default")
        command = [self.verdict, "send", "--sample", "--dry-run", "--provider", provider, "--account", account]
        request = subprocess.run(command, env=self.environment, cwd="/", check=True, capture_output=True).stdout
        head, _, body = request.partition(b"\n\n")
        headers = dict(line.split(": ", 1) for line in head.decode().splitlines()[1:])
        scheme = "https" if "webhook_tls" in self.config["server"] else "http"
        url = f"{scheme}://localhost:{self.ports['webhook']}/webhooks/{provider}/{account}"
        try:
            context = self.pod.cluster.context()
            urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=PATIENCE_SECONDS, context=context)
        except OSError as error:
            if source.get("allowed_ips") and getattr(error, "code", None) == http.HTTPStatus.FORBIDDEN:
                return
            raise Wrong(f"a webhook of {provider} at {url}: {error}\n{self.log.read_text()}") from error

    def __exit__(self, *_error):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise Wrong("the server does not stop") from None
        if self.process.returncode != 0 and _error == (None, None, None):
            raise Wrong(f"the server ended with {self.process.returncode}:\n{self.log.read_text()}")


def health(port, service):
    """The status that gRPC health has, in plain text as the kubelet asks: 1 is SERVING."""
    name = service.encode()
    message = bytes([1 << 3 | 2, len(name)]) + name if name else b""
    curl = ["curl", "-s", "--http2-prior-knowledge", "--data-binary", "@-", f"http://127.0.0.1:{port}/{HEALTH_CHECK}"]
    curl += ["-H", "content-type: application/grpc", "-H", "te: trailers", "--max-time", str(PATIENCE_SECONDS)]
    answer = subprocess.run(curl, input=b"\0" + struct.pack(">I", len(message)) + message, capture_output=True).stdout
    return answer[6] if len(answer) >= 7 else None


def endpoint(documents, server, url):
    """The endpoint of a client, on this machine. In a cluster it must name a Service of the release, and its port."""
    parts = urllib.parse.urlsplit(url)
    service, _, namespace = parts.hostname.partition(".")
    found = [one for one in chart.of_kind(documents, "Service") if one["metadata"]["name"] == service]
    if not found or namespace.split(".")[:2] not in ([""], [chart.NAMESPACE], [chart.NAMESPACE, "svc"]):
        raise Wrong(f"{url} names no Service of the release")
    targets = [port["targetPort"] for port in found[0]["spec"]["ports"] if port["port"] == parts.port]
    if not targets:
        raise Wrong(f"{url}: Service {service} has no such port")
    return f"{parts.scheme}://localhost:{server.port(targets[0])}"


def helm_test(documents, cluster, server, directory, kind=Pod):
    """What `helm test` runs: how many pods there were."""
    tests = [one for one in chart.of_kind(documents, "Pod")
             if one["metadata"].get("annotations", {}).get("helm.sh/hook") == "test"]
    for number, document in enumerate(tests):
        pod = kind(documents, document["spec"], cluster, directory / f"test-{number}")
        for container in chart.containers(document["spec"]):
            environment = pod.environment(container, pod.mount(container))
            environment["VERDICT_ENDPOINT"] = endpoint(documents, server, environment["VERDICT_ENDPOINT"])
            arguments = [pod.translate(container, str(one)) for one in container["args"]]
            done = subprocess.run([server.verdict, *arguments], env=environment, cwd="/", capture_output=True, text=True)
            if done.returncode != 0:
                raise Wrong(f"helm test: {' '.join(arguments)}: {done.stderr.strip()}")
    return len(tests)
