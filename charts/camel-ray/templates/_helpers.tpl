{{/* Start of all names: the release's, with the chart's where the release does not hold it. */}}
{{- define "camel-ray.name" -}}
{{- $name := .Values.nameOverride -}}
{{- if not $name -}}
{{- $name = contains .Chart.Name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) -}}
{{- /* Helm takes dots in a release's name, Services do not */ -}}
{{- $name = regexReplaceAll "-+$" ($name | replace "." "-" | trunc 40) "" -}}
{{- end -}}
{{- if not (regexMatch "^[a-z]" $name) -}}
{{- fail (printf "nameOverride: the name of a Service starts with a letter, and that of this release makes '%s'; set nameOverride, or choose another name" $name) -}}
{{- end -}}
{{ $name }}
{{- end -}}

{{- define "camel-ray.operator" -}}
{{ include "camel-ray.name" . }}-operator
{{- end -}}

{{- define "camel-ray.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (include "camel-ray.name" .) -}}
{{- end -}}

{{/* Names that the whole cluster shares: releases of one name in two namespaces must not take each other's rights. */}}
{{- define "camel-ray.clusterName" -}}
{{ include "camel-ray.operator" . }}:{{ .Release.Namespace }}
{{- end -}}

{{/* Ours, as text, and those of a value; for the same key ours count. */}}
{{- define "camel-ray.merged" -}}
{{- merge (first . | fromYaml) (last . | default dict) | toYaml -}}
{{- end -}}

{{/* What never changes, because a Deployment's selector cannot. */}}
{{- define "camel-ray.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: operator
{{- end -}}

{{- define "camel-ray.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 }}
app.kubernetes.io/name: {{ .Chart.Name | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "camel-ray.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end -}}
{{- end -}}

{{/* How stage pods reach the progress server. */}}
{{- define "camel-ray.progressUrl" -}}
{{ ternary "http" "https" (eq .Values.progress.tls.mode "none") }}://{{ include "camel-ray.operator" . }}.{{ .Release.Namespace }}.svc:8443
{{- end -}}

{{/* Where `helm test` runs its pipeline: a namespace that the operator watches. */}}
{{- define "camel-ray.testNamespace" -}}
{{- if .Values.watchNamespaces -}}{{ first .Values.watchNamespaces }}{{- else -}}{{ .Release.Namespace }}{{- end -}}
{{- end -}}

{{- define "camel-ray.restricted" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "camel-ray.podSecurity" -}}
runAsNonRoot: true
{{- if .Values.operator.fixedUser }}
runAsUser: 1000
runAsGroup: 1000
fsGroup: 1000
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* Values that contradict each other: said before anything is installed. The schema says the rest. */}}
{{- define "camel-ray.check" -}}
{{- if and (eq .Values.progress.tls.mode "secret") (not .Values.progress.tls.secretName) -}}
{{- fail "progress.tls.secretName: mode `secret` needs the name of a Secret with tls.crt, tls.key and ca.crt" -}}
{{- end -}}
{{- if and (ne .Values.progress.tls.mode "secret") .Values.progress.tls.secretName -}}
{{- fail (printf "progress.tls.secretName: '%s' is used with mode `secret` only; set progress.tls.mode to secret, or delete the name" .Values.progress.tls.secretName) -}}
{{- end -}}
{{- if and (not .Values.serviceAccount.create) (not .Values.serviceAccount.name) -}}
{{- fail "serviceAccount.name: name the service account that exists, or set serviceAccount.create to true" -}}
{{- end -}}
{{- $namespaces := .Values.watchNamespaces | default list -}}
{{- if ne (len $namespaces) (len (uniq $namespaces)) -}}
{{- fail "watchNamespaces: a namespace is named twice; delete one of them" -}}
{{- end -}}
{{- $labels := .Values.podLabels | default dict -}}
{{- range list "app.kubernetes.io/name" "app.kubernetes.io/instance" "app.kubernetes.io/component" -}}
{{- if hasKey $labels . -}}
{{- fail (printf "podLabels: '%s' is what the Deployment selects its pods by; delete the line" .) -}}
{{- end -}}
{{- end -}}
{{- if eq (get $labels "app.kubernetes.io/managed-by") "camel-ray" -}}
{{- fail "podLabels: 'app.kubernetes.io/managed-by: camel-ray' marks stage pods; delete the line" -}}
{{- end -}}
{{- $variables := dict -}}
{{- range (.Values.stages).env -}}
{{- if hasKey $variables .name -}}
{{- fail (printf "stages.env: '%s' is set twice; delete one of them" .name) -}}
{{- end -}}
{{- $_ := set $variables .name true -}}
{{- end -}}
{{- end -}}
