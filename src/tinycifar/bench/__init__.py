"""What a training step, a training and an exported model cost."""
