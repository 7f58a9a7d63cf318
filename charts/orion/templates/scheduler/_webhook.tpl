{{/* One entry of the configuration: (dict "root" $ "ca" BASE64 "name" N "policy" P "conditions" true or "operator" of the label's selector) */}}
{{- define "orion.webhook" -}}
{{- $w := .root.Values.scheduler.webhook }}
{{- $resource := .root.Values.resources.name }}
- name: {{ .name }}
  admissionReviewVersions: [v1]
  sideEffects: None
  failurePolicy: {{ .policy }}
  timeoutSeconds: {{ $w.timeoutSeconds }}
  reinvocationPolicy: {{ $w.reinvocationPolicy }}
  matchPolicy: Equivalent
  clientConfig:
    {{- if $w.url }}
    url: {{ $w.url | quote }}
    {{- else }}
    service:
      name: {{ include "orion.component" (dict "root" .root "component" "webhook") }}
      namespace: {{ include "orion.namespace" .root }}
      port: 443
      path: /mutate
    {{- end }}
    {{- with .ca }}
    caBundle: {{ . }}
    {{- end }}
  rules:
    - {apiGroups: [""], apiVersions: [v1], resources: [pods], operations: [CREATE], scope: Namespaced}
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
  {{- if .conditions }}
  matchConditions:
    - name: asks-for-vgpus
      expression: >-
        [object.spec.containers, has(object.spec.initContainers) ? object.spec.initContainers : []].exists(list,
        list.exists(c, has(c.resources) && has(c.resources.limits) && {{ $resource | squote }} in c.resources.limits))
        || (has(object.metadata.annotations) && object.metadata.annotations.exists(key, key in
        ['virtaitech.com/gmem', 'virtaitech.com/ratio']))
  {{- end }}
{{- end }}
