# What is not allowed by name is denied, in both directions. Kubelets need no policy: a pod can always be reached
# from its own node.

resource "kubernetes_network_policy_v1" "default_deny" {
  metadata {
    name      = "${var.name}-default-deny"
    namespace = var.namespace
    labels    = local.part_of
  }

  spec {
    policy_types = ["Ingress", "Egress"]

    pod_selector {
      match_labels = local.part_of
    }
  }

  depends_on = [kubernetes_namespace_v1.this]
}

resource "kubernetes_network_policy_v1" "to_dns" {
  metadata {
    name      = "${var.name}-to-dns"
    namespace = var.namespace
    labels    = local.part_of
  }

  spec {
    policy_types = ["Egress"]

    pod_selector {
      match_labels = local.selector
    }

    egress {
      to {
        namespace_selector {
          match_labels = {
            "kubernetes.io/metadata.name" = "kube-system"
          }
        }

        pod_selector {
          match_labels = {
            "k8s-app" = "kube-dns"
          }
        }
      }

      # NodeLocal DNSCache, where there is one.
      to {
        ip_block {
          cidr = "169.254.20.10/32"
        }
      }

      ports {
        port     = "53"
        protocol = "UDP"
      }

      ports {
        port     = "53"
        protocol = "TCP"
      }
    }
  }

  depends_on = [kubernetes_namespace_v1.this]
}

resource "kubernetes_network_policy_v1" "to_servers" {
  metadata {
    name      = "${var.name}-to-servers"
    namespace = var.namespace
    labels    = local.part_of
  }

  spec {
    policy_types = ["Egress"]

    pod_selector {
      match_labels = local.selector
    }

    dynamic "egress" {
      for_each = var.egress

      content {
        to {
          pod_selector {
            match_labels = egress.value.pods
          }
        }

        ports {
          port     = tostring(egress.value.port)
          protocol = "TCP"
        }
      }
    }
  }

  depends_on = [kubernetes_namespace_v1.this]
}

# Only with somebody to let in: a policy whose rule names nobody would let in everybody.
resource "kubernetes_network_policy_v1" "from_clients" {
  count = length(var.clients) > 0 ? 1 : 0

  metadata {
    name      = "${var.name}-from-clients"
    namespace = var.namespace
    labels    = local.part_of
  }

  spec {
    policy_types = ["Ingress"]

    pod_selector {
      match_labels = local.selector
    }

    ingress {
      dynamic "from" {
        for_each = var.clients

        content {
          namespace_selector {
            match_labels = {
              "kubernetes.io/metadata.name" = from.value.namespace
            }
          }

          pod_selector {
            match_labels = from.value.pods
          }
        }
      }

      ports {
        port     = "http"
        protocol = "TCP"
      }
    }
  }

  depends_on = [kubernetes_namespace_v1.this]
}

resource "kubernetes_network_policy_v1" "from_scrapers" {
  count = length(var.scrapers) > 0 ? 1 : 0

  metadata {
    name      = "${var.name}-from-scrapers"
    namespace = var.namespace
    labels    = local.part_of
  }

  spec {
    policy_types = ["Ingress"]

    pod_selector {
      match_labels = local.selector
    }

    ingress {
      dynamic "from" {
        for_each = var.scrapers

        content {
          namespace_selector {
            match_labels = {
              "kubernetes.io/metadata.name" = from.value.namespace
            }
          }

          pod_selector {
            match_labels = from.value.pods
          }
        }
      }

      ports {
        port     = "admin"
        protocol = "TCP"
      }
    }
  }

  depends_on = [kubernetes_namespace_v1.this]
}
