{{- /*
For a chart of one's own. Each takes the same map, which stands best in the values:

  trimtab:
    image: trimtab:0.2.0
    args: [--configmap=web, --template=/templates, --output=/shared/conf, --signal=HUP, --process=nginx]
    mountPath: /shared             # the directory above --output
    mounts:                        # beside it; each also has a volume of the Pod by this name
      - {name: templates, mountPath: /templates, configMap: web-templates}     # or secret: NAME
    configMaps: [web]              # what the Role allows
    secrets: []
    rollout: ""                    # of --rollout: the Role allows what its fleet shares
    memoryLimit: 32Mi
    port: 9533

  initContainers:
    {{- include "trimtab.container" .Values.trimtab | nindent 4 }}
  volumes:
    {{- include "trimtab.volumes" .Values.trimtab | nindent 4 }}

The main container mounts the volume `trimtab` at mountPath, readOnly; --signal and --process want
shareProcessNamespace: true and one runAsUser.
*/}}
{{- define "trimtab.container" -}}
- name: trimtab
  image: {{ .image | default "trimtab:0.2.0" }}
  restartPolicy: Always
  args: {{ toJson .args }}
  env:
    - name: POD_NAME
      valueFrom:
        fieldRef:
          fieldPath: metadata.name
    - name: POD_NAMESPACE
      valueFrom:
        fieldRef:
          fieldPath: metadata.namespace
    - name: POD_UID
      valueFrom:
        fieldRef:
          fieldPath: metadata.uid
  ports:
    - name: metrics
      containerPort: {{ .port | default 9533 }}
  startupProbe:
    httpGet:
      path: /readyz
      port: {{ .port | default 9533 }}
    periodSeconds: 1
    failureThreshold: 60
  livenessProbe:
    httpGet:
      path: /livez
      port: {{ .port | default 9533 }}
  resources:
    requests:
      cpu: 5m
      memory: 16Mi
    limits:
      memory: {{ .memoryLimit | default "32Mi" }}
  securityContext:
    allowPrivilegeEscalation: false
    capabilities:
      drop: [ALL]
    readOnlyRootFilesystem: true
    runAsNonRoot: true
    seccompProfile:
      type: RuntimeDefault
  volumeMounts:
    - name: trimtab
      mountPath: {{ required "mountPath: the directory above --output" .mountPath }}
    {{- range .mounts }}
    - name: {{ .name }}
      mountPath: {{ .mountPath }}
      readOnly: true
    {{- end }}
{{- end }}

{{- define "trimtab.volumes" -}}
- name: trimtab
  emptyDir: {}
{{- range .mounts }}
{{- if .configMap }}
- name: {{ .name }}
  configMap:
    name: {{ .configMap }}
{{- else if .secret }}
- name: {{ .name }}
  secret:
    secretName: {{ .secret }}
{{- end }}
{{- end }}
{{- end }}

{{- /* Of (dict "name" … "serviceAccount" … "trimtab" .Values.trimtab): a Role and its RoleBinding. */}}
{{- define "trimtab.role" -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  name: {{ .name }}
rules:
  {{- range $resource, $names := dict "configmaps" .trimtab.configMaps "secrets" .trimtab.secrets }}
  {{- if $names }}
  - apiGroups: [""]
    resources: [{{ $resource }}]
    resourceNames: {{ toJson $names }}
    verbs: [list, watch]
  {{- end }}
  {{- end }}
  - apiGroups: [events.k8s.io]
    resources: [events]
    verbs: [create]
  {{- if .trimtab.rollout }}
  {{- $fleet := printf "trimtab-%s" .trimtab.rollout }}
  - apiGroups: [coordination.k8s.io]
    resources: [leases]
    verbs: [create]
  - apiGroups: [coordination.k8s.io]
    resources: [leases]
    resourceNames: [{{ $fleet }}]
    verbs: [get, update]
  {{- $kept := list "configmaps" }}
  {{- if .trimtab.secrets }}{{ $kept = append $kept "secrets" }}{{ end }}
  {{- range $kept }}
  - apiGroups: [""]
    resources: [{{ . }}]
    verbs: [create]
  - apiGroups: [""]
    resources: [{{ . }}]
    resourceNames: [{{ $fleet }}]
    verbs: [get, update]
  {{- end }}
  {{- end }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {{ .name }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: {{ .name }}
subjects:
  - kind: ServiceAccount
    name: {{ .serviceAccount }}
{{- end }}
