{{/* What the operator does in a namespace it watches: exactly the requests it makes, with the reason for each. */}}
{{- define "camel-ray.rules" -}}
# What it serves. `delete` is for ttlSecondsAfterFinished.
- apiGroups: [camel-ray.dev]
  resources: [camelpipelines]
  verbs: [list, watch, delete]
# `update` for what it decides, `patch` for what stage pods report.
- apiGroups: [camel-ray.dev]
  resources: [camelpipelines/status]
  verbs: [update, patch]
# Children name their pipeline as the owner that waits for them (blockOwnerDeletion). Clusters with the admission plugin
# OwnerReferencesPermissionEnforcement, such as OpenShift, ask for this right.
- apiGroups: [camel-ray.dev]
  resources: [camelpipelines/finalizers]
  verbs: [update]
# Stage attempts. `get` tells whose an object is that exists already; nothing is ever updated.
- apiGroups: [ray.io]
  resources: [rayjobs]
  verbs: [get, list, watch, create, delete]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, delete]
# What goes with a pipeline: garbage collection removes ConfigMap and network policy. A budget goes with its attempt.
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, create]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, create, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, create]
{{- if ((.Values.stages).scratch).storageClassName }}
# The volume that the pods of a pipeline share while they work on object storage; it goes with the pipeline.
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get, create]
{{- end }}
# Why an attempt waits or failed; and, before a new attempt starts, that nothing of an old one works on.
- apiGroups: [""]
  resources: [pods, events]
  verbs: [list, watch]
- apiGroups: [ray.io]
  resources: [rayclusters]
  verbs: [list, watch]
- apiGroups: [kueue.x-k8s.io]
  resources: [workloads]
  verbs: [list, watch]
# What it tells users; `patch` counts repetitions.
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end -}}

{{/* What it asks of the whole cluster, whatever it watches. */}}
{{- define "camel-ray.clusterRules" -}}
# Checks the tokens of the stage pods that report progress.
- apiGroups: [authentication.k8s.io]
  resources: [tokenreviews]
  verbs: [create]
{{- end -}}

{{- define "camel-ray.subject" -}}
- kind: ServiceAccount
  name: {{ include "camel-ray.serviceAccount" . | quote }}
  namespace: {{ .Release.Namespace | quote }}
{{- end -}}
