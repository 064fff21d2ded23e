"""The model card, made from what an output's own files tell."""

from upcycle.card.facts import Facts, facts_of
from upcycle.card.page import BEGIN, END, card, missing, outside

__all__ = ["BEGIN", "END", "Facts", "card", "facts_of", "missing", "outside"]
