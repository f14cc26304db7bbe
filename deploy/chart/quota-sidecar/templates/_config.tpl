{{- define "quota.secretsDirectory" -}}/etc/quota-sidecar-secrets{{- end }}

{{- /* What both kinds of gateway.yaml share: config, and the files of secrets that config's services need. */ -}}
{{- define "quota.sharedConfig" -}}
{{- $directory := include "quota.secretsDirectory" . }}
{{- $config := deepCopy .Values.config }}
{{- if .Values.secrets.valkeyPassword }}
{{- $_ := set $config "valkey_password_file" (printf "%s/valkey-password" $directory) }}
{{- end }}
{{- if dig "lago" "url" "" $config }}
{{- $_ := set $config.lago "api_key_file" (printf "%s/lago-api-key" $directory) }}
{{- end }}
{{- toYaml $config }}
{{- end }}

{{- define "quota.dataPlaneConfig" -}}
{{- $config := include "quota.sharedConfig" . | fromYaml }}
{{- $config := mergeOverwrite $config (deepCopy .Values.dataPlane.config) }}
{{- if gt (max (dig "ledger" "spool_bytes_max" 0 $config | int64) (dig "ledger" "open" "spool_bytes_max" 0 $config | int64)) 125829120 }}
{{- fail "ledger.spool_bytes_max: at most 125829120 fits in the emptyDir of 256 MiB" }}
{{- end }}
{{- toYaml $config }}
{{- end }}

{{- define "quota.controlPlaneConfig" -}}
{{- $directory := include "quota.secretsDirectory" . }}
{{- $config := include "quota.sharedConfig" . | fromYaml }}
{{- if and .Values.secrets.openmeterToken (dig "metering" "url" "" $config) }}
{{- $_ := set $config.metering "token_file" (printf "%s/openmeter-token" $directory) }}
{{- end }}
{{- if and .Values.secrets.lagoWebhookHmacKey (dig "lago" "url" "" $config) }}
{{- $key := dict "hmac_key_file" (printf "%s/lago-webhook-hmac-key" $directory) }}
{{- $_ := set $config.lago "webhooks" (merge $key (dig "lago" "webhooks" dict $config)) }}
{{- end }}
{{- $admin := dict "host" "::" "port" 9090 "token_file" (printf "%s/admin-token" $directory) }}
{{- $health := dict "host" "::" "port" 15720 "metrics" true }}
{{- $config := mergeOverwrite (dict "admin" $admin "health" $health) $config (deepCopy .Values.controlPlane.config) }}
{{- toYaml $config }}
{{- end }}
