"""``make bench``: what the proxy costs beside nginx and HAProxy, in one run on one machine.

Rules of this package
- CPU time of the proxy process is the primary number; wall-clock figures depend on the neighbours.
- Candidates run in alternating rounds and are compared within a round, so that drift hits all alike.
- Every candidate gets the same bytes from the same load generator and the same backend.
- An answer that is not exactly what the backend sent makes the candidate fail: a broken proxy is not fast.
- Nothing here asserts a time. Goals are printed as met or missed; the exit code does not depend on them.
"""
