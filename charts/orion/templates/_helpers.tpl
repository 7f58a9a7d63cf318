{{/* ------------------------------------------------------------------------------------------------ names */}}
{{- define "orion.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- define "orion.fullname" -}}
{{- if .Values.fullnameOverride }}{{ .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- $name := include "orion.name" . }}
{{- if contains $name .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}
{{- end }}

{{- define "orion.namespace" -}}
{{- default .Release.Namespace .Values.namespaceOverride }}
{{- end }}

{{/* (dict "root" $ "component" "server") */}}
{{- define "orion.selectorLabels" -}}
app.kubernetes.io/name: {{ include "orion.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "orion.labels" -}}
{{ include "orion.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: orion
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* metadata of an object: (dict "root" $ "component" "server" "name" "orion-server"), with "cluster" true: no namespace; "annotations", "labels" optional */}}
{{- define "orion.metadata" -}}
name: {{ .name }}
{{- if not .cluster }}
namespace: {{ include "orion.namespace" .root }}
{{- end }}
labels:
  {{- include "orion.labels" . | nindent 2 }}
  {{- with .labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- $annotations := merge (dict) (.annotations | default dict) .root.Values.commonAnnotations }}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "orion.component" -}}
{{ printf "%s-%s" (include "orion.fullname" .root) .component }}
{{- end }}

{{- define "orion.controller.name" -}}
{{ default (include "orion.component" (dict "root" . "component" "controller")) .Values.controller.name }}
{{- end }}

{{- define "orion.controller.service" -}}
{{ default (include "orion.controller.name" .) .Values.controller.service }}
{{- end }}

{{/* name of a cluster-wide object: two releases in two namespaces do not meet */}}
{{- define "orion.clusterName" -}}
{{ printf "%s-%s" (include "orion.namespace" .root) (include "orion.component" .) | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* (dict "root" $ "component" "server" "values" .Values.server) */}}
{{- define "orion.serviceAccountName" -}}
{{- if .values.serviceAccount.create }}{{ default (include "orion.component" .) .values.serviceAccount.name }}
{{- else }}{{ default "default" .values.serviceAccount.name }}{{ end }}
{{- end }}

{{- define "orion.serviceAccount" -}}
{{- if .values.serviceAccount.create }}
---
apiVersion: v1
kind: ServiceAccount
metadata:
  {{- include "orion.metadata" (dict "root" .root "component" .component "name" (include "orion.serviceAccountName" .) "annotations" .values.serviceAccount.annotations) | nindent 2 }}
automountServiceAccountToken: false
{{- end }}
{{- end }}

{{/* ------------------------------------------------------------------------------------------------ images, pods */}}
{{/* (dict "root" $ "image" .Values.server.image "tag" "default tag, if not Orion's") */}}
{{- define "orion.image" -}}
{{- $values := .root.Values }}
{{- $registry := coalesce $values.global.imageRegistry .image.registry $values.image.registry }}
{{- $tag := coalesce .image.tag .image.version .tag $values.global.imageTag $values.image.tag .root.Chart.AppVersion }}
{{- $name := .image.repository }}
{{- if $registry }}{{ $name = printf "%s/%s" (trimSuffix "/" $registry) $name }}{{ end }}
{{- if .image.digest }}{{ printf "%s@%s" $name .image.digest }}{{ else }}{{ printf "%s:%s" $name $tag }}{{ end }}
{{- end }}

{{- define "orion.pullPolicy" -}}
{{ coalesce .image.pullPolicy .root.Values.image.pullPolicy "IfNotPresent" }}
{{- end }}

{{- define "orion.imagePullSecrets" -}}
{{- $names := list }}
{{- range concat (.Values.global.imagePullSecrets | default list) (kindIs "slice" .Values.imagePullSecrets | ternary .Values.imagePullSecrets (compact (list .Values.imagePullSecrets))) }}
{{- $names = append $names (kindIs "map" . | ternary (get (kindIs "map" . | ternary . dict) "name") .) }}
{{- end }}
{{- with $names | uniq }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{/* where a pod may run: (dict "root" $ "values" .Values.plugin), optional "nodeSelector" */}}
{{- define "orion.placement" -}}
{{- with (hasKey . "nodeSelector" | ternary .nodeSelector .values.nodeSelector) }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with coalesce .values.priorityClassName .root.Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end }}

{{/* labels and annotations of a pod: (dict "root" $ "component" "server" "values" .Values.server "checksums" (dict)) */}}
{{- define "orion.podMetadata" -}}
labels:
  {{- include "orion.labels" . | nindent 2 }}
  {{- with .values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- $annotations := merge (dict) (.values.podAnnotations | default dict) (.checksums | default dict) .root.Values.commonAnnotations }}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* ------------------------------------------------------------------------------------------------ the API server */}}
{{- define "orion.apiServerEnv" -}}
{{- with .Values.kubernetes.serviceHost }}
- name: KUBERNETES_SERVICE_HOST
  value: {{ . | quote }}
{{- end }}
{{- with .Values.kubernetes.servicePort }}
- name: KUBERNETES_SERVICE_PORT
  value: {{ . | quote }}
{{- end }}
{{- end }}

