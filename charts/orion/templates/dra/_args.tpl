{{- define "orion.draArgs" }}
- --controller-url={{ include "orion.controller.url" . }}
- --controller-token-file=/etc/orion/auth/token
{{- if .Values.controller.tls.enabled }}
- --controller-ca-file=/etc/orion/ca/ca.crt
{{- end }}
- --driver={{ .Values.dra.driverName }}
- --pool={{ .Values.dra.pool }}
{{- end }}

{{- define "orion.draVolumes" }}
- name: tmp
  emptyDir: {}
- name: auth
  secret:
    secretName: {{ include "orion.authSecret" (dict "root" . "auth" "operator") }}
    items: [{key: {{ .Values.auth.operator.key }}, path: token}]
{{- include "orion.caVolume" . }}
{{ include "orion.apiServerVolume" . }}
{{- end }}
