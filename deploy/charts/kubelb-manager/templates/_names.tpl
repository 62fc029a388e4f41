{{- define "kubelb.image" -}}
{{ printf "%s/%s:%s" .root.Values.image.registry .name (default .root.Chart.AppVersion .root.Values.image.tag) }}
{{- end }}

{{- define "kubelb.labels" -}}
{{ include "kubelb.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{- define "kubelb.selector" -}}
app.kubernetes.io/name: {{ .name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/part-of: kubelb
{{- end }}

{{/* The flags of both roles of the manager. */}}
{{- define "kubelb.flags" -}}
- --namespace={{ .Release.Namespace }}
- --log-level={{ .Values.log.level }}
- --log-format={{ .Values.log.format }}
{{- with .Values.controller.forbiddenCIDRs }}
- --forbidden-cidrs={{ join "," . }}
{{- end }}
{{- end }}

{{/* A backend option as its user wrote it: YAML reads off as false, and Helm prints a large number as 1.6e+07. No option of KubeLB's own dataplanes is
true or false. Options of another dataplane may be. */}}
{{- define "kubelb.option" -}}
{{- if and (kindIs "bool" .value) (not (hasPrefix "/" .backend)) }}
{{- ternary "on" "off" .value }}
{{- else if and (kindIs "float64" .value) (eq .value (floor .value)) }}
{{- printf "%.0f" .value }}
{{- else }}
{{- .value }}
{{- end }}
{{- end }}

{{/* The flags of a gateway and of its preflight. */}}
{{- define "kubelb.gatewayFlags" -}}
- --backend={{ .Values.dataplane.backend }}
{{- range $key, $value := .Values.dataplane.options }}
- {{ printf "--backend-option=%s=%s" $key (include "kubelb.option" (dict "value" $value "backend" $.Values.dataplane.backend)) | quote }}
{{- end }}
- --state-dir=/var/lib/kubelb
- --announce={{ .Values.gateway.announce }}
{{- with .Values.gateway.interfaces }}
- --announce-interfaces={{ join "," . }}
{{- end }}
- --metrics-addr=:{{ .Values.gateway.metricsPort }}
- --health-probe-bind-address=127.0.0.1:{{ .Values.gateway.healthPort }}
{{- end }}
