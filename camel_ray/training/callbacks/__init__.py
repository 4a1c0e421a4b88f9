"""What happens beside the training step, one small callback each."""
