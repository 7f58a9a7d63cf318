{{- define "orion.pluginArgs" -}}
- --resource={{ .Values.resources.name }}
- --log-level={{ .Values.logLevel }}
{{- end }}
