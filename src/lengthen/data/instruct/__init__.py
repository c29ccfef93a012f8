"""Instruction tuning: records to conversations (formats), prompts (templates), tokens and masks (encoding), blocks."""
