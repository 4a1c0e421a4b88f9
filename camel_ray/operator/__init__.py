"""The Kubernetes operator: turns each stage of a CamelPipeline into one RayJob or Job per attempt."""
