"""Draws what a training did and how its experts were used."""
