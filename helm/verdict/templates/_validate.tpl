{{- /*
Refuses what contradicts itself, all of it at once, in words that say what to do. What is a matter of one value alone is
refused by values.schema.json.
*/ -}}
{{- define "verdict.validate" -}}
{{- $wrong := list -}}
{{- range list "image" "names" "owned" "grpc" "tls" "sources" "files" "audit" "encryption" "webhook" "network" "monitoring" "test" -}}
{{- range splitList "\n" (include (printf "verdict.validate.%s" .) $) -}}
{{- with trim . }}{{ $wrong = append $wrong . }}{{ end -}}
{{- end -}}
{{- end -}}
{{- with $wrong -}}
{{- fail (printf "\n\nThe values cannot be used:\n- %s\n" (join "\n- " .)) -}}
{{- end -}}
{{- end -}}

{{- define "verdict.validate.image" -}}
{{- if not .Values.image.repository }}
image.repository is empty; name the registry and the repository that you have pushed the image of verdict to
{{- end }}
{{- if eq .Values.image.tag "latest" }}
image.tag is latest, which is another image every day; name a version
{{- end }}
{{- range .Values.extraEnv }}
{{- if or (hasPrefix "VERDICT__" .name) (eq .name "VERDICT_CONFIG") }}
extraEnv has {{ .name }}; the configuration is written in config, so that it is checked and a change restarts the pod
{{- end }}
{{- end }}
{{- end -}}

{{- /* Names that would be there twice. */ -}}
{{- define "verdict.validate.names" -}}
{{- $given := pick .Values "commonLabels" "podLabels" -}}
{{- range $of := list "serviceMonitor" "prometheusRule" "dashboard" }}{{ $_ := set $given (printf "%s.labels" $of) (get $.Values $of).labels }}{{ end -}}
{{- range $of := list "data" "keys" }}{{ $_ := set $given (printf "persistence.%s.labels" $of) (get $.Values.persistence $of).labels }}{{ end -}}
{{- range $where, $labels := $given }}
{{- range $label := keys $labels }}
{{- if or (eq $label "helm.sh/chart") (regexMatch "^app\\.kubernetes\\.io/(name|instance|component|version|managed-by)$" $label) }}
{{ $where }} has {{ $label }}, which the chart sets; use nameOverride, or another label
{{- end }}
{{- end }}
{{- end }}
{{- range $annotation := list "checksum/config" "kubectl.kubernetes.io/default-container" }}
{{- if hasKey $.Values.podAnnotations $annotation }}
podAnnotations has {{ $annotation }}, which the chart sets
{{- end }}
{{- end }}
{{- $seen := list -}}
{{- range .Values.secrets }}
{{- if has .name $seen }}
secrets has two entries with the name {{ .name }}; each is a directory of its own
{{- end }}
{{- $seen = append $seen .name -}}
{{- end }}
{{- range .Values.extraVolumes }}
{{- if or (has .name (list "config" "data" "keys" "master-key")) (regexMatch "^(tls|client-ca|secret)-" .name) }}
extraVolumes has {{ .name }}, which could be a volume of the chart; choose a name that does not begin with tls-, client-ca- or secret-, and is not config, data, keys or master-key
{{- end }}
{{- end }}
{{- end -}}

