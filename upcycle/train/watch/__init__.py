"""What a training tells of itself: figures of each step, alerts, and who gets them."""
