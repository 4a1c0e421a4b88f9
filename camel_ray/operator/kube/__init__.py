"""A small Kubernetes runtime: client, caches, work queue, leader lease, events. It knows nothing of CAMEL."""
