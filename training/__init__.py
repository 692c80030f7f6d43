"""A run trains, a separate run evaluates every channel set, and reports are made from their records."""
