"""What a run did and what its experts do, in figures."""
