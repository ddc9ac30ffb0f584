"""The seam to policy: who asks, and may they."""