{{/* Only the containers that ask the API server see a token: it is not mounted automatically. */}}
{{- define "orion.apiServerVolume" -}}
- name: api-server
  projected:
    defaultMode: 0440
    sources:
      - serviceAccountToken: {path: token, expirationSeconds: 3607}
      - configMap: {name: kube-root-ca.crt, items: [{key: ca.crt, path: ca.crt}]}
      - downwardAPI: {items: [{path: namespace, fieldRef: {apiVersion: v1, fieldPath: metadata.namespace}}]}
{{- end }}

{{- define "orion.apiServerMount" -}}
- {name: api-server, mountPath: /var/run/secrets/kubernetes.io/serviceaccount, readOnly: true}
{{- end }}

{{/* ------------------------------------------------------------------------------------------------ the controller */}}
{{/* Of Services: of several replicas the one that leads, which its sidecar labels. */}}
{{- define "orion.controller.selector" -}}
{{- include "orion.selectorLabels" (dict "root" . "component" "controller") }}
{{- if gt (int .Values.controller.replicas) 1 }}
orion/role: leader
{{- end }}
{{- end }}

{{- define "orion.httpPort" -}}
{{ default 15500 .Values.controller.port | int }}
{{- end }}

{{- define "orion.controller.address" -}}
{{ default (printf "%s.%s.svc:%d" (include "orion.controller.service" .) (include "orion.namespace" .) (int .Values.controller.zmqPort)) .Values.controller.address }}
{{- end }}

{{- define "orion.controller.url" -}}
{{- $scheme := .Values.controller.tls.enabled | ternary "https" "http" }}
{{- default (printf "%s://%s.%s.svc:%s" $scheme (include "orion.controller.service" .) (include "orion.namespace" .) (include "orion.httpPort" .)) .Values.controller.url }}
{{- end }}

{{- define "orion.tlsSecret.controller" -}}
{{- if eq .Values.certificates.source "secret" }}{{ required "certificates.source is secret: name it in controller.tls.existingSecret" .Values.controller.tls.existingSecret }}
{{- else }}{{ default (printf "%s-tls" (include "orion.component" (dict "root" . "component" "controller"))) .Values.controller.tls.existingSecret }}{{ end }}
{{- end }}

{{- define "orion.publicConfigMap" -}}
{{ include "orion.component" (dict "root" . "component" "controller-public") }}
{{- end }}

{{/* Secret of auth.NAME: (dict "root" $ "auth" "viewer") */}}
{{- define "orion.authSecret" -}}
{{ default (printf "%s-auth-%s" (include "orion.fullname" .root) .auth) (get .root.Values.auth .auth).existingSecret }}
{{- end }}

{{- define "orion.authKeyRef" -}}
secretKeyRef: {name: {{ include "orion.authSecret" . }}, key: {{ (get .root.Values.auth .auth).key }}}
{{- end }}

{{/* How a component asks the controller's API: (dict "root" $ "auth" "operator") */}}
{{- define "orion.controllerEnv" -}}
- name: ORION_CONTROLLER
  value: {{ include "orion.controller.address" .root | quote }}
- name: ORION_CONTROLLER_KEY
  valueFrom: {configMapKeyRef: {name: {{ include "orion.publicConfigMap" .root }}, key: controller-key}}
- name: ORION_CONTROLLER_URL
  value: {{ include "orion.controller.url" .root | quote }}
- name: ORION_TOKEN
  valueFrom:
    {{- include "orion.authKeyRef" . | nindent 4 }}
{{- if .root.Values.controller.tls.enabled }}
- name: ORION_CA_FILE
  value: /etc/orion/ca/ca.crt
{{- end }}
{{- end }}

{{- define "orion.caVolume" -}}
{{- if .Values.controller.tls.enabled }}
- name: controller-ca
  secret:
    secretName: {{ include "orion.tlsSecret.controller" . }}
    items: [{key: ca.crt, path: ca.crt}]
{{- end }}
{{- end }}

{{- define "orion.caMount" -}}
{{- if .Values.controller.tls.enabled }}
- {name: controller-ca, mountPath: /etc/orion/ca, readOnly: true}
{{- end }}
{{- end }}

{{- define "orion.usesPostgres" -}}
{{- if or .Values.controller.database.url .Values.controller.database.existingSecret }}true{{ end }}
{{- end }}
{{- define "orion.databaseSecret" -}}
{{ default (include "orion.component" (dict "root" . "component" "database")) .Values.controller.database.existingSecret }}
{{- end }}

