"""LoRA with trainable embeddings and norms as one standard PEFT adapter: build, save, merge."""
