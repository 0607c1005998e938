{{- /* Names, labels, and where things are in the pod. */ -}}

{{- define "verdict.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- /* 48 characters leave room for the endings of Services and for what a StatefulSet appends. */ -}}
{{- define "verdict.fullname" -}}
{{- $name := include "verdict.name" . -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- .Values.fullnameOverride | default $full | trunc 48 | trimSuffix "-" -}}
{{- end -}}

{{- define "verdict.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/name: {{ include "verdict.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* The labels and further ones, `list $ further`: each key once, and the further ones count for more. */ -}}
{{- define "verdict.labelsWith" -}}
{{- toYaml (merge dict (last .) (include "verdict.labels" (first .) | fromYaml)) -}}
{{- end -}}

{{- /* Pods that serve. The component keeps the pods of `helm test` out of the Services. */ -}}
{{- define "verdict.selectorLabels" -}}
app.kubernetes.io/name: {{ include "verdict.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: server
{{- end -}}

{{- define "verdict.testLabels" -}}
app.kubernetes.io/name: {{ include "verdict.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: test
{{- end -}}

{{- define "verdict.image" -}}
{{- $image := .Values.image -}}
{{- printf "%s:%s" $image.repository ($image.tag | default .Chart.AppVersion) -}}
{{- with $image.digest }}@{{ . }}{{ end -}}
{{- end -}}

{{- define "verdict.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (ternary (include "verdict.fullname" .) "default" .Values.serviceAccount.create) -}}
{{- end -}}

{{- define "verdict.terminationGracePeriodSeconds" -}}
{{- /* What verdict takes at most, and 5 s to be sure: see "Stopping" in docs/operations.md. */ -}}
{{- add .Values.shutdown.drainDelaySeconds .Values.shutdown.graceSeconds 15 -}}
{{- end -}}

{{- define "verdict.webhookPort" -}}
{{- .Values.webhookService.port | default (ternary 443 80 .Values.webhook.tls.enabled) -}}
{{- end -}}

{{- /* What no container of ours may do: everything. */ -}}
{{- define "verdict.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- /* Mounts the entries of `secrets`; their volumes are beside. */ -}}
{{- define "verdict.secretMounts" -}}
{{- range . }}
- name: secret-{{ .name }}
  mountPath: /etc/verdict/secrets/{{ .name }}
  readOnly: true
{{- end }}
{{- end -}}

{{- define "verdict.secretVolumes" -}}
{{- range . }}
- name: secret-{{ .name }}
  secret:
    secretName: {{ .existingSecret }}
    defaultMode: 0440
    {{- with .items }}
    items:
      {{- toYaml . | nindent 6 }}
    {{- end }}
{{- end }}
{{- end -}}
