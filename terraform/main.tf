# The objects of k8s/base, as resources of the Kubernetes provider. What the provider cannot say is in README.md.

locals {
  selector = {
    "app.kubernetes.io/name" = var.name
  }
  labels = {
    "app.kubernetes.io/name"    = var.name
    "app.kubernetes.io/part-of" = "mcp-proxy"
  }
  part_of = {
    "app.kubernetes.io/part-of" = "mcp-proxy"
  }
}

resource "kubernetes_namespace_v1" "this" {
  count = var.create_namespace ? 1 : 0

  metadata {
    name = var.namespace
    labels = {
      "pod-security.kubernetes.io/enforce"         = "restricted"
      "pod-security.kubernetes.io/enforce-version" = "v1.34"
      "pod-security.kubernetes.io/warn"            = "restricted"
      "pod-security.kubernetes.io/warn-version"    = "v1.34"
    }
  }
}

# The proxy needs nothing of the API.
resource "kubernetes_service_account_v1" "this" {
  metadata {
    name      = var.name
    namespace = var.namespace
    labels    = local.labels
  }

  automount_service_account_token = false

  depends_on = [kubernetes_namespace_v1.this]
}

# Its name does not change with its content: the proxy reads a changed file again by itself, and refuses one that
# is wrong, while a rollout would end every stream.
resource "kubernetes_config_map_v1" "this" {
  metadata {
    name      = var.name
    namespace = var.namespace
    labels    = local.labels
  }

  data = {
    "proxy.yaml" = var.configuration
  }

  depends_on = [kubernetes_namespace_v1.this]
}

# Any replica serves any request, so this may spread as it likes.
resource "kubernetes_service_v1" "this" {
  metadata {
    name      = var.name
    namespace = var.namespace
    labels    = local.labels
  }

  spec {
    type     = "ClusterIP"
    selector = local.selector

    port {
      name         = "http"
      port         = 80
      target_port  = "http"
      protocol     = "TCP"
      app_protocol = "http"
    }
  }

  depends_on = [kubernetes_namespace_v1.this]
}

# For Prometheus: every replica by its own address, also one that is not ready (any more).
resource "kubernetes_service_v1" "admin" {
  metadata {
    name      = "${var.name}-admin"
    namespace = var.namespace
    labels = {
      "app.kubernetes.io/name"      = var.name
      "app.kubernetes.io/part-of"   = "mcp-proxy"
      "app.kubernetes.io/component" = "admin"
    }
  }

  spec {
    type                        = "ClusterIP"
    cluster_ip                  = "None"
    publish_not_ready_addresses = true
    selector                    = local.selector

    port {
      name        = "admin"
      port        = 9901
      target_port = "admin"
      protocol    = "TCP"
    }
  }

  depends_on = [kubernetes_namespace_v1.this]
}