{{- /* What the chart decides. */ -}}
{{- define "verdict.validate.owned" -}}
{{- $server := .Values.config.server | default dict -}}
{{- $log := .Values.config.log | default dict -}}
{{- $owned := dict
  "grpc_listen" "listenAddress"
  "insecure" "grpc.tls.enabled and grpc.allowAnonymous"
  "tls" "grpc.tls"
  "webhook_listen" "webhook.enabled and listenAddress"
  "webhook_insecure" "webhook.tls.enabled"
  "webhook_tls" "webhook.tls"
  "ops_listen" "listenAddress"
  "ops_insecure" "networkPolicy.ops; the kubelet, which probes, has no certificate to show"
  "ops_tls" "networkPolicy.ops; the kubelet, which probes, has no certificate to show"
  "drain_delay_seconds" "shutdown.drainDelaySeconds"
  "shutdown_grace_seconds" "shutdown.graceSeconds"
-}}
{{- range $key, $value := $owned }}
{{- if hasKey $server $key }}
config.server.{{ $key }} is decided by the chart; use {{ $value }}
{{- end }}
{{- end }}
{{- range $key := list "kind" "path" }}
{{- if hasKey $log $key }}
config.log.{{ $key }} is decided by the chart, which keeps the embedded log on the volume of persistence.data
{{- end }}
{{- end }}
{{- range $key := list "keys_path" "master_key_file" }}
{{- if hasKey ($log.encryption | default dict) $key }}
config.log.encryption.{{ $key }} is decided by the chart; use {{ ternary "persistence.keys" "encryption.masterKey" (eq $key "keys_path") }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "verdict.validate.grpc" -}}
{{- if and .Values.grpc.allowAnonymous .Values.config.callers }}
grpc.allowAnonymous is true, and config.callers says who may call; leave one of them out
{{- else if not (or .Values.grpc.allowAnonymous .Values.config.callers) }}
config.callers is empty, so whoever can connect could do everything; say who may call, or set grpc.allowAnonymous=true
{{- end }}
{{- if eq .Values.grpc.tls.clientCertificates "none" }}
{{- range .Values.config.callers }}
{{- if .certificates }}
caller {{ .name }} has certificates, and nobody is asked for any; set grpc.tls.clientCertificates to optional or required
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "verdict.validate.tls" -}}
{{- range $name, $listener := pick .Values "grpc" "webhook" -}}
{{- $used := or (eq $name "grpc") $listener.enabled -}}
{{- if and $used $listener.tls.enabled (not $listener.tls.existingSecret) }}
{{ $name }}.tls.existingSecret is empty; name a Secret with {{ $listener.tls.certKey }} and {{ $listener.tls.keyKey }}, or set {{ $name }}.tls.enabled=false to have plain text in the cluster's network
{{- end }}
{{- if not $listener.tls.enabled }}
{{- if $listener.tls.existingSecret }}
{{ $name }}.tls.existingSecret does nothing, because {{ $name }}.tls.enabled is false
{{- end }}
{{- if ne $listener.tls.clientCertificates "none" }}
{{ $name }}.tls.clientCertificates needs {{ $name }}.tls.enabled
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "verdict.validate.sources" -}}
{{- if not .Values.config.sources }}
config.sources is empty; say where webhooks come from (README.md, "Install")
{{- end }}
{{- $proxied := or .Values.ingress.enabled .Values.httpRoute.enabled -}}
{{- $service := .Values.webhookService -}}
{{- $hidden := and .Values.webhook.enabled (eq $service.type "LoadBalancer") (ne $service.externalTrafficPolicy "Local") -}}
{{- $trusted := (.Values.config.server | default dict).webhook_trusted_proxies -}}
{{- range .Values.config.sources }}
{{- if and .allowed_ips $proxied (not $trusted) }}
source {{ .provider }} has allowed_ips, and webhooks come through a proxy; name its addresses in config.server.webhook_trusted_proxies, or no webhook of this source is taken
{{- else if and .allowed_ips $hidden (not $trusted) }}
source {{ .provider }} has allowed_ips, and webhooks come through a load balancer with the addresses of nodes; set webhookService.externalTrafficPolicy=Local, or no webhook of this source is taken
{{- end }}
{{- end }}
{{- end -}}

{{- /* Each file and each variable of the configuration must be in the pod. */ -}}
{{- define "verdict.validate.files" -}}
{{- $places := list -}}
{{- range .Values.config.sources -}}
{{- $of := printf "source %s/%s" .provider (.account | default "default") -}}
{{- range concat (.secrets | default list) (.decryption_keys | default list) -}}
{{- $places = append $places (dict "of" (printf "%s, %s" $of .id) "file" .file "env" .env) -}}
{{- end -}}
{{- end -}}
{{- range .Values.config.callers -}}
{{- $of := printf "caller %s" .name -}}
{{- range .tokens }}{{ $places = append $places (dict "of" (printf "%s, token %s" $of .id) "file" .file "env" .env) }}{{ end -}}
{{- end -}}
{{- range .Values.config.issuers -}}
{{- $places = append $places (dict "of" (printf "issuer %s" .name) "file" .jwks_file) -}}
{{- end -}}
{{- with (.Values.config.telemetry | default dict).otlp -}}
{{- $places = append $places (dict "of" "telemetry.otlp" "file" .ca_file) -}}
{{- range $name, $place := .headers -}}
{{- $places = append $places (dict "of" (printf "telemetry.otlp, header %s" $name) "file" $place.file "env" $place.env) -}}
{{- end -}}
{{- end -}}

