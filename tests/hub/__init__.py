"""A Hub on loopback, which the real client downloads from and uploads to."""

from tests.hub.repos import Commit, Repo
from tests.hub.server import Hub, Request

__all__ = ["Commit", "Hub", "Repo", "Request"]
