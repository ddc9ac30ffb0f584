resource "kubernetes_pod_disruption_budget_v1" "this" {
  metadata {
    name      = var.name
    namespace = var.namespace
    labels    = local.labels
  }

  spec {
    max_unavailable = "1"

    selector {
      match_labels = local.selector
    }
  }

  depends_on = [kubernetes_namespace_v1.this]
}

# Streams cost memory and no CPU, calls cost CPU: whichever of the two wants more replicas gets them.
resource "kubernetes_horizontal_pod_autoscaler_v2" "this" {
  metadata {
    name      = var.name
    namespace = var.namespace
    labels    = local.labels
  }

  spec {
    min_replicas = var.min_replicas
    max_replicas = var.max_replicas

    scale_target_ref {
      api_version = "apps/v1"
      kind        = "Deployment"
      name        = kubernetes_deployment_v1.this.metadata[0].name
    }

    metric {
      type = "ContainerResource"

      container_resource {
        name      = "cpu"
        container = "mcp-proxy"

        target {
          type                = "Utilization"
          average_utilization = var.cpu_utilization
        }
      }
    }

    dynamic "metric" {
      for_each = var.streams_per_replica[*]

      content {
        type = "Pods"

        pods {
          metric {
            name = "mcp_proxy_open_streams"
          }

          target {
            type          = "AverageValue"
            average_value = tostring(metric.value)
          }
        }
      }
    }

    behavior {
      scale_up {
        stabilization_window_seconds = 0
        select_policy                = "Max"

        policy {
          type           = "Percent"
          value          = 100
          period_seconds = 60
        }
      }

      # Each replica that goes ends its streams, and all their clients come back elsewhere.
      scale_down {
        stabilization_window_seconds = 1800
        select_policy                = "Max"

        policy {
          type           = "Pods"
          value          = 1
          period_seconds = 600
        }
      }
    }
  }
}
