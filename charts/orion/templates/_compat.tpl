{{/* The original product's keys, put where this chart's own are: one that is given decides. Every template includes this
     first: it changes .Values, the second time to what they are already. */}}
{{- define "orion.compat" -}}
{{- $v := .Values }}
{{- with $v.controller.password }}{{ $_ := set $v.auth.admin "value" (toString .) }}{{ end }}
{{- with $v.controller.token }}{{ $_ := set $v.auth.operator "value" (toString .) }}{{ end }}
{{- with $v.controller.nodeport }}{{ $_ := set $v.portal.service "nodePort" (int .) }}{{ end }}
{{- with $v.server.net }}{{ $_ := set $v.server "interface" . }}{{ end }}
{{- with $v.server.vgpus }}{{ $_ := set $v.server "vgpuCount" (int .) }}{{ end }}
{{- with $v.server.ibName }}{{ $_ := set $v.server "rdmaDevice" . }}{{ end }}
{{- with $v.server.port }}{{ $_ := set $v.server.ports "control" (int .) }}{{ end }}
{{- with ($v.server.path | default dict).comm }}{{ $_ := set $v.server "socketDir" . }}{{ end }}
{{- with $v.plugin.path }}{{ $_ := set $v.plugin "kubeletDir" . }}{{ end }}
{{- with $v.scheduler.port }}{{ $_ := set $v.scheduler.extender "port" (int .) }}{{ end }}
{{- if $v.scheduler.verbose }}{{ $_ := set $v.scheduler.kubeScheduler "verbosity" (int $v.scheduler.verbose) }}{{ end }}
{{- end }}

{{/* What was given and does nothing; for the notes. */}}
{{- define "orion.ignored" -}}
{{- $v := .Values }}
{{- $found := list }}
{{- if ($v.license | default dict).key }}{{ $found = append $found "license.key (there are no licences)" }}{{ end }}
{{- range $key := list "enableQuota" "version" "portName0" "portName1" "portName2" }}
{{- if hasKey $v.controller $key }}{{ $found = append $found (printf "controller.%s" $key) }}{{ end }}
{{- end }}
{{- if hasKey $v.controller.image "prom" }}{{ $found = append $found "controller.image.prom (see serviceMonitor)" }}{{ end }}
{{- if hasKey $v.server "cudaVersion" }}{{ $found = append $found "server.cudaVersion (one server serves every CUDA version that its driver does)" }}{{ end }}
{{- range $key := list "apiVersion" "dataVersion" }}
{{- if hasKey $v.scheduler $key }}{{ $found = append $found (printf "scheduler.%s" $key) }}{{ end }}
{{- end }}
{{- range $key := list "scheduler" "extender" }}
{{- if hasKey $v.scheduler.image $key }}{{ $found = append $found (printf "scheduler.image.%s" $key) }}{{ end }}
{{- end }}
{{- range $key := list "monitor" "helper" "volumes" }}
{{- if hasKey $v $key }}{{ $found = append $found (printf "%s.*" $key) }}{{ end }}
{{- end }}
{{- join ", " $found }}
{{- end }}
