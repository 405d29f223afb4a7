{{/* Whether a role or a job has to do with the log, the store or the keys: it gets no other secrets.
     Arguments: what, component. */}}
{{- define "event-aggregator.needs" -}}
{{- $users := dict "log" (list "gateway" "worker" "admin" "topics") "store" (list "worker" "admin" "migration") "keys" (list "gateway" "admin") }}
{{- if has (last .) (get $users (first .)) }}true{{ end }}
{{- end }}

{{/* Settings that follow from other values, as a map in YAML. Arguments: root, component. */}}
{{- define "event-aggregator.derivedSettings" -}}
{{- $values := .root.Values }}
{{- $kafka := $values.kafka }}
{{- if include "event-aggregator.needs" (list "log" .component) }}
AGGREGATOR_KAFKA__BOOTSTRAP_SERVERS: {{ required "kafka.bootstrapServers is not set; set it to your brokers' addresses, for example broker-1:9092,broker-2:9092" $kafka.bootstrapServers | quote }}
AGGREGATOR_KAFKA__TOPIC: {{ $kafka.topic | quote }}
AGGREGATOR_KAFKA__GROUP_ID: {{ $kafka.groupId | quote }}
AGGREGATOR_KAFKA__SECURITY_PROTOCOL: {{ $kafka.securityProtocol | quote }}
{{- if include "event-aggregator.usesSasl" .root }}
AGGREGATOR_KAFKA__SASL_MECHANISM: {{ $kafka.saslMechanism | quote }}
AGGREGATOR_KAFKA__SASL_USERNAME: {{ $kafka.saslUsername | quote }}
AGGREGATOR_KAFKA__SASL_PASSWORD_FILE: {{ printf "/run/aggregator/kafka-sasl/%s" $kafka.saslPassword.key | quote }}
{{- end }}
{{- if $kafka.tls.existingSecret }}
{{- with $kafka.tls.caKey }}
AGGREGATOR_KAFKA__SSL_CAFILE: {{ printf "/run/aggregator/kafka-tls/%s" . | quote }}
{{- end }}
{{- with $kafka.tls.certKey }}
AGGREGATOR_KAFKA__SSL_CERTFILE: {{ printf "/run/aggregator/kafka-tls/%s" . | quote }}
{{- end }}
{{- with $kafka.tls.keyKey }}
AGGREGATOR_KAFKA__SSL_KEYFILE: {{ printf "/run/aggregator/kafka-tls/%s" . | quote }}
{{- end }}
{{- end }}
{{- end }}
{{- if include "event-aggregator.needs" (list "store" .component) }}
AGGREGATOR_DATABASE__URL_FILE: {{ printf "/run/aggregator/database/%s" $values.database.key | quote }}
{{- end }}
{{- if include "event-aggregator.needs" (list "keys" .component) }}
AGGREGATOR_KEYS__PATH: {{ printf "/run/aggregator/keys/%s" $values.keys.key | quote }}
{{- end }}
{{- if eq .component "gateway" }}
AGGREGATOR_INGEST__HOST: {{ $values.listenAddress | quote }}
AGGREGATOR_INGEST__PORT: "8080"
AGGREGATOR_INGEST__DRAIN_DELAY_SECONDS: {{ $values.gateway.drainDelaySeconds | quote }}
AGGREGATOR_INGEST__SHUTDOWN_GRACE_SECONDS: {{ $values.gateway.shutdownGraceSeconds | quote }}
{{- else if eq .component "worker" }}
AGGREGATOR_WORKER__HOST: {{ $values.listenAddress | quote }}
AGGREGATOR_WORKER__PORT: "8082"
AGGREGATOR_WORKER__STALL_SECONDS: {{ $values.worker.stallSeconds | quote }}
{{- else if eq .component "admin" }}
AGGREGATOR_ADMIN__HOST: {{ $values.listenAddress | quote }}
AGGREGATOR_ADMIN__PORT: "8081"
AGGREGATOR_ADMIN__DRAIN_DELAY_SECONDS: {{ $values.admin.drainDelaySeconds | quote }}
AGGREGATOR_ADMIN__SHUTDOWN_GRACE_SECONDS: {{ $values.admin.shutdownGraceSeconds | quote }}
{{- end }}
{{- end }}

{{/* A value as a process reads it: Helm takes every number for a floating-point one, and writes 1e+06. */}}
{{- define "event-aggregator.plain" -}}
{{- if and (kindIs "float64" .) (eq . (floor .)) }}{{ int64 . }}{{ else }}{{ . }}{{ end }}
{{- end }}

