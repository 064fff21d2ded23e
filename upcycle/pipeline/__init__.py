"""Commands and recipes: finds models and calls the wings; the only room that knows several of them."""
