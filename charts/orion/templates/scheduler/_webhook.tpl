{{/* One entry of the configuration: (dict "root" $ "kind" "Mutating" "path" "/mutate" "ca" BASE64 "name" N "policy" P "conditions" true, or "operator" of the label's selector; "operation" CREATE or UPDATE) */}}
{{- define "orion.webhook" -}}
{{- $w := .root.Values.scheduler.webhook }}
{{- $resource := .root.Values.resources.name }}
- name: {{ .name }}
  admissionReviewVersions: [v1]
  sideEffects: None
  failurePolicy: {{ .policy }}
  timeoutSeconds: {{ $w.timeoutSeconds }}
  {{- if eq .kind "Mutating" }}
  reinvocationPolicy: {{ $w.reinvocationPolicy }}
  {{- end }}
  matchPolicy: Equivalent
  clientConfig:
    {{- if $w.url }}
    url: {{ printf "%s%s" (trimSuffix "/" $w.url) .path | quote }}
    {{- else }}
    service:
      name: {{ include "orion.component" (dict "root" .root "component" "webhook") }}
      namespace: {{ include "orion.namespace" .root }}
      port: 443
      path: {{ .path }}
    {{- end }}
    {{- with .ca }}
    caBundle: {{ . }}
    {{- end }}
  rules:
    - {apiGroups: [""], apiVersions: [v1], resources: [pods], operations: [{{ .operation | default "CREATE" }}], scope: Namespaced}
  {{- with $w.namespaceSelector }}
  namespaceSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- $expressions := ($w.objectSelector.matchExpressions | default list) }}
  {{- with .operator }}{{ $expressions = append $expressions (dict "key" "virtaitech.com/vgpu" "operator" .) }}{{ end }}
  {{- $selector := merge (dict) (ternary (dict "matchExpressions" $expressions) dict (gt (len $expressions) 0)) (omit $w.objectSelector "matchExpressions") }}
  {{- with $selector }}
  objectSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if .claims }}
  matchConditions:
    - name: has-resource-claims
      expression: has(object.spec.resourceClaims) && object.spec.resourceClaims.size() > 0
  {{- else if .conditions }}
  matchConditions:
    - name: asks-for-vgpus
      expression: >-
        (object.spec.containers + (has(object.spec.initContainers) ? object.spec.initContainers : [])).exists(c,
        has(c.resources) && (has(c.resources.limits) && {{ $resource | squote }} in c.resources.limits
        || has(c.resources.requests) && {{ $resource | squote }} in c.resources.requests))
  {{- end }}
{{- end }}
