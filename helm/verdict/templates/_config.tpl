{{- /* The configuration: that of the values, and what the chart decides. _validate.tpl has seen to it that they do not overlap. */ -}}
{{- define "verdict.config" -}}
{{- $config := deepCopy .Values.config -}}
{{- $at := printf "%s:%%d" (ternary "[::]" "0.0.0.0" (eq .Values.listenAddress "::")) -}}
{{- $server := $config.server | default dict -}}
{{- $_ := set $config "server" $server -}}

{{- $_ := set $server "grpc_listen" (printf $at 50051) -}}
{{- $_ := set $server "insecure" (or .Values.grpc.allowAnonymous (not .Values.grpc.tls.enabled)) -}}
{{- if .Values.grpc.tls.enabled -}}
{{- $_ := set $server "tls" (include "verdict.config.tls" (dict "name" "grpc" "tls" .Values.grpc.tls) | fromYaml) -}}
{{- end -}}

{{- $_ := set $server "webhook_listen" (ternary (printf $at 8080) "" .Values.webhook.enabled) -}}
{{- $_ := set $server "webhook_insecure" (and .Values.webhook.enabled (not .Values.webhook.tls.enabled)) -}}
{{- if and .Values.webhook.enabled .Values.webhook.tls.enabled -}}
{{- $_ := set $server "webhook_tls" (include "verdict.config.tls" (dict "name" "webhook" "tls" .Values.webhook.tls) | fromYaml) -}}
{{- end -}}

{{- /* The kubelet, which probes, has no certificate to show. */ -}}
{{- $_ := set $server "ops_listen" (printf $at 9090) -}}
{{- $_ := set $server "ops_insecure" true -}}

{{- $_ := set $server "drain_delay_seconds" .Values.shutdown.drainDelaySeconds -}}
{{- $_ := set $server "shutdown_grace_seconds" .Values.shutdown.graceSeconds -}}

{{- /* In directories of their own: what is mounted may hold a lost+found, and its mode is the kubelet's. */ -}}
{{- $log := $config.log | default dict -}}
{{- $_ := set $config "log" $log -}}
{{- $_ := set $log "kind" "embedded" -}}
{{- $_ := set $log "path" "/var/lib/verdict/log" -}}
{{- $encryption := $log.encryption | default dict -}}
{{- $_ := set $log "encryption" $encryption -}}
{{- $_ := set $encryption "keys_path" "/var/lib/verdict-keys/keys" -}}
{{- if .Values.encryption.masterKey.existingSecret -}}
{{- $_ := set $encryption "master_key_file" (printf "/etc/verdict/master-key/%s" .Values.encryption.masterKey.key) -}}
{{- end -}}
# Made by the chart from its values.
{{- include "verdict.toml.table" (dict "path" list "table" $config) -}}
{{- end -}}

{{- define "verdict.config.tls" -}}
cert_file: /etc/verdict/tls/{{ .name }}/{{ .tls.certKey }}
key_file: /etc/verdict/tls/{{ .name }}/{{ .tls.keyKey }}
client_certificates: {{ .tls.clientCertificates }}
{{- if ne .tls.clientCertificates "none" }}
client_ca_file: /etc/verdict/client-ca/{{ .name }}/{{ .tls.clientCa.key }}
{{- end }}
{{- end -}}

{{- /* The source that `helm test` signs a sample for, as a list of at most one. */ -}}
{{- define "verdict.testSources" -}}
{{- $found := list -}}
{{- range .Values.config.sources -}}
{{- if and (eq .provider $.Values.test.provider) (eq (.account | default "default") $.Values.test.account) -}}
{{- $found = append $found . -}}
{{- end -}}
{{- end -}}
{{- toYaml $found -}}
{{- end -}}
