"""What `operator_scale.py` compares: three controllers that turn a parent object into Jobs, on one control plane."""
