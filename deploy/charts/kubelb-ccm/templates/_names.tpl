{{- define "kubelb.selector" -}}
app.kubernetes.io/name: kubelb-ccm
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/part-of: kubelb
{{- end }}

{{- define "kubelb.labels" -}}
{{ include "kubelb.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}
