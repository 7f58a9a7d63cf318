{{- define "orion.pluginArgs" -}}
{{- $p := .Values.plugin -}}
- --resource={{ .Values.resources.name }}
- --client-dir={{ $p.clientDir }}
- --install-to=/host/client
- --socket-dir={{ ternary .Values.server.socketDir "" .Values.server.enabled }}
- --pod-token-file={{ ternary "/var/run/secrets/orion/token" "" .Values.controller.identity.enabled }}
- --max-devices={{ $p.maxDevices }}
- --poll={{ $p.pollSeconds }}
- --log-level={{ .Values.logLevel }}
{{- if .Values.jsonLog }}
- --json-log
{{- end }}
{{- end }}
