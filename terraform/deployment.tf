resource "kubernetes_deployment_v1" "this" {
  metadata {
    name      = var.name
    namespace = var.namespace
    labels    = local.labels
  }

  spec {
    # No replicas: they are the autoscaler's.
    revision_history_limit = 5
    min_ready_seconds      = 10

    strategy {
      type = "RollingUpdate"

      rolling_update {
        max_unavailable = "0"
        max_surge       = "1"
      }
    }

    selector {
      match_labels = local.selector
    }

    template {
      metadata {
        labels      = local.labels
        annotations = var.pod_annotations
      }

      spec {
        service_account_name             = kubernetes_service_account_v1.this.metadata[0].name
        automount_service_account_token  = false
        enable_service_links             = false
        termination_grace_period_seconds = var.termination_grace_period_seconds
        priority_class_name              = var.priority_class_name
        node_selector                    = var.node_selector

        dynamic "image_pull_secrets" {
          for_each = var.image_pull_secrets

          content {
            name = image_pull_secrets.value
          }
        }

        security_context {
          run_as_non_root = true
          run_as_user     = "10001"
          run_as_group    = "10001"

          seccomp_profile {
            type = "RuntimeDefault"
          }
        }

        topology_spread_constraint {
          topology_key       = "kubernetes.io/hostname"
          max_skew           = 1
          when_unsatisfiable = var.when_unsatisfiable
          match_label_keys   = ["pod-template-hash"]

          label_selector {
            match_labels = local.selector
          }
        }

        topology_spread_constraint {
          topology_key       = "topology.kubernetes.io/zone"
          max_skew           = 1
          when_unsatisfiable = "ScheduleAnyway"
          match_label_keys   = ["pod-template-hash"]

          label_selector {
            match_labels = local.selector
          }
        }

        container {
          name              = "mcp-proxy"
          image             = var.image
          image_pull_policy = "IfNotPresent"
          command           = ["mcp-proxy"]
          args              = ["serve", "--config", "/etc/mcp-proxy/proxy.yaml"]

          dynamic "env" {
            for_each = var.secret_env

            content {
              name = env.key

              value_from {
                secret_key_ref {
                  name = env.value.name
                  key  = env.value.key
                }
              }
            }
          }

          # Last: it may name the variables above.
          env {
            name  = "MCP_PROXY_SESSIONS"
            value = var.sessions
          }

          port {
            name           = "http"
            container_port = 8080
            protocol       = "TCP"
          }

          port {
            name           = "admin"
            container_port = 9901
            protocol       = "TCP"
          }

          startup_probe {
            period_seconds    = 2
            timeout_seconds   = 2
            failure_threshold = 30

            http_get {
              path = "/livez"
              port = "admin"
            }
          }

          liveness_probe {
            period_seconds    = 10
            timeout_seconds   = 5
            failure_threshold = 3

            http_get {
              path = "/livez"
              port = "admin"
            }
          }

          readiness_probe {
            period_seconds    = 2
            timeout_seconds   = 2
            failure_threshold = 2

            http_get {
              path = "/readyz"
              port = "admin"
            }
          }

          resources {
            requests = {
              cpu    = var.cpu_request
              memory = var.memory
            }
            limits = {
              memory = var.memory
            }
          }

          security_context {
            allow_privilege_escalation = false
            read_only_root_filesystem  = true

            capabilities {
              drop = ["ALL"]
            }
          }

          volume_mount {
            name       = "config"
            mount_path = "/etc/mcp-proxy"
            read_only  = true
          }
        }

        volume {
          name = "config"

          config_map {
            name = kubernetes_config_map_v1.this.metadata[0].name
          }
        }
      }
    }
  }

  timeouts {
    create = var.rollout_timeout
    update = var.rollout_timeout
  }

  lifecycle {
    ignore_changes = [spec[0].replicas]
  }
}
