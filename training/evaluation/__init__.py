"""What scores finished runs: what they are asked and shown, what they answer, and what comes of it."""
