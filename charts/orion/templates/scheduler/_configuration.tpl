{{- define "orion.schedulerConfiguration" -}}
{{- $s := .Values.scheduler }}
apiVersion: {{ include "orion.schedulerApiVersion" . }}
kind: KubeSchedulerConfiguration
leaderElection:
  leaderElect: {{ gt (int $s.replicas) 1 }}
  resourceLock: leases
  resourceName: {{ include "orion.component" (dict "root" . "component" "scheduler") }}
  resourceNamespace: {{ include "orion.namespace" . }}
{{- if semverCompare "<1.23.0" (include "orion.kubeVersion" .) }}
healthzBindAddress: ""
metricsBindAddress: ""
{{- end }}
profiles:
  - schedulerName: {{ .Values.schedulerName }}
extenders:
  - urlPrefix: http://127.0.0.1:{{ $s.extender.port }}
    filterVerb: filter
    prioritizeVerb: prioritize
    bindVerb: bind
    weight: {{ $s.extender.weight }}
    enableHTTPS: false
    httpTimeout: {{ $s.extender.timeout }}
    nodeCacheCapable: true
    ignorable: {{ $s.extender.ignorable }}
    managedResources:
      # Not ignored by the scheduler itself: it counts what each device plugin has left to give.
      - {name: {{ .Values.resources.name | quote }}, ignoredByScheduler: false}
{{- end }}

{{- define "orion.schedulerArgs" -}}
{{- $s := .Values.scheduler -}}
- --controller={{ include "orion.controller.url" . }}
- --controller-token-file=/etc/orion/auth/token
{{- if .Values.controller.tls.enabled }}
- --controller-ca=/etc/orion/ca/ca.crt
{{- end }}
- --listen=127.0.0.1:{{ $s.extender.port }}
{{- if $s.webhook.enabled }}
- --webhook-listen={{ $s.bindAddress }}:{{ $s.webhook.port }}
- --tls-cert=/etc/orion/tls/tls.crt
- --tls-key=/etc/orion/tls/tls.key
{{- end }}
{{- with .Values.kubernetes.clusterId }}
- --cluster-id={{ . }}
{{- end }}
- --resource={{ .Values.resources.name }}
- --scheduler-name={{ .Values.schedulerName }}
- --token-audience={{ ternary .Values.controller.identity.audience "" .Values.controller.identity.enabled }}
- --log-level={{ .Values.logLevel }}
{{- if .Values.jsonLog }}
- --json-log
{{- end }}
{{- end }}

{{- define "orion.tlsSecret.webhook" -}}
{{- $tls := .Values.scheduler.webhook.tls }}
{{- if eq .Values.certificates.source "secret" }}{{ required "certificates.source is secret: name it in scheduler.webhook.tls.existingSecret" $tls.existingSecret }}
{{- else }}{{ default (printf "%s-tls" (include "orion.component" (dict "root" . "component" "webhook"))) $tls.existingSecret }}{{ end }}
{{- end }}
