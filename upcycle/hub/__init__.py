"""Finds models on the Hugging Face Hub, downloads them and publishes them: the only room that talks to the network."""
