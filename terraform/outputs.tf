output "namespace" {
  description = "Namespace of every object."
  value       = var.namespace
}

output "service" {
  description = "Name of the Service that clients, a Gateway or an Ingress use, on port 80."
  value       = kubernetes_service_v1.this.metadata[0].name
}

output "admin_service" {
  description = "Name of the headless Service for Prometheus, on port 9901."
  value       = kubernetes_service_v1.admin.metadata[0].name
}

output "url" {
  description = "Address of the proxy inside the cluster, without the path of a route."
  value       = "http://${var.name}.${var.namespace}.svc"
}

output "selector" {
  description = "Labels that select the pods."
  value       = local.selector
}