{{/* The environment of a container. Arguments: root, component, own (the role's own settings), extra (a list). */}}
{{- define "event-aggregator.environment" -}}
{{- $derived := include "event-aggregator.derivedSettings" . | fromYaml }}
{{- /* A process that is given one setting of its log or store asks for the address, too. */}}
{{- $shared := dict }}
{{- range $name, $value := .root.Values.settings }}
{{- $forLog := and (hasPrefix "AGGREGATOR_KAFKA__" $name) (not (include "event-aggregator.needs" (list "log" $.component))) }}
{{- $forStore := and (hasPrefix "AGGREGATOR_DATABASE__" $name) (not (include "event-aggregator.needs" (list "store" $.component))) }}
{{- if not (or $forLog $forStore) }}
{{- $_ := set $shared $name $value }}
{{- end }}
{{- end }}
{{- $all := merge (dict) $derived .own $shared }}
{{- range $name := concat (keys .own) (keys $shared) }}
{{- $plain := trimSuffix "_FILE" $name }}
{{- if or (hasKey $derived $plain) (hasKey $derived (printf "%s_FILE" $plain)) }}
{{- fail (printf "settings has %s, which the chart sets from a value of its own; set that value (see values.yaml)" $name) }}
{{- end }}
{{- end }}
{{- range $name := keys $all | sortAlpha }}
- name: {{ $name }}
  value: {{ include "event-aggregator.plain" (get $all $name) | quote }}
{{- end }}
{{- with .extra }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Secrets are mounted as directories: a file mounted by subPath would never be updated.
     Arguments: root, component. */}}
{{- define "event-aggregator.volumeMounts" -}}
- name: tmp
  mountPath: /tmp
{{- if include "event-aggregator.needs" (list "log" .component) }}
{{- if include "event-aggregator.usesSasl" .root }}
- name: kafka-sasl
  mountPath: /run/aggregator/kafka-sasl
  readOnly: true
{{- end }}
{{- if .root.Values.kafka.tls.existingSecret }}
- name: kafka-tls
  mountPath: /run/aggregator/kafka-tls
  readOnly: true
{{- end }}
{{- end }}
{{- if include "event-aggregator.needs" (list "store" .component) }}
- name: database
  mountPath: /run/aggregator/database
  readOnly: true
{{- if .root.Values.database.tls.existingSecret }}
- name: database-tls
  mountPath: /run/aggregator/database-tls
  readOnly: true
{{- end }}
{{- end }}
{{- if include "event-aggregator.needs" (list "keys" .component) }}
- name: keys
  mountPath: /run/aggregator/keys
  readOnly: true
{{- end }}
{{- end }}

{{/* Readable by the pod's group only, which fsGroup makes the process's. Arguments: root, component. */}}
{{- define "event-aggregator.volumes" -}}
{{- $values := .root.Values }}
- name: tmp
  emptyDir:
    sizeLimit: 64Mi
{{- if include "event-aggregator.needs" (list "log" .component) }}
{{- if include "event-aggregator.usesSasl" .root }}
{{ include "event-aggregator.secretVolume" (dict "name" "kafka-sasl" "secret" $values.kafka.saslPassword.existingSecret "keys" (list $values.kafka.saslPassword.key)) }}
{{- end }}
{{- with $values.kafka.tls }}
{{- if .existingSecret }}
{{ include "event-aggregator.secretVolume" (dict "name" "kafka-tls" "secret" .existingSecret "keys" (compact (list .caKey .certKey .keyKey))) }}
{{- end }}
{{- end }}
{{- end }}
{{- if include "event-aggregator.needs" (list "store" .component) }}
{{ include "event-aggregator.secretVolume" (dict "name" "database" "secret" (required "database.existingSecret is not set; set it to the name of a secret that holds the database's URL" $values.database.existingSecret) "keys" (list $values.database.key)) }}
{{- with $values.database.tls }}
{{- if .existingSecret }}
{{ include "event-aggregator.secretVolume" (dict "name" "database-tls" "secret" .existingSecret "keys" (compact (list .caKey .certKey .keyKey))) }}
{{- end }}
{{- end }}
{{- end }}
{{- if include "event-aggregator.needs" (list "keys" .component) }}
{{ include "event-aggregator.secretVolume" (dict "name" "keys" "secret" (required "keys.existingSecret is not set; set it to the name of a secret that holds the keyring `aggregator keys create` writes" $values.keys.existingSecret) "keys" (list $values.keys.key)) }}
{{- end }}
{{- end }}

{{/* Only the keys that are needed. Arguments: name, secret, keys. */}}
{{- define "event-aggregator.secretVolume" -}}
- name: {{ .name }}
  secret:
    secretName: {{ .secret }}
    defaultMode: 0440
    items:
      {{- range .keys }}
      - key: {{ . | quote }}
        path: {{ . | quote }}
      {{- end }}
{{- end }}
