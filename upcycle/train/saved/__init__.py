"""What a training saves: its directory, its checkpoints, and what vouches for each of their files."""
