"""What a cluster would hold and a chart does not render: certificates, secrets of sources, tokens, keys.

The configuration says what each file and each variable is for, so they are made up for exactly what is asked.
"""

import hashlib
import ssl
import subprocess
import uuid

import chart

# What the caller called helm-test shows; of other callers only the hash is made up.
TOKEN = "a-token-for-tests-that-opens-nothing"
NAMES = f"DNS:localhost,IP:127.0.0.1,DNS:{chart.RELEASE},DNS:*.{chart.NAMESPACE}.svc,DNS:*.{chart.NAMESPACE}.svc.cluster.local"


class Authority:
    """Issues the certificates of servers and clients, and is what both trust."""

    def __init__(self, directory):
        directory.mkdir()
        self.directory = directory
        self.key, self.certificate = directory / "ca.key", directory / "ca.crt"
        openssl("req", "-x509", *new_key(self.key), "-days", "30", "-subj", "/CN=ca", "-out", self.certificate)

    def issue(self, name, alternatives):
        """A certificate and its key."""
        key, certificate = self.directory / f"{name}.key", self.directory / f"{name}.crt"
        openssl("req", "-x509", *new_key(key), "-days", "30", "-subj", f"/CN={name}", "-out", certificate,
                "-CA", self.certificate, "-CAkey", self.key, "-addext", f"subjectAltName={alternatives}",
                "-addext", "basicConstraints=critical,CA:FALSE")
        return certificate.read_bytes(), key.read_bytes()


def new_key(path):
    return ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-keyout", path]


def openssl(*arguments):
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


class Cluster:
    """The contents of files and variables."""

    def __init__(self, directory, verdict):
        self.authority = Authority(directory)
        self.server = self.authority.issue("server", NAMES)
        self.client = self.authority.issue("client", "DNS:client.test,URI:spiffe://test/client")
        self.verdict = verdict

    def context(self):
        """What a client of TLS needs: whom it trusts, and what it shows when it is asked."""
        context = ssl.create_default_context(cafile=self.authority.certificate)
        context.load_cert_chain(self.authority.directory / "client.crt", self.authority.directory / "client.key")
        return context

    def files(self, config):
        """The absolute paths of a configuration that must be there, and what is in them."""
        return {value: content for key, value, content in self.asked(config) if key.endswith("file")}

    def variables(self, config):
        return {value: content.decode() for key, value, content in self.asked(config) if key == "env"}

    def asked(self, config):
        """Each key that names a file or a variable, its value and what should be there."""
        certificate, key = self.server
        ca = self.authority.certificate.read_bytes()
        places = []
        for section in ("tls", "webhook_tls", "ops_tls"):
            tls = config.get("server", {}).get(section, {})
            places += [(tls, "cert_file", certificate), (tls, "key_file", key), (tls, "client_ca_file", ca)]
        for source in config.get("sources", []):
            fixtures = chart.ROOT / "tests/fixtures" / source["provider"]
            for secret in source.get("secrets", []):
                places += [(secret, how, (fixtures / "secret").read_bytes()) for how in ("file", "env")]
            for secret in source.get("decryption_keys", []):
                places += [(secret, how, (fixtures / "k1.pem").read_bytes()) for how in ("file", "env")]
        for caller in config.get("callers", []):
            for token in caller.get("tokens", []):
                digest = hashlib.sha256(TOKEN.encode()).hexdigest() if caller["name"] == "helm-test" else uuid.uuid4().hex * 2
                places += [(token, how, digest.encode()) for how in ("file", "env")]
        for issuer in config.get("issuers", []):
            places.append((issuer, "jwks_file", self.key_set()))
        otlp = config.get("telemetry", {}).get("otlp", {})
        places.append((otlp, "ca_file", ca))
        for header in otlp.get("headers", {}).values():
            if isinstance(header, dict):
                places += [(header, how, b"Bearer test") for how in ("file", "env")]
        places.append((config.get("log", {}).get("encryption", {}), "master_key_file", self.master_key()))
        return [(key, table[key], content) for table, key, content in places if table.get(key)]

    def master_key(self):
        return subprocess.run([self.verdict, "keys", "new"], check=True, capture_output=True).stdout

    def key_set(self):
        """A JWKS with one key, on the curve P-256."""
        return (b'{"keys":[{"kty":"EC","crv":"P-256","alg":"ES256","use":"sig","kid":"test",'
                b'"x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}')
