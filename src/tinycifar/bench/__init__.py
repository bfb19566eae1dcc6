"""What a training step, a training and an exported model cost."""

INFER_ROUNDS = 30  # of `bench infer`, known without loading PyTorch
