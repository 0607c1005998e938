{{- /* The pod. Whatever runs it, a StatefulSet for now, takes this template. */ -}}
{{- define "verdict.pod" -}}
metadata:
  annotations:
    kubectl.kubernetes.io/default-container: verdict
    checksum/config: {{ include "verdict.config" . | sha256sum }}
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  labels:
    {{- include "verdict.labelsWith" (list . .Values.podLabels) | nindent 4 }}
    app.kubernetes.io/component: server
spec:
  serviceAccountName: {{ include "verdict.serviceAccountName" . }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  securityContext:
    {{- toYaml .Values.podSecurityContext | nindent 4 }}
  terminationGracePeriodSeconds: {{ include "verdict.terminationGracePeriodSeconds" . }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with .Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- range . }}
    {{- $ours := dict "labelSelector" (dict "matchLabels" (include "verdict.selectorLabels" $ | fromYaml)) }}
    - {{ toYaml (ternary . (merge $ours .) (hasKey . "labelSelector")) | nindent 6 | trim }}
    {{- end }}
  {{- end }}
  {{- with .Values.initContainers }}
  initContainers:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: verdict
      {{- include "verdict.container" . | nindent 6 }}
    {{- with .Values.extraContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  volumes:
    {{- include "verdict.volumes" . | nindent 4 }}
{{- end -}}

{{- define "verdict.container" -}}
image: {{ include "verdict.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
args: [serve]
env:
  - name: VERDICT_CONFIG
    value: /etc/verdict/config/verdict.toml
  {{- with .Values.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .Values.extraEnvFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
ports:
  - name: grpc
    containerPort: 50051
  {{- if .Values.webhook.enabled }}
  - name: webhook
    containerPort: 8080
  {{- end }}
  - name: ops
    containerPort: 9090
startupProbe:
  httpGet:
    path: /livez
    port: ops
  {{- toYaml .Values.probes.startup | nindent 2 }}
livenessProbe:
  httpGet:
    path: /livez
    port: ops
  {{- toYaml .Values.probes.liveness | nindent 2 }}
readinessProbe:
  {{- if .Values.grpc.tls.enabled }}
  # The kubelet cannot probe gRPC over TLS.
  httpGet:
    path: /readyz
    port: ops
  {{- else }}
  grpc:
    port: 50051
  {{- end }}
  {{- toYaml .Values.probes.readiness | nindent 2 }}
resources:
  {{- toYaml .Values.resources | nindent 2 }}
securityContext:
  {{- include "verdict.containerSecurityContext" . | nindent 2 }}
volumeMounts:
  - name: config
    mountPath: /etc/verdict/config
    readOnly: true
  - name: data
    mountPath: /var/lib/verdict
  - name: keys
    mountPath: /var/lib/verdict-keys
  {{- if .Values.encryption.masterKey.existingSecret }}
  - name: master-key
    mountPath: /etc/verdict/master-key
    readOnly: true
  {{- end }}
  {{- range $name, $tls := include "verdict.tls" . | fromYaml }}
  - name: tls-{{ $name }}
    mountPath: /etc/verdict/tls/{{ $name }}
    readOnly: true
  {{- if ne $tls.clientCertificates "none" }}
  - name: client-ca-{{ $name }}
    mountPath: /etc/verdict/client-ca/{{ $name }}
    readOnly: true
  {{- end }}
  {{- end }}
  {{- with include "verdict.secretMounts" .Values.secrets | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- with .Values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{- define "verdict.volumes" -}}
- name: config
  configMap:
    name: {{ include "verdict.fullname" . }}
    items:
      - key: verdict.toml
        path: verdict.toml
{{- range $name, $claim := pick .Values.persistence "data" "keys" }}
{{- if $claim.existingClaim }}
- name: {{ $name }}
  persistentVolumeClaim:
    claimName: {{ $claim.existingClaim }}
{{- end }}
{{- end }}
{{- with .Values.encryption.masterKey }}
{{- if .existingSecret }}
- name: master-key
  secret:
    secretName: {{ .existingSecret }}
    # verdict refuses a master key that others than its own user and group may read.
    defaultMode: 0440
    items:
      - key: {{ .key }}
        path: {{ .key }}
{{- end }}
{{- end }}
{{- range $name, $tls := include "verdict.tls" . | fromYaml }}
- name: tls-{{ $name }}
  secret:
    secretName: {{ $tls.existingSecret }}
    defaultMode: 0440
    items:
      - key: {{ $tls.certKey }}
        path: {{ $tls.certKey }}
      - key: {{ $tls.keyKey }}
        path: {{ $tls.keyKey }}
{{- if ne $tls.clientCertificates "none" }}
- name: client-ca-{{ $name }}
  secret:
    secretName: {{ $tls.clientCa.existingSecret | default $tls.existingSecret }}
    defaultMode: 0440
    items:
      - key: {{ $tls.clientCa.key }}
        path: {{ $tls.clientCa.key }}
{{- end }}
{{- end }}
{{- include "verdict.secretVolumes" .Values.secrets }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* The listeners that have TLS, by name. */ -}}
{{- define "verdict.tls" -}}
{{- $tls := dict -}}
{{- if .Values.grpc.tls.enabled }}{{ $_ := set $tls "grpc" .Values.grpc.tls }}{{ end -}}
{{- if and .Values.webhook.enabled .Values.webhook.tls.enabled }}{{ $_ := set $tls "webhook" .Values.webhook.tls }}{{ end -}}
{{- toYaml $tls -}}
{{- end -}}
