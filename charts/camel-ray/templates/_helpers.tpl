{{/* Start of all names: the release's, with the chart's where the release does not hold it. */}}
{{- define "camel-ray.name" -}}
{{- if .Values.nameOverride -}}
{{ .Values.nameOverride }}
{{- else if contains .Chart.Name .Release.Name -}}
{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" }}
{{- end -}}
{{- end -}}

{{- define "camel-ray.operator" -}}
{{ include "camel-ray.name" . }}-operator
{{- end -}}

{{- define "camel-ray.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (include "camel-ray.name" .) -}}
{{- end -}}

{{/* What never changes, because a Deployment's selector cannot. */}}
{{- define "camel-ray.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{- define "camel-ray.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 }}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
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
runAsUser: 1000
runAsGroup: 1000
fsGroup: 1000
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* Values that contradict each other: said before anything is installed. */}}
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
{{- if ne (len .Values.watchNamespaces) (len (uniq .Values.watchNamespaces)) -}}
{{- fail "watchNamespaces: a namespace is named twice; delete one of them" -}}
{{- end -}}
{{- range list "app.kubernetes.io/name" "app.kubernetes.io/instance" "app.kubernetes.io/component" -}}
{{- if hasKey $.Values.podLabels . -}}
{{- fail (printf "podLabels: '%s' is what the Deployment selects its pods by; delete the line" .) -}}
{{- end -}}
{{- end -}}
{{- if eq (get .Values.podLabels "app.kubernetes.io/managed-by") "camel-ray" -}}
{{- fail "podLabels: 'app.kubernetes.io/managed-by: camel-ray' marks stage pods; delete the line" -}}
{{- end -}}
{{- end -}}
