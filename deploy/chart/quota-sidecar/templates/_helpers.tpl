{{- define "quota.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "quota.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains (include "quota.name" .) .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "quota.name" .) | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "quota.image" -}}
{{- with .Values.image }}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ default $.Chart.AppVersion .tag }}{{ end }}
{{- end }}
{{- end }}

{{- /* Labels of an object; what is not part of one process alone has no component. */ -}}
{{- define "quota.labels" -}}
app.kubernetes.io/name: {{ include "quota.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "quota.selector" -}}
app.kubernetes.io/name: {{ include "quota.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- /* Name of a component's objects: FULLNAME-control, FULLNAME-injector, FULLNAME-gateway. */ -}}
{{- define "quota.component" -}}
{{ include "quota.fullname" .root }}-{{ .suffix }}
{{- end }}

{{- define "quota.serviceAccount" -}}
{{- if .values.serviceAccount.create }}
{{- default (include "quota.component" .) .values.serviceAccount.name }}
{{- else }}
{{- default "default" .values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- /* Namespaces with pods to be injected: the release's own never is one. */ -}}
{{- define "quota.injectedNamespaces" -}}
{{- without (uniq .Values.dataPlane.namespaces) .Release.Namespace | toJson }}
{{- end }}