{{- $variables := list -}}
{{- range .Values.extraEnv }}{{ $variables = append $variables .name }}{{ end -}}
{{- range $places }}
{{- if .file }}
{{- include "verdict.validate.file" (dict "of" .of "file" .file "values" $.Values) }}
{{- end }}
{{- if and .env (not (has .env $variables)) (not $.Values.extraEnvFrom) }}
{{ .of }}: the variable {{ .env }} is in neither extraEnv nor extraEnvFrom
{{- end }}
{{- end }}
{{- end -}}

{{- /* The root of the container is read-only. */ -}}
{{- define "verdict.validate.audit" -}}
{{- $file := dig "audit" "path" "" .Values.config -}}
{{- if and $file (not (hasPrefix "/var/lib/verdict/" $file)) -}}
{{- $writable := false -}}
{{- range .Values.extraVolumeMounts -}}
{{- if and (not .readOnly) (hasPrefix (printf "%s/" (trimSuffix "/" .mountPath)) $file) }}{{ $writable = true }}{{ end -}}
{{- end -}}
{{- if not $writable }}
config.audit.path is {{ $file }}, where nothing can be written; have it under /var/lib/verdict, or on a volume of extraVolumeMounts
{{- end }}
{{- end }}
{{- end -}}

{{- define "verdict.validate.file" -}}
{{- $file := .file -}}
{{- $mounted := false -}}
{{- range .values.secrets -}}
{{- $directory := printf "/etc/verdict/secrets/%s/" .name -}}
{{- if hasPrefix $directory $file -}}
{{- $paths := list -}}
{{- range .items }}{{ $paths = append $paths .path }}{{ end -}}
{{- $mounted = or (not $paths) (has (trimPrefix $directory $file) $paths) -}}
{{- end -}}
{{- end -}}
{{- range .values.extraVolumeMounts -}}
{{- if or (eq .mountPath $file) (hasPrefix (printf "%s/" (trimSuffix "/" .mountPath)) $file) }}{{ $mounted = true }}{{ end -}}
{{- end -}}
{{- if not $mounted }}
{{ .of }}: the file {{ $file }} is not in the pod; mount its Secret by an entry of secrets, at /etc/verdict/secrets/<name>/<key>, or by extraVolumeMounts
{{- end }}
{{- end -}}

{{- define "verdict.validate.encryption" -}}
{{- $key := .Values.encryption.masterKey -}}
{{- $encrypted := dig "log" "encryption" "enabled" true .Values.config -}}
{{- if and $key.existingSecret $key.onKeysVolume }}
encryption.masterKey.existingSecret and encryption.masterKey.onKeysVolume exclude each other
{{- else if and $encrypted (not $key.existingSecret) (not $key.onKeysVolume) }}
encryption.masterKey.existingSecret is empty; make a Secret with a master key (README.md, "Secrets"), or set encryption.masterKey.onKeysVolume=true to have one made beside the keys that it protects
{{- end }}
{{- with .Values.persistence }}
{{- if and .data.existingClaim (eq .data.existingClaim .keys.existingClaim) }}
persistence.data.existingClaim and persistence.keys.existingClaim are the same; a backup of the log must not hold its keys
{{- end }}
{{- end }}
{{- end -}}

{{- define "verdict.validate.webhook" -}}
{{- $enabled := .Values.webhook.enabled -}}
{{- range $name, $proxy := pick .Values "ingress" "httpRoute" -}}
{{- if and $proxy.enabled (not $enabled) }}
{{ $name }}.enabled needs webhook.enabled
{{- end }}
{{- end }}
{{- if .Values.ingress.enabled }}
{{- if not .Values.ingress.hosts }}
ingress.hosts is empty; name at least one host
{{- end }}
{{- if not .Values.ingress.tls }}
ingress.tls is empty; webhooks hold personal data and come over the internet
{{- end }}
{{- end }}
{{- range $name, $route := pick .Values "httpRoute" "grpcRoute" }}
{{- if and $route.enabled (not $route.parentRefs) }}
{{ $name }}.parentRefs is empty; name at least one Gateway
{{- end }}
{{- end }}
{{- if and $enabled (not .Values.webhook.tls.enabled) (ne .Values.webhookService.type "ClusterIP") }}
webhookService.type is {{ .Values.webhookService.type }}, and webhook.tls.enabled is false; webhooks would come over the internet in plain text
{{- end }}
{{- if and (not .Values.grpc.tls.enabled) (ne .Values.service.type "ClusterIP") }}
service.type is {{ .Values.service.type }}, and grpc.tls.enabled is false; tokens and personal data would leave the cluster in plain text
{{- end }}
{{- end -}}

