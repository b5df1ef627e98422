"""Commands for people: what they print, tokens, clients, doctor."""
