# Sessions in sealed ids, the servers of k8s/components/example-backend, clients in the namespace "agents".
#
# The Secret is made outside of Terraform, so that its values are in no state:
#   kubectl -n mcp create secret generic mcp-proxy \
#     --from-literal=admin-token="$(openssl rand -base64 32)" --from-literal=session-key="$(openssl rand -base64 32)"

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

provider "kubernetes" {
  config_path    = "~/.kube/config"
  config_context = var.context
}

module "mcp_proxy" {
  source = "../.."

  clients = [{ namespace = "agents" }]
}

output "url" {
  description = "What clients in the cluster use."
  value       = "${module.mcp_proxy.url}/mcp"
}