{{- /* What is asked for must be able to come through the network policy. */ -}}
{{- define "verdict.validate.network" -}}
{{- with .Values.networkPolicy }}
{{- if .enabled }}
{{- if and $.Values.webhook.enabled (not .webhook.from) }}
webhook.enabled is true, and networkPolicy.webhook.from lets nobody post; name your Ingress controller or Gateway
{{- end }}
{{- if and $.Values.grpcRoute.enabled (not .grpc.from) }}
grpcRoute.enabled is true, and networkPolicy.grpc.from lets nobody call; name your Gateway
{{- end }}
{{- if and $.Values.serviceMonitor.enabled (not .ops.from) }}
serviceMonitor.enabled is true, and networkPolicy.ops.from lets nobody read metrics; name your Prometheus
{{- end }}
{{- if and (eq $.Values.service.type "LoadBalancer") (not .grpc.from) }}
service.type is LoadBalancer, and networkPolicy.grpc.from lets nobody call; name who comes through it, mostly as an ipBlock
{{- end }}
{{- if not .egress }}
{{- $pod := merge dict $.Values.podAnnotations $.Values.podLabels }}
{{- range $key, $on := dict "linkerd.io/inject" (list "enabled" "ingress") "sidecar.istio.io/inject" (list "true") }}
{{- if has (get $pod $key | toString) $on }}
{{ $key }} puts the proxy of a mesh beside verdict, and networkPolicy.egress lets nothing out; name the control plane, which gives the proxy its identity
{{- end }}
{{- end }}
{{- if dig "telemetry" "otlp" "endpoint" "" $.Values.config }}
config.telemetry.otlp is set, and networkPolicy.egress lets nothing out; name your collector
{{- end }}
{{- range $.Values.config.issuers }}
{{- if .jwks_url }}
issuer {{ .name }} has jwks_url, and networkPolicy.egress lets nothing out; name where the keys are
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "verdict.validate.monitoring" -}}
{{- if and .Values.prometheusRule.enabled (not (contains "verdict" (include "verdict.fullname" .))) }}
prometheusRule.enabled is true, and the release's objects are called {{ include "verdict.fullname" . }}; the alert VerdictDown looks for "verdict" in the name of the job, so have it in fullnameOverride
{{- end }}
{{- end -}}

{{- define "verdict.validate.test" -}}
{{- if .Values.test.enabled }}
{{- $test := .Values.test -}}
{{- $sources := include "verdict.testSources" . | fromYamlArray -}}
{{- if not $sources }}
test.enabled is true, and config.sources has no source {{ $test.provider }}/{{ $test.account }}; make one for the test, with a secret of its own
{{- end }}
{{- range $sources }}
{{- if ne (.environment | default "live") "sandbox" }}
source {{ .provider }}/{{ .account | default "default" }}, which helm test sends a sample for, must have environment: sandbox; subscribers get the event
{{- end }}
{{- range concat (.secrets | default list) (.decryption_keys | default list) }}
{{- if not (hasPrefix "/etc/verdict/secrets/" (.file | default "")) }}
{{ .id }} of the source of helm test must be a file of an entry of secrets, so that the test can sign with it
{{- end }}
{{- end }}
{{- end }}
{{- $credentials := or $test.token.existingSecret $test.clientCertificate.existingSecret -}}
{{- if and .Values.config.callers (not .Values.grpc.tls.enabled) }}
test.enabled is true, config.callers says who may call, and grpc.tls.enabled is false; verdict sends no token in plain text, so there is no helm test behind a service mesh: leave test.enabled false
{{- else if and .Values.config.callers (not $credentials) }}
test.enabled is true, and config.callers says who may call; give the test a caller, by test.token.existingSecret or test.clientCertificate.existingSecret
{{- end }}
{{- if and (eq .Values.grpc.tls.clientCertificates "required") (not $test.clientCertificate.existingSecret) }}
grpc.tls.clientCertificates is required, so the test needs a certificate too: test.clientCertificate.existingSecret
{{- end }}
{{- if and $credentials (not (or .Values.grpc.tls.enabled .Values.config.callers)) }}
test.token and test.clientCertificate need grpc.tls.enabled
{{- end }}
{{- end }}
{{- end -}}
