{{- /*
Writes TOML. Helm's own toToml makes 1.048576e+06 of an integer, because numbers from YAML are floats to it.
*/ -}}

{{- /* A table with its name, `{path, table}`: what stands in it, then the tables in it, then the arrays of tables. */ -}}
{{- define "verdict.toml.table" -}}
{{- $path := .path -}}
{{- range $key, $value := .table -}}
{{- if not (or (kindIs "map" $value) (kindIs "invalid" $value) (include "verdict.toml.isTables" $value)) }}
{{ include "verdict.toml.key" $key }} = {{ include "verdict.toml.value" $value }}
{{- end -}}
{{- end -}}
{{- range $key, $value := .table -}}
{{- if kindIs "map" $value -}}
{{- $name := append $path (include "verdict.toml.key" $key) }}

[{{ join "." $name }}]
{{- include "verdict.toml.table" (dict "path" $name "table" $value) -}}
{{- end -}}
{{- end -}}
{{- range $key, $value := .table -}}
{{- if include "verdict.toml.isTables" $value -}}
{{- $name := append $path (include "verdict.toml.key" $key) -}}
{{- range $value }}

[[{{ join "." $name }}]]
{{- range $member, $content := . }}
{{- if not (kindIs "invalid" $content) }}
{{ include "verdict.toml.key" $member }} = {{ include "verdict.toml.value" $content }}
{{- end }}
{{- end }}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* Not empty, if it is a list of maps and of nothing else. */ -}}
{{- define "verdict.toml.isTables" -}}
{{- if kindIs "slice" . -}}
{{- $maps := 0 -}}
{{- range . }}{{ if kindIs "map" . }}{{ $maps = add1 $maps }}{{ end }}{{ end -}}
{{- if and $maps (eq (int $maps) (len .)) }}true{{ end -}}
{{- end -}}
{{- end -}}

{{- define "verdict.toml.key" -}}
{{- if regexMatch "^[A-Za-z0-9_-]+$" . }}{{ . }}{{ else }}{{ include "verdict.toml.value" . }}{{ end -}}
{{- end -}}

{{- /* A value on one line. */ -}}
{{- define "verdict.toml.value" -}}
{{- if kindIs "map" . -}}
{{- $members := list -}}
{{- range $key, $value := . -}}
{{- if not (kindIs "invalid" $value) -}}
{{- $members = append $members (printf "%s = %s" (include "verdict.toml.key" $key) (include "verdict.toml.value" $value)) -}}
{{- end -}}
{{- end -}}
{{- printf "{ %s }" (join ", " $members) -}}
{{- else if kindIs "slice" . -}}
{{- $elements := list -}}
{{- range . }}{{ $elements = append $elements (include "verdict.toml.value" .) }}{{ end -}}
{{- printf "[%s]" (join ", " $elements) -}}
{{- else if kindIs "string" . -}}
{{- /* A string of JSON is one of TOML, but for one character that JSON need not escape. */ -}}
{{- toJson . | replace "\u007f" "\\u007f" -}}
{{- else if kindIs "float64" . -}}
{{- if eq (floor .) . }}{{ printf "%.0f" . }}{{ else }}{{ . }}{{ end -}}
{{- else if kindIs "invalid" . -}}
{{- fail "config: a list has an element that is null, which TOML does not have" -}}
{{- else -}}
{{- . -}}
{{- end -}}
{{- end -}}
