# Sessions in Redis, a configuration of its own, a Gateway in front, Prometheus behind: what k8s/overlays/production is.
# The Secrets mcp-proxy and mcp-proxy-redis are made outside of Terraform, so that their values are in no state.

terraform {
  required_version = ">= 1.5"

  required_providers {
    kubernetes = {
      source  = "hashicorp/kubernetes"
      version = ">= 2.38, < 4.0"
    }
  }
}

variable "context" {
  description = "Context of ~/.kube/config."
  type        = string
}

variable "image" {
  description = "The image with its digest, from the page of the release."
  type        = string
  default     = "ghcr.io/mcp-proxy/mcp-proxy:0.1.0"
}

provider "kubernetes" {
  config_path    = "~/.kube/config"
  config_context = var.context
}

module "mcp_proxy" {
  source = "../.."

  image         = var.image
  configuration = file("${path.module}/proxy.yaml")
  sessions      = "redis://:$(REDIS_PASSWORD)@mcp-proxy-redis:6379/0"

  secret_env = {
    MCP_PROXY_ADMIN_TOKEN   = { name = "mcp-proxy", key = "admin-token" }
    MCP_PROXY_METRICS_TOKEN = { name = "mcp-proxy", key = "metrics-token" }
    REDIS_PASSWORD          = { name = "mcp-proxy-redis", key = "password" }
  }

  min_replicas       = 3
  when_unsatisfiable = "DoNotSchedule"

  clients  = [{ namespace = "gateway-system" }]
  scrapers = [{ namespace = "monitoring", pods = { "app.kubernetes.io/name" = "prometheus" } }]

  egress = [
    { pods = { "app.kubernetes.io/component" = "mcp-server" }, port = 8000 },
    { pods = { "app.kubernetes.io/name" = "mcp-proxy-redis" }, port = 6379 },
  ]
}

output "service" {
  description = "The Service for the backendRefs of an HTTPRoute."
  value       = module.mcp_proxy.service
}