{{/* ------------------------------------------------------------------------------------------------ versions */}}
{{/* The cluster's version without what vendors append: v1.29.3-gke.1 and v1.29.3+k3s1 are v1.29.3. */}}
{{- define "orion.kubeVersion" -}}
{{ regexFind "^v?[0-9]+\\.[0-9]+(\\.[0-9]+)?" .Capabilities.KubeVersion.Version }}
{{- end }}

{{- define "orion.schedulerApiVersion" -}}
{{- $version := include "orion.kubeVersion" . }}
{{- if semverCompare ">=1.25.0" $version }}kubescheduler.config.k8s.io/v1
{{- else if semverCompare ">=1.23.0" $version }}kubescheduler.config.k8s.io/v1beta3
{{- else }}kubescheduler.config.k8s.io/v1beta1{{ end }}
{{- end }}

{{/* ------------------------------------------------------------------------------------------------ certificates */}}
{{/* YAML of {crt, key, ca} in base64: that of the Secret in the cluster, else a new one. (dict "root" $ "secret" NAME "names" LIST) */}}
{{- define "orion.certificate" -}}
{{- $found := lookup "v1" "Secret" (include "orion.namespace" .root) .secret }}
{{- $wanted := join "," .names }}
{{- if and $found (eq (get ($found.metadata.annotations | default dict) "orion/names") $wanted) }}
{{- dict "crt" (get $found.data "tls.crt") "key" (get $found.data "tls.key") "ca" (get $found.data "ca.crt") | toYaml }}
{{- else }}
{{- $days := int .root.Values.certificates.validityDays }}
{{- $ips := list }}{{ $dns := list }}
{{- range .names }}
{{- if or (regexMatch "^[0-9]+(\\.[0-9]+){3}$" .) (contains ":" .) }}{{ $ips = append $ips . }}{{ else }}{{ $dns = append $dns . }}{{ end }}
{{- end }}
{{- $ca := genCAWithKey "orion" $days (genPrivateKey "ecdsa") }}
{{- $certificate := genSignedCertWithKey (first .names) $ips $dns $days $ca (genPrivateKey "ecdsa") }}
{{- dict "crt" ($certificate.Cert | b64enc) "key" ($certificate.Key | b64enc) "ca" ($ca.Cert | b64enc) | toYaml }}
{{- end }}
{{- end }}

{{- define "orion.serviceNames" -}}
{{- $ns := include "orion.namespace" .root }}
{{- join "," (list (printf "%s.%s.svc" .service $ns) .service (printf "%s.%s" .service $ns) (printf "%s.%s.svc.cluster.local" .service $ns)) }}
{{- end }}

{{/* The issuer where none is named: a self-signed one makes a CA, which signs. */}}
{{- define "orion.certManagerCertificate" -}}
---
apiVersion: cert-manager.io/v1
kind: Certificate
metadata:
  {{- include "orion.metadata" (dict "root" .root "component" .component "name" .secret) | nindent 2 }}
spec:
  secretName: {{ .secret }}
  {{- $ips := list }}{{ $dns := list }}
  {{- range .names }}
  {{- if or (regexMatch "^[0-9]+(\\.[0-9]+){3}$" .) (contains ":" .) }}{{ $ips = append $ips . }}{{ else }}{{ $dns = append $dns . }}{{ end }}
  {{- end }}
  dnsNames:
    {{- toYaml $dns | nindent 4 }}
  {{- with $ips }}
  ipAddresses:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  usages: [server auth, digital signature, key encipherment]
  privateKey: {algorithm: ECDSA, size: 256, rotationPolicy: Always}
  issuerRef:
    {{- default (dict "name" (printf "%s-ca" (include "orion.fullname" .root)) "kind" "Issuer") .root.Values.certificates.certManager.issuerRef | toYaml | nindent 4 }}
{{- end }}

{{/* Of every process that opens the controller's database. */}}
{{- define "orion.controllerBaseEnv" -}}
- {name: HOME, value: /var/lib/orion}
{{- if include "orion.usesPostgres" . }}
- name: ORION_CONTROLLER_DATABASE
  valueFrom: {secretKeyRef: {name: {{ include "orion.databaseSecret" . }}, key: {{ .Values.controller.database.key }}}}
{{- end }}
{{- end }}

{{/* (dict "root" $ "component" "scheduler" "kind" "Role" or "ClusterRole" "role" NAME "account" NAME), optional "name" and "namespace" of the binding */}}
{{- define "orion.binding" -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ .kind }}Binding
metadata:
  name: {{ .name | default .role }}
  {{- if eq .kind "Role" }}
  namespace: {{ .namespace | default (include "orion.namespace" .root) }}
  {{- end }}
  labels:
    {{- include "orion.labels" . | nindent 4 }}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: {{ .kind }}, name: {{ .role | quote }}}
subjects:
  - {kind: ServiceAccount, name: {{ .account }}, namespace: {{ include "orion.namespace" .root }}}
{{- end }}
