{{/* What the "restricted" pod security standard asks for, and a root file system that is read only. */}}
{{- define "event-aggregator.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "event-aggregator.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* The pod of a role. Arguments: root, component, values (of the role), port, grace (seconds), alive (seconds that
     /livez may fail before the container is restarted). */}}
{{- define "event-aggregator.rolePod" -}}
{{- include "event-aggregator.check" .root }}
metadata:
  labels:
    {{- include "event-aggregator.labels" . | nindent 4 }}
    {{- with .values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with .values.podAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ include "event-aggregator.serviceAccountName" .root }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  {{- with .root.Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  securityContext:
    {{- include "event-aggregator.podSecurityContext" . | nindent 4 }}
  terminationGracePeriodSeconds: {{ int .grace }}
  {{- with .values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  containers:
    - name: {{ .component }}
      image: {{ include "event-aggregator.image" .root | quote }}
      imagePullPolicy: {{ .root.Values.image.pullPolicy }}
      command: [aggregator]
      args: [{{ .component }}]
      env:
        {{- include "event-aggregator.environment" (dict "root" .root "component" .component "own" .values.settings "extra" .values.extraEnv) | trim | nindent 8 }}
      ports:
        - name: http
          containerPort: {{ .port }}
          protocol: TCP
      # Five minutes: the admin API listens only once the database has answered.
      startupProbe:
        httpGet: {path: /livez, port: http}
        periodSeconds: 2
        timeoutSeconds: 2
        failureThreshold: 150
      livenessProbe:
        httpGet: {path: /livez, port: http}
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: {{ div (int .alive) 10 }}
      readinessProbe:
        httpGet: {path: /readyz, port: http}
        periodSeconds: 5
        timeoutSeconds: 3
        failureThreshold: 2
      securityContext:
        {{- include "event-aggregator.containerSecurityContext" . | nindent 8 }}
      resources:
        {{- toYaml .values.resources | nindent 8 }}
      volumeMounts:
        {{- include "event-aggregator.volumeMounts" . | trim | nindent 8 }}
  volumes:
    {{- include "event-aggregator.volumes" . | trim | nindent 4 }}
  topologySpreadConstraints:
    {{- if .values.topologySpreadConstraints }}
    {{- toYaml .values.topologySpreadConstraints | nindent 4 }}
    {{- else }}
    {{- range $key := list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
    - maxSkew: 1
      topologyKey: {{ $key }}
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "event-aggregator.selectorLabels" $ | nindent 10 }}
    {{- end }}
    {{- end }}
  {{- with .values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}

{{/* A command that runs before an install or an upgrade. The service account of the chart is not there yet, and
     nothing is needed of it. Arguments: root, component, arguments (list), values, weight, backoffLimit. */}}
{{- define "event-aggregator.hookJob" -}}
{{- include "event-aggregator.check" .root }}
apiVersion: batch/v1
kind: Job
metadata:
  name: {{ include "event-aggregator.fullname" .root }}-{{ .component }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "event-aggregator.labels" . | nindent 4 }}
  annotations:
    helm.sh/hook: pre-install,pre-upgrade
    helm.sh/hook-weight: {{ .weight | quote }}
    helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
spec:
  backoffLimit: {{ int .backoffLimit }}
  activeDeadlineSeconds: {{ int .values.activeDeadlineSeconds }}
  template:
    metadata:
      labels:
        {{- include "event-aggregator.labels" . | nindent 8 }}
    spec:
      restartPolicy: Never
      {{- if not .root.Values.serviceAccount.create }}
      serviceAccountName: {{ include "event-aggregator.serviceAccountName" .root }}
      {{- end }}
      automountServiceAccountToken: false
      enableServiceLinks: false
      {{- with .root.Values.imagePullSecrets }}
      imagePullSecrets:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      securityContext:
        {{- include "event-aggregator.podSecurityContext" . | nindent 8 }}
      containers:
        - name: {{ .component }}
          image: {{ include "event-aggregator.image" .root | quote }}
          imagePullPolicy: {{ .root.Values.image.pullPolicy }}
          command: [aggregator]
          args: {{ toJson .arguments }}
          env:
            {{- include "event-aggregator.environment" (dict "root" .root "component" .component "own" dict "extra" list) | trim | nindent 12 }}
          securityContext:
            {{- include "event-aggregator.containerSecurityContext" . | nindent 12 }}
          resources:
            {{- toYaml .values.resources | nindent 12 }}
          volumeMounts:
            {{- include "event-aggregator.volumeMounts" . | trim | nindent 12 }}
      volumes:
        {{- include "event-aggregator.volumes" . | trim | nindent 8 }}
{{- end }}
