{{- define "event-aggregator.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* Short enough for the suffixes of the roles and for what a Deployment adds to the names of its pods. */}}
{{- define "event-aggregator.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- $name := include "event-aggregator.name" . }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{/* What never changes for a role: selectors are immutable. Arguments: root, component. */}}
{{- define "event-aggregator.selectorLabels" -}}
app.kubernetes.io/name: {{ include "event-aggregator.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* Arguments: root, component. */}}
{{- define "event-aggregator.labels" -}}
{{ include "event-aggregator.selectorLabels" . }}
app.kubernetes.io/part-of: event-aggregator
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/version: {{ .root.Values.image.tag | default .root.Chart.AppVersion | trunc 63 | quote }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "event-aggregator.image" -}}
{{- $repository := required "image.repository is not set; set it to where you pushed the image built from deploy/Dockerfile" .Values.image.repository }}
{{- if .Values.image.digest }}
{{- printf "%s@%s" $repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" $repository (.Values.image.tag | default .Chart.AppVersion) }}
{{- end }}
{{- end }}

{{- define "event-aggregator.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- .Values.serviceAccount.name | default (include "event-aggregator.fullname" .) }}
{{- else }}
{{- .Values.serviceAccount.name | default "default" }}
{{- end }}
{{- end }}

{{- define "event-aggregator.usesSasl" -}}
{{- if hasPrefix "SASL" .Values.kafka.securityProtocol }}true{{ end }}
{{- end }}

{{- define "event-aggregator.mostWorkers" -}}
{{- .Values.keda.maxReplicas | default .Values.kafka.partitions | int }}
{{- end }}

{{/* Values that contradict each other, said before anything is made. */}}
{{- define "event-aggregator.check" -}}
{{- $kafka := .Values.kafka }}
{{- if include "event-aggregator.usesSasl" . }}
{{- if not (and $kafka.saslUsername $kafka.saslPassword.existingSecret) }}
{{- fail (printf "kafka.securityProtocol is %s, so kafka.saslUsername and kafka.saslPassword.existingSecret have to be set" $kafka.securityProtocol) }}
{{- end }}
{{- else if or $kafka.saslUsername $kafka.saslPassword.existingSecret }}
{{- fail (printf "kafka.saslUsername or kafka.saslPassword is set, but kafka.securityProtocol is %s; choose SASL_SSL (or SASL_PLAINTEXT), or remove them" $kafka.securityProtocol) }}
{{- end }}
{{- if and $kafka.tls.existingSecret (not (hasSuffix "SSL" $kafka.securityProtocol)) }}
{{- fail (printf "kafka.tls.existingSecret is set, but kafka.securityProtocol is %s; choose SSL or SASL_SSL, or remove it" $kafka.securityProtocol) }}
{{- end }}
{{- if ne (empty $kafka.tls.certKey) (empty $kafka.tls.keyKey) }}
{{- fail "only one of kafka.tls.certKey and kafka.tls.keyKey is set; set both, or neither" }}
{{- end }}
{{- if .Values.keda.enabled }}
{{- if gt (include "event-aggregator.mostWorkers" . | int) (int $kafka.partitions) }}
{{- fail (printf "keda.maxReplicas (%d) is more than kafka.partitions (%d): the workers beyond that would have nothing to read; lower it, or add partitions to the topic" (int .Values.keda.maxReplicas) (int $kafka.partitions)) }}
{{- end }}
{{- else if gt (int .Values.worker.replicas) (int $kafka.partitions) }}
{{- fail (printf "worker.replicas (%d) is more than kafka.partitions (%d): the workers beyond that would have nothing to read; lower it, or add partitions to the topic" (int .Values.worker.replicas) (int $kafka.partitions)) }}
{{- end }}
{{- end }}
