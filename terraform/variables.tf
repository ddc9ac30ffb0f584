# Defaults are the values of k8s/base; a test holds them together.

# --- what runs, and where ------------------------------------------------------------------------------

variable "name" {
  description = "Name of every object, and of the label that selects the pods."
  type        = string
  default     = "mcp-proxy"
  nullable    = false

  validation {
    condition     = can(regex("^[a-z]([a-z0-9-]{0,40}[a-z0-9])?$", var.name))
    error_message = "The name must be a DNS label of at most 42 characters."
  }
}

variable "namespace" {
  description = "Namespace of every object."
  type        = string
  default     = "mcp"
  nullable    = false
}

variable "create_namespace" {
  description = "Whether the namespace is made here, with the Pod Security Standard \"restricted\"."
  type        = bool
  default     = true
  nullable    = false
}

variable "image" {
  description = "The image, best with its digest: ghcr.io/mcp-proxy/mcp-proxy@sha256:..."
  type        = string
  default     = "ghcr.io/mcp-proxy/mcp-proxy:0.1.0"
  nullable    = false

  validation {
    condition     = can(regex("^[^@]+(:[^/@:]+|@sha256:[0-9a-f]{64})$", var.image)) && !endswith(var.image, ":latest")
    error_message = "The image must have a tag that is not \"latest\", or a digest: @sha256: and 64 hexadecimal digits."
  }
}

variable "image_pull_secrets" {
  description = "Names of Secrets in the namespace with which the image is pulled."
  type        = list(string)
  default     = []
  nullable    = false
}

# --- configuration -------------------------------------------------------------------------------------

variable "configuration" {
  description = "The configuration of the proxy, as YAML: file(\"proxy.yaml\"). The default finds the servers behind a headless Service mcp-server."
  type        = string
  nullable    = false
  default     = <<-EOT
    listen: 0.0.0.0:8080
    admin: {listen: 0.0.0.0:9901, token: env:MCP_PROXY_ADMIN_TOKEN}
    sessions: {ttl: 2h}
    limits:
      streams: 10000
      memory: 384MiB
      drain_delay: 10s
      drain: 60s
    telemetry: {log: json}
    pools:
      mcp-server:
        discover: {dns: mcp-server, port: 8000, path: /mcp, every: 5s}
        drain: 60s
    routes:
      - {path: /mcp, pool: mcp-server}
  EOT

  validation {
    condition     = can(yamldecode(var.configuration).pools) && can(yamldecode(var.configuration).routes)
    error_message = "The configuration must be YAML with pools and routes; mcp-proxy check tells the rest."
  }

  validation {
    condition     = try(yamldecode(var.configuration).listen == "0.0.0.0:8080" && yamldecode(var.configuration).admin.listen == "0.0.0.0:9901", false)
    error_message = "The configuration must listen on 0.0.0.0:8080, and on 0.0.0.0:9901 for the admin listener: probes and Services use these ports."
  }
}

variable "sessions" {
  description = "Where sessions are kept: signed, or the URL of a Redis, in which $(NAME) is a variable of secret_env."
  type        = string
  default     = "signed"
  nullable    = false

  validation {
    condition     = can(regex("^(signed|redi(s|ss)(\\+sentinel|\\+cluster)?://.+)$", var.sessions))
    error_message = "Sessions must be signed or a redis:// URL: memory is for one process."
  }
}

variable "secret_env" {
  description = "Environment variables from keys of Secrets that exist in the namespace; the values never pass through Terraform. MCP_PROXY_SESSION_KEY is for signed sessions."
  type = map(object({
    name = string
    key  = string
  }))
  default = {
    MCP_PROXY_ADMIN_TOKEN = { name = "mcp-proxy", key = "admin-token" }
    MCP_PROXY_SESSION_KEY = { name = "mcp-proxy", key = "session-key" }
  }
  nullable = false

  validation {
    condition     = contains(keys(var.secret_env), "MCP_PROXY_ADMIN_TOKEN")
    error_message = "MCP_PROXY_ADMIN_TOKEN is needed: others can reach the admin listener of a pod."
  }
}

# --- size ----------------------------------------------------------------------------------------------

variable "min_replicas" {
  description = "Replicas that there always are."
  type        = number
  default     = 2
  nullable    = false

  validation {
    condition     = var.min_replicas >= 2
    error_message = "With fewer than 2 replicas, every rollout and every lost node is an outage."
  }
}

variable "max_replicas" {
  description = "Replicas that there are at most."
  type        = number
  default     = 10
  nullable    = false
}

variable "cpu_utilization" {
  description = "Per cent of the requested CPU above which replicas are added."
  type        = number
  default     = 80
  nullable    = false

  validation {
    condition     = var.cpu_utilization > 0 && var.cpu_utilization <= 200
    error_message = "The CPU utilization is a percentage of the request, from 1 to 200: 500m requested, and one core at most."
  }
}

variable "streams_per_replica" {
  description = "Open streams of a replica above which replicas are added; needs an adapter for the metric mcp_proxy_open_streams. null: scale by CPU alone."
  type        = number
  default     = 5000
}

variable "cpu_request" {
  description = "Requested CPU. There is no limit: it would stop the event loop in the middle of streams."
  type        = string
  default     = "500m"
  nullable    = false
}

variable "memory" {
  description = "Requested memory and its limit; limits.memory of the configuration should be three quarters of it."
  type        = string
  default     = "512Mi"
  nullable    = false
}

variable "termination_grace_period_seconds" {
  description = "More than limits.drain_delay and limits.drain of the configuration together."
  type        = number
  default     = 90
  nullable    = false
}

# --- network -------------------------------------------------------------------------------------------

variable "clients" {
  description = "Who may use the proxy: pods of these namespaces (the gateway's, say), all of them or those with these labels."
  type = list(object({
    namespace = string
    pods      = optional(map(string), {})
  }))
  default  = []
  nullable = false
}

variable "scrapers" {
  description = "Who may reach the admin listener (which wants a token for all but health; MCP_PROXY_METRICS_TOKEN opens /metrics only)."
  type = list(object({
    namespace = string
    pods      = optional(map(string), {})
  }))
  default  = []
  nullable = false
}

variable "egress" {
  description = "Pods of the namespace that the proxy may reach beside DNS: servers, Redis, a collector."
  type = list(object({
    pods = map(string)
    port = number
  }))
  default = [
    { pods = { "app.kubernetes.io/component" = "mcp-server" }, port = 8000 },
  ]
  nullable = false
}

# --- scheduling ----------------------------------------------------------------------------------------

variable "when_unsatisfiable" {
  description = "What happens to a replica for which there is no node without one: ScheduleAnyway or DoNotSchedule."
  type        = string
  default     = "ScheduleAnyway"
  nullable    = false

  validation {
    condition     = contains(["ScheduleAnyway", "DoNotSchedule"], var.when_unsatisfiable)
    error_message = "Either ScheduleAnyway or DoNotSchedule."
  }
}

variable "priority_class_name" {
  description = "PriorityClass of the pods."
  type        = string
  default     = null
}

variable "node_selector" {
  description = "Labels of the nodes on which the pods may run."
  type        = map(string)
  default     = {}
  nullable    = false
}

variable "pod_annotations" {
  description = "Annotations of the pods."
  type        = map(string)
  default     = { "kubectl.kubernetes.io/default-container" = "mcp-proxy" }
  nullable    = false
}

variable "rollout_timeout" {
  description = "How long an apply waits for new replicas."
  type        = string
  default     = "10m"
  nullable    = false
}
